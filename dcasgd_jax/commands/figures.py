"""The picture of a comparison: loss against pushes and against time, and the staleness."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax import files
from dcasgd_jax.commands import ledger, statistics, study
from dcasgd_jax.plots import axes

MAX_CURVES = 8
"""Of more methods only the ends are drawn."""


def save_comparison(path: str | os.PathLike, lines: Sequence[ledger.Line], title: str) -> None:
    """Draws a comparison into a PNG; runs that diverged end in a cross."""
    from matplotlib import figure

    runs = study.frame(lines)
    names = list(dict.fromkeys(runs["method"]))
    if len(names) > MAX_CURVES or "curve_pushes" not in runs:
        picture = figure.Figure(
            figsize=(8.5, 1.6 + 0.26 * len(names)), dpi=130, layout="constrained"
        )
        _draw_ends(picture.subplots(), runs)
    else:
        picture = figure.Figure(figsize=(13.5, 4.9), dpi=130, layout="constrained")
        by_push, by_time, histogram = picture.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
        runs = runs[runs["curve_pushes"].notna()]
        _draw_curves(by_push, runs, "curve_pushes", "pushed gradients")
        by_time.set_xscale("log")
        _draw_curves(by_time, runs, "curve_seconds", "simulated seconds (log)")
        _draw_staleness(histogram, runs)
        if without := [name for name in names if name not in set(runs["method"])]:
            title += f"\nno curve was recorded of {statistics.listed(without)}"
        handles, labels = by_push.get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": min(len(labels), 7), "frameon": False}
        picture.legend(handles, labels, **place)
    picture.suptitle(title, fontsize=11)
    save(path, picture)


def save(path: str | os.PathLike, picture: Any) -> None:
    """Writes a PNG, whole or not at all."""
    with files.replacing(path) as stream:
        picture.savefig(stream, format="png")


def colour_of(names: Sequence[str], name: str) -> str:
    """The usual colour of a method, or one of the others."""
    return axes.COLOURS.get(name, f"C{list(names).index(name)}")


def _draw_curves(ax, runs: study.Frame, along: str, label: str) -> None:
    ax.set_yscale("log")
    low, high = _loss_range(runs)
    ax.set_ylim(low, high)
    names = list(dict.fromkeys(runs["method"]))
    for name, of_method in runs.groupby("method", sort=False):
        colour = colour_of(names, str(name))
        lost = of_method["train_loss"].isna()
        if not lost.all():
            _draw_finished(ax, of_method[~lost], along, colour, name)
        for index, (_, run) in enumerate(of_method[lost].iterrows()):
            count = f"{name} ({lost.sum()}/{len(lost)} diverged)"
            _draw_diverged(ax, run, along, high, colour, None if index else count)
    ax.axhline(runs["initial_loss"].mean(), color=axes.GREY, lw=0.9, ls=":")
    axes.finish(ax, label, "train loss (all images)")


def _loss_range(runs: study.Frame) -> tuple[float, float]:
    """Limits that show the runs that finished; a diverged one may pass 1e30."""
    start = runs["initial_loss"].max()
    curves = runs[runs["train_loss"].notna()]["curve_train_loss"].tolist() or [[start]]
    losses = np.concatenate([np.array(curve, float) for curve in curves])
    return 0.7 * np.nanmin(losses), 1.5 * min(np.nanmax(losses), 30 * start)


def _points(run: Any, along: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and losses up to the first loss that is not finite."""
    losses = np.array(run["curve_train_loss"], float)
    shown = np.cumprod(np.isfinite(losses)).astype(bool)
    if along == "curve_seconds":
        shown[0] = False  # a logarithmic axis has no room for time 0
    return np.asarray(run[along])[shown], losses[shown]


def _draw_finished(ax, finished: study.Frame, along: str, colour: str, label) -> None:
    """Mean and range over runs of one method."""
    positions, losses = zip(*(_points(run, along) for _, run in finished.iterrows()), strict=True)
    position, losses = np.mean(positions, axis=0), np.asarray(losses)
    ax.plot(position, losses.mean(axis=0), color=colour, label=label, lw=1.8)
    ax.fill_between(
        position, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.18, lw=0
    )


def _draw_diverged(ax, run: Any, along: str, top: float, colour: str, label) -> None:
    """One run, to a cross where it ends, stops being finite or leaves the picture."""
    position, losses = _points(run, along)
    outside = np.flatnonzero(losses >= top)
    stop = outside[0] + 1 if len(outside) else len(losses)
    # A little below the edge, so that the cross is seen whole.
    losses = np.minimum(losses, 0.8 * top)
    style = {"color": colour, "ls": ":", "lw": 1.2, "marker": "x", "ms": 8, "mew": 2}
    ax.plot(position[:stop], losses[:stop], markevery=[-1], label=label, **style)


def _draw_staleness(ax, runs: study.Frame) -> None:
    """Shares of pushes by staleness; the asynchronous methods share their schedules."""
    late = runs["mean_staleness"] > 0
    stale = runs[late] if late.any() else runs
    counts = np.zeros(max(map(len, stale["staleness_counts"])))
    for of_run in stale["staleness_counts"]:
        counts[: len(of_run)] += of_run
    fresh = list(dict.fromkeys(runs[~late]["method"]))
    ax.bar(np.arange(len(counts)), counts / counts.sum(), color="#0072B2", width=0.85)
    ax.set_xlabel("staleness (versions)")
    ax.set_ylabel("share of pushes")
    about = "asynchronous methods" if late.any() else "all methods"
    if late.any() and fresh:
        about += f"\n({', '.join(fresh)}: always 0)"
    ax.set_title(about, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _draw_ends(ax, runs: study.Frame) -> None:
    """A row of dots for each method, the lowest mean first; a cross: that run diverged."""
    means = runs.groupby("method", sort=False)["train_loss"].agg(lambda x: x.mean(skipna=False))
    names = list(means.sort_values(na_position="last").index)
    edge = 1.3 * runs["initial_loss"].max()
    for row, name in enumerate(names):
        losses = runs[runs["method"] == name]["train_loss"].astype(float)
        kept = losses.dropna()
        ax.plot(kept, np.full(len(kept), row), "o", color="#0072B2", ms=4.5, alpha=0.6)
        lost = losses.isna().sum()
        ax.plot(np.full(lost, edge), np.full(lost, row), "x", color="#D55E00", ms=6)
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    axes.finish(ax, "final train loss of each seed (cross: diverged)", "")
