"""The picture of a comparison: loss against pushes and against time, and the staleness."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.experiments import runs
from dcasgd_jax.sim import files

COLOURS = {  # Okabe and Ito's, which colour-blind readers can tell apart
    "sgd": "#000000",
    "ssgd": "#999999",
    "asgd": "#D55E00",
    "dcasgd-c": "#E69F00",
    "dcasgd-a": "#56B4E9",
    "dcasgd-capped": "#0072B2",
}


def save_comparison(path: str | os.PathLike, all_runs: Sequence[runs.Run], title: str) -> None:
    """Draws three panels into a PNG; runs that diverged are dotted lines that end in a cross."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(13.5, 4.6), dpi=130, layout="constrained")
    by_push, by_time, histogram = picture.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    for name in dict.fromkeys(run.method for run in all_runs):
        of_method = [run for run in all_runs if run.method == name]
        _draw_curves(by_push, of_method, "curve_pushes")
        _draw_curves(by_time, of_method, "curve_seconds")
    _finish_curves(by_push, all_runs, "pushed gradients")
    _finish_curves(by_time, all_runs, "simulated seconds (log)")
    by_time.set_xscale("log")
    _draw_staleness(histogram, all_runs)
    handles, labels = by_push.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    picture.suptitle(title, fontsize=11)
    with files.replacing(path) as stream:
        picture.savefig(stream, format="png")


def _draw_curves(axes, of_method: list[runs.Run], along: str) -> None:
    """Mean and range over the runs that finished, each diverged run by itself."""
    name = of_method[0].method
    colour = COLOURS[name]
    finished = [run for run in of_method if not run.diverged]
    if finished:
        losses = np.asarray([run.curve_train_loss for run in finished])
        position = np.mean([getattr(run, along) for run in finished], axis=0)
        if along == "curve_seconds":  # its axis is logarithmic: no room for time 0
            losses, position = losses[:, 1:], position[1:]
        axes.plot(position, losses.mean(axis=0), color=colour, label=name, lw=1.8)
        axes.fill_between(
            position, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.18, lw=0
        )
    diverged = [run for run in of_method if run.diverged]
    for index, run in enumerate(diverged):
        losses = np.asarray(run.curve_train_loss)
        shown = np.cumprod(np.isfinite(losses)).astype(bool)
        position = np.asarray(getattr(run, along))[shown]
        count = f"{name} ({len(diverged)}/{len(of_method)} diverged)"
        label = count if index == 0 else None
        axes.plot(position, losses[shown], color=colour, ls=":", lw=1.2, label=label)
        axes.plot(position[-1:], losses[shown][-1:], "x", color=colour, ms=8, mew=2)


def _finish_curves(axes, all_runs: Sequence[runs.Run], along: str) -> None:
    axes.set_yscale("log")
    start = max(run.initial_train_loss for run in all_runs)
    finished = [run.curve_train_loss for run in all_runs if not run.diverged] or [[start]]
    # A diverged run may pass 1e30; the picture is about the others.
    top = min(max(map(max, finished)), 30 * start)
    axes.set_ylim(0.7 * min(map(min, finished)), 2 * top)
    axes.set_xlabel(along)
    axes.set_ylabel("train loss (all images)")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_staleness(axes, all_runs: Sequence[runs.Run]) -> None:
    """Shares of pushes by staleness; the asynchronous methods share their schedules."""
    stale = [run for run in all_runs if run.mean_staleness > 0]
    counts = np.zeros(max(len(run.staleness_counts) for run in all_runs))
    for run in stale or all_runs:
        counts[: len(run.staleness_counts)] += run.staleness_counts
    fresh = [run.method for run in all_runs if run.mean_staleness == 0]
    axes.bar(np.arange(len(counts)), counts / counts.sum(), color="#0072B2", width=0.85)
    axes.set_xlabel("staleness (versions)")
    axes.set_ylabel("share of pushes")
    about = "asynchronous methods" if stale else "all methods"
    if stale and fresh:
        about += f"\n({', '.join(dict.fromkeys(fresh))}: always 0)"
    axes.set_title(about, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
