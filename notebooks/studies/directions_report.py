"""The tables and the picture of the study of directions."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcasgd_jax.commands import figures, ledger, study, terminal
from dcasgd_jax.plots import axes

if TYPE_CHECKING:
    from rich.console import Console

PLACE = ["model", "law", "momentum", "workers"]
TITLES = {
    "sgd": "sequential SGD: train loss",
    "asgd": "asynchronous SGD: train loss",
    "dcasgd-capped": "dcasgd-a, capped",
    "capped-abs": "absolute(), capped",
    "dana-dc": "DANA-DC",
    "rotated": "rotated(), tuned",
    "rotated-1": "rotated(), λ0 = 1 *",
    "rotated-4": "rotated(), λ0 = 4 *",
    "rows-1": "rows(), λ0 = 1 *",
}
EXPLANATION = (
    "Share of the gap in final train loss between asynchronous and sequential SGD that is closed, "
    "%, mean over the seeds ± the half width of a 95 % interval (Student's t, with the noise of "
    "the two means that span the gap). * with the learning rate of sequential SGD, nothing tuned; "
    "all others were tuned with equal effort. Above 100: a lower train loss than sequential SGD's, "
    "which need not be better learning."
)


def closed(lines: Sequence[ledger.Line]) -> study.Frame:
    """The share of the gap that is closed, by the mean losses of the two that span it.

    Returns:
      A row for each run, with its `closed` in percent, nan where it diverged.
    """
    import pandas as pd

    runs = study.frame(lines).fillna({"momentum": 0.0})
    means = runs.groupby([*PLACE, "method"])["train_loss"].mean().unstack("method")
    spans = runs[PLACE].merge(means[["sgd", "asgd"]], left_on=PLACE, right_index=True, how="left")
    gap = spans["asgd"] - spans["sgd"]
    return runs.assign(closed=100 * (spans["asgd"] - pd.to_numeric(runs["train_loss"])) / gap)


def interval(values: Any) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval; nan if one of the values is."""
    return float(values.mean(skipna=False)), _half_width((values, 1.0))


def interval_of_share(closed: Any, plain: Any, sequential: Any) -> tuple[float, float]:
    """Mean and half the width of the 95 % interval of a share, by the delta method.

    Args:
      closed: Of each run the share that it closes, in percent, of the gap between the two means.
      plain: Losses of asynchronous SGD, at one end of the gap.
      sequential: Losses of sequential SGD, at the other one.

    Returns:
      Both in percent, the runs taken as independent, with Welch's degrees of freedom.
    """
    mean = float(closed.mean(skipna=False))
    gap = float(plain.mean() - sequential.mean())
    if gap == 0 or not math.isfinite(mean):
        return mean, math.nan
    return mean, _half_width((closed, 1.0), (plain, (100 - mean) / gap), (sequential, mean / gap))


def _half_width(*parts: tuple[Any, float]) -> float:
    """Of the 95 % interval of a sum of means, each of some values and times a number."""
    from scipy import stats

    variance = lambda values: values.var(ddof=1, skipna=False) / len(values)  # nan of one value
    squares = [slope**2 * variance(values) for values, slope in parts]
    total = sum(squares)
    if not total > 0:
        return float(total)
    counts = [len(values) - 1 for values, _ in parts]
    freedom = total**2 / sum(x * x / count for x, count in zip(squares, counts, strict=True))
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(total))


def print_tables(console: "Console", lines: Sequence[ledger.Line]) -> None:
    """A table for each model, law and momentum: a row for each method, a column for each M."""
    runs = closed(lines)
    for (model, law, momentum), of_place in runs.groupby(PLACE[:3], sort=False):
        workers = sorted(set(of_place["workers"]))
        table = terminal.new_table("method", *(f"M={m}" for m in workers), "test error %")
        for name in [name for name in TITLES if name in set(of_place["method"])]:
            of_method = of_place[of_place["method"] == name]
            cells = [_cell(name, of_place[of_place["workers"] == m]) for m in workers]
            table.add_row(TITLES[name], *cells, f"{100 * of_method['test_error'].mean():.2f}")
        title = f"{model}, {law} times" + (f", momentum {momentum:g}" if momentum else "")
        terminal.print_table(console, title, table)
    terminal.print_text(console, EXPLANATION)


def _cell(name: str, here: study.Frame) -> str:
    """Of a method; `here` are all runs of its place."""
    runs = here[here["method"] == name]
    if runs.empty:
        return ""
    if name in ("sgd", "asgd"):
        return f"{runs['train_loss'].mean(skipna=False):.4f}"
    ends = [here[here["method"] == end]["train_loss"].astype(float) for end in ("asgd", "sgd")]
    mean, half = interval_of_share(runs["closed"], *ends)
    if math.isnan(mean):
        return f"{int(runs['closed'].isna().sum())} of {len(runs)} div."
    return f"{mean:.0f}" if math.isnan(half) else f"{mean:.0f} ± {half:.0f}"


def save_picture(path: pathlib.Path, lines: Sequence[ledger.Line]) -> None:
    """A panel for each model and kind of cluster: closed share against the number of workers."""
    from matplotlib import figure

    runs = closed(lines)
    places = list(runs.groupby(PLACE[:3], sort=False))
    rows = len(dict.fromkeys(model for (model, _, _), _ in places))
    columns = math.ceil(len(places) / rows)
    size = (3.4 * columns + 0.6, 2.7 * rows + 0.8)
    picture = figure.Figure(figsize=size, dpi=130, layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, ((model, law, momentum), of_place) in zip(panels, places, strict=False):
        for index, name in enumerate(list(TITLES)[2:]):
            of_method = of_place[of_place["method"] == name].groupby("workers")["closed"]
            means = of_method.agg(lambda values: values.mean(skipna=False))
            style = "o-" if name.endswith(("-1", "-4")) else "s:"
            ax.plot(
                means.index, means.clip(lower=-20), style, color=f"C{index}", label=TITLES[name],
                markersize=4,
            )  # fmt: skip
        ax.axhline(100, color="#000000", linewidth=0.8)
        ax.axhline(0, color="#000000", linewidth=0.8, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(set(of_place["workers"])), sorted(set(of_place["workers"])))
        ax.set_ylim(-25, 120)
        suffix = f", momentum {momentum:g}" if momentum else ""
        ax.set_title(f"{model}, {law} times{suffix}", fontsize=9)
        axes.finish(ax, "workers", "")
    for ax in panels[len(places) :]:
        ax.set_visible(False)
    picture.supylabel("gap to sequential SGD that is closed, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figures.save(path, picture)
