"""The tables and the picture of the study of local steps."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import local_steps_methods as methods
import numpy as np

from dcasgd_jax.commands import figures, ledger, statistics, study, terminal
from dcasgd_jax.plots import axes

if TYPE_CHECKING:
    from rich.console import Console

EXPLANATION = (
    "Every run takes the same number of gradients. Loss: on the held-out windows after the last of "
    "them, mean and sample standard deviation over the seeds. Hours: simulated, until then. "
    "Megabytes: sent by all workers and the server together. lr: of the outer optimizer."
)


def print_tables(console: "Console", lines: Sequence[ledger.Line]) -> None:
    """A table for each number of steps, a row for each method."""
    _, lambda0 = terminal.symbols(console)
    for steps, of_steps in study.frame(lines).groupby("steps", sort=False):
        table = terminal.new_table("method", "loss", "hours", "megabytes", "lr", lambda0)
        for name, runs in of_steps.groupby("method", sort=False):
            loss = statistics.statistic(losses[-1] for losses in runs["validation_loss"])
            last = lambda column, runs=runs: float(np.mean([v[-1] for v in runs[column]]))
            strength = runs["lambda0"].iloc[0]
            table.add_row(
                methods.METHODS[str(name)].title,
                "diverged" if loss is None else loss.text(".3f"),
                f"{last('seconds') / 3600:.2f}",
                f"{last('megabytes'):.0f}",
                f"{runs['learning_rate'].iloc[0]:g}",
                "" if strength is None or np.isnan(strength) else f"{strength:g}",
            )
        terminal.print_table(console, f"{steps} local step{'s' * (steps != 1)}", table)
    terminal.print_text(console, EXPLANATION)


def save_picture(path: pathlib.Path, lines: Sequence[ledger.Line]) -> None:
    """Loss against simulated time and against what was sent; a column for each number of steps."""
    from matplotlib import figure, ticker

    runs = study.frame(lines)
    groups = list(runs.groupby("steps", sort=False))
    picture = figure.Figure(figsize=(3.9 * len(groups) + 0.4, 7.4), dpi=130, layout="constrained")
    panels = picture.subplots(2, len(groups), squeeze=False, sharey=True)
    names = list(methods.METHODS)
    for column, (steps, of_steps) in enumerate(groups):
        for row, (along, label, scale) in enumerate(
            (("seconds", "simulated hours", 3600), ("megabytes", "megabytes sent", 1))
        ):
            ax = panels[row, column]
            for name, of_method in of_steps.groupby("method", sort=False):
                losses = _mean(of_method["validation_loss"])
                places = _mean(of_method[along]) / scale
                index = names.index(str(name))
                style = ":" if name.startswith("sync") else "-"
                ax.plot(places, losses, style, color=f"C{index}", lw=1.5,
                        label=methods.METHODS[str(name)].title)  # fmt: skip
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
            ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            ax.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.finish(ax, label, "validation loss" if column == 0 else "")
        panels[0, column].set_title(f"{steps} local step{'s' * (steps != 1)}", fontsize=10)
    first = runs["validation_loss"].map(lambda losses: losses[0]).min()
    panels[0, 0].set_ylim(top=1.25 * first)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figures.save(path, picture)


def _mean(curves) -> np.ndarray:
    """Over runs, as far as all of them go."""
    length = min(map(len, curves))
    return np.mean([curve[:length] for curve in curves], axis=0)
