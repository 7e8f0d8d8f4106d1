"""The picture of a comparison: loss against pushes and against time, and the staleness."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import files
from dcasgd_jax.commands import runs
from dcasgd_jax.plots import axes


def save_comparison(path: str | os.PathLike, all_runs: Sequence[runs.Run], title: str) -> None:
    """Draws three panels into a PNG; runs that diverged are dotted lines that end in a cross."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(13.5, 4.6), dpi=130, layout="constrained")
    by_push, by_time, histogram = picture.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    _draw_curves(by_push, all_runs, "curve_pushes", "pushed gradients")
    by_time.set_xscale("log")
    _draw_curves(by_time, all_runs, "curve_seconds", "simulated seconds (log)")
    _draw_staleness(histogram, all_runs)
    handles, labels = by_push.get_legend_handles_labels()
    picture.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False
    )
    picture.suptitle(title, fontsize=11)
    with files.replacing(path) as stream:
        picture.savefig(stream, format="png")


def _draw_curves(ax, all_runs: Sequence[runs.Run], along: str, label: str) -> None:
    ax.set_yscale("log")
    low, high = _loss_range(all_runs)
    ax.set_ylim(low, high)
    for name in dict.fromkeys(run.method for run in all_runs):
        of_method = [run for run in all_runs if run.method == name]
        finished = [run for run in of_method if not run.diverged]
        if finished:
            _draw_finished(ax, finished, along)
        diverged = [run for run in of_method if run.diverged]
        for index, run in enumerate(diverged):
            count = f"{name} ({len(diverged)}/{len(of_method)} diverged)"
            _draw_diverged(ax, run, along, high, None if index else count)
    ax.set_xlabel(label)
    ax.set_ylabel("train loss (all images)")
    ax.grid(alpha=0.25, which="major")
    ax.spines[["top", "right"]].set_visible(False)


def _loss_range(all_runs: Sequence[runs.Run]) -> tuple[float, float]:
    """Limits that show the runs that finished; a diverged one may pass 1e30."""
    start = max(run.initial_train_loss for run in all_runs)
    finished = [run.curve_train_loss for run in all_runs if not run.diverged] or [[start]]
    top = min(max(map(max, finished)), 30 * start)
    return 0.7 * min(map(min, finished)), 2 * top


def _points(run: runs.Run, along: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and losses up to the first loss that is not finite."""
    losses = np.asarray(run.curve_train_loss)
    shown = np.cumprod(np.isfinite(losses)).astype(bool)
    if along == "curve_seconds":
        shown[0] = False  # a logarithmic axis has no room for time 0
    return np.asarray(getattr(run, along))[shown], losses[shown]


def _draw_finished(ax, finished: Sequence[runs.Run], along: str) -> None:
    """Mean and range over runs of one method."""
    colour = axes.COLOURS[finished[0].method]
    positions, losses = zip(*(_points(run, along) for run in finished), strict=True)
    position, losses = np.mean(positions, axis=0), np.asarray(losses)
    ax.plot(position, losses.mean(axis=0), color=colour, label=finished[0].method, lw=1.8)
    ax.fill_between(
        position, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.18, lw=0
    )


def _draw_diverged(ax, run: runs.Run, along: str, top: float, label: str | None) -> None:
    """One run, to a cross where it ends, stops being finite or leaves the picture."""
    position, losses = _points(run, along)
    outside = np.flatnonzero(losses >= top)
    stop = outside[0] + 1 if len(outside) else len(losses)
    # A little below the edge, so that the cross is seen whole.
    losses = np.minimum(losses, 0.8 * top)
    colour = axes.COLOURS[run.method]
    style = {"color": colour, "ls": ":", "lw": 1.2, "marker": "x", "ms": 8, "mew": 2}
    ax.plot(position[:stop], losses[:stop], markevery=[-1], label=label, **style)


def _draw_staleness(ax, all_runs: Sequence[runs.Run]) -> None:
    """Shares of pushes by staleness; the asynchronous methods share their schedules."""
    stale = [run for run in all_runs if run.mean_staleness > 0]
    counts = np.zeros(max(len(run.staleness_counts) for run in all_runs))
    for run in stale or all_runs:
        counts[: len(run.staleness_counts)] += run.staleness_counts
    fresh = [run.method for run in all_runs if run.mean_staleness == 0]
    ax.bar(np.arange(len(counts)), counts / counts.sum(), color="#0072B2", width=0.85)
    ax.set_xlabel("staleness (versions)")
    ax.set_ylabel("share of pushes")
    about = "asynchronous methods" if stale else "all methods"
    if stale and fresh:
        about += f"\n({', '.join(dict.fromkeys(fresh))}: always 0)"
    ax.set_title(about, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.get_major_locator().set_params(integer=True)
