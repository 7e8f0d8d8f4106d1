"""The tables and the picture of the study of the transformer."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import directions_report
import transformer_methods as methods

from dcasgd_jax.commands import figures, ledger, study, terminal
from dcasgd_jax.plots import axes

if TYPE_CHECKING:
    from rich.console import Console

SPANNED_BY = {"sgd": ("sgd", "asgd"), "adam": ("adam", "async-adam")}
"""The sequential and the plain asynchronous method of each optimizer."""

LOSSES = {"last_loss": "validation loss", "tempered_loss": "validation loss, best temperature"}
EXPLANATION = (
    "Losses of the sequential and of the plain asynchronous runs, and of every other method the "
    "share of the gap between them that it closes, %: mean over the seeds ± the half width of a "
    "95 % interval (Student's t; of a share with the noise of the two means that span the gap), of "
    "the runs that did not diverge where some did. * with the "
    "learning rate of the sequential run, nothing tuned; all others were tuned with equal effort. "
    "At the best temperature: all logits are multiplied by the number that makes the loss smallest."
)


def frame(lines: Sequence[ledger.Line]) -> study.Frame:
    """A row for each run, with the optimizer of its method; losses are nan where it diverged."""
    import pandas as pd

    runs = study.frame(lines)
    runs["optimizer"] = [methods.METHODS[name].optimizer for name in runs["method"]]
    for loss in LOSSES:
        runs[loss] = pd.to_numeric(runs[loss])
    return runs


def closed(runs: study.Frame, loss: str) -> study.Frame:
    """The share of the gap that each run closes, in percent, of the means of those that span it."""
    means = runs.groupby(["workers", "method"])[loss].mean()

    def share(run: Any) -> float:
        sequential, plain = SPANNED_BY[run["optimizer"]]
        one, other = means.get((1, sequential)), means.get((run["workers"], plain))
        if one is None or other is None:
            return math.nan
        return 100 * (other - run[loss]) / (other - one)

    return runs.apply(share, axis=1)


def print_tables(console: "Console", lines: Sequence[ledger.Line]) -> None:
    """A table for each optimizer and loss: a row for each method, a column for each M."""
    runs = frame(lines)
    for optimizer, of_optimizer in _of_optimizers(runs):
        for loss, title in LOSSES.items():
            shares = of_optimizer.assign(closed=closed(of_optimizer, loss))
            workers = sorted(set(of_optimizer["workers"]) - {1}) or [1]
            table = terminal.new_table("method", *(f"M={m}" for m in workers))
            for name in [name for name in methods.METHODS if name in set(shares["method"])]:
                here = lambda m, shares=shares: shares[shares["workers"].isin([1, m])]
                cells = [_cell(optimizer, name, loss, here(m)) for m in workers]
                table.add_row(methods.METHODS[name].title, *cells)
            terminal.print_table(console, f"{optimizer}, {title}", table)
    terminal.print_text(console, EXPLANATION)


def _of_optimizers(runs: study.Frame) -> list[tuple[str, study.Frame]]:
    """The runs of each optimizer, in their order here."""
    there = [name for name in SPANNED_BY if (runs["optimizer"] == name).any()]
    return [(name, runs[runs["optimizer"] == name]) for name in there]


def _cell(optimizer: str, name: str, loss: str, here: study.Frame) -> str:
    """Of a method; `here` are all runs of its place."""
    spans, runs = name in SPANNED_BY[optimizer], here[here["method"] == name]
    there = runs[loss if spans else "closed"].dropna()
    lost = int(runs[loss].isna().sum())
    if there.empty:
        return f"{lost} div." if lost else "-"
    if spans:
        mean, half = directions_report.interval(there)
    else:
        sequential, plain = SPANNED_BY[optimizer]
        ends = [here[here["method"] == end][loss].dropna() for end in (plain, sequential)]
        mean, half = directions_report.interval_of_share(there, *ends)
    form = ".3f" if spans else ".0f"
    spread = "" if math.isnan(half) else f" ± {half:{form}}"
    return f"{mean:{form}}{spread}" + (f", {lost} of {len(runs)} div." if lost else "")


def save_picture(path: pathlib.Path, lines: Sequence[ledger.Line]) -> None:
    """A panel for each optimizer: validation loss against the number of workers."""
    from matplotlib import figure

    groups = _of_optimizers(frame(lines))
    size = (4.6 * len(groups) + 0.4, 5.2)
    picture = figure.Figure(figsize=size, dpi=130, layout="constrained")
    panels = picture.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for ax, (optimizer, runs) in zip(panels, groups, strict=True):
        names = [name for name in methods.METHODS if name in set(runs["method"])]
        sequential, plain = SPANNED_BY[optimizer]
        for index, name in enumerate(names):
            means = runs[runs["method"] == name].groupby("workers")["last_loss"].mean()
            title = methods.METHODS[name].title
            if name == sequential:
                ax.axhline(means.iloc[0], color="#000000", linewidth=0.8, label=title)
                continue
            style = "s:" if name == plain else "o-"
            ax.plot(means.index, means, style, color=f"C{index}", label=title, markersize=4)
        workers = sorted(set(runs["workers"]) - {1})
        ax.set_xscale("log", base=2)
        ax.set_xticks(workers, workers)
        ax.set_title(optimizer.upper() if optimizer == "sgd" else "Adam", fontsize=10)
        axes.finish(ax, "workers", "validation loss" if ax is panels[0] else "")
        ax.legend(loc="upper left", frameon=False, fontsize=7)
    figures.save(path, picture)
