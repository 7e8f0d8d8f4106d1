"""Pictures of single runs: loss, staleness, who worked when, what the compensation did.

Every function draws into the `Axes` it is given, or into a new figure, and returns the `Axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from dcasgd_jax import sim
from dcasgd_jax.plots import axes, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_compensation", "plot_loss", "plot_staleness", "plot_timeline"]

AGAINST = {  # what losses are drawn against: column of the trace, label
    "updates": ("version", "server updates"),
    "samples": ("samples", "examples seen by all workers"),
    "seconds": ("time", "simulated seconds"),
}
_MAX_BARS = 60  # of a histogram


def plot_loss(
    results: sim.SimResult | Mapping[str, sim.SimResult],
    against: Literal["updates", "samples", "seconds"] = "updates",
    *,
    smooth: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the training loss of one run, or of several by name.

    A point is the mean of `smooth` consecutive events, each the loss of one batch at the parameters
    that its worker had read. A run that ends with no finite loss, or 30 times above the start,
    stops in a cross where it gets lost.

    Args:
      results: What `simulate` returned, or a mapping from names for the legend to such results.
      against: The horizontal axis: "updates", "samples" or "seconds".
      smooth: Events in a point, ≥ 1. Default: as many as make about 100 points.
      ax: Where to draw. Default: a new figure.

    Returns:
      The axes; the vertical one is logarithmic if all losses are positive.

    Raises:
      ValueError: For an unknown `against`, a `smooth` below 1, or no results.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax import plots
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=50, seed=0)
      >>> problem = sim.Problem(lambda w, b: jnp.sum((w - b) ** 2), jnp.zeros(2))
      >>> result = sim.simulate(problem, optax.sgd(0.1), schedule, jnp.ones((50, 2)))
      >>> ax = plots.plot_loss({"asgd": result}, against="seconds")
      >>> ax.get_xlabel()
      'simulated seconds'
    """
    if against not in AGAINST:
        raise ValueError(f"against must be one of {', '.join(AGAINST)}, got {against!r}.")
    named = isinstance(results, Mapping)
    runs: Mapping[str, sim.SimResult] = results if named else {"": results}  # type: ignore[assignment]
    if not runs:
        raise ValueError("results is empty: there is no run to draw.")
    column, label = AGAINST[against]
    drawn = [_loss_curve(result.trace, column, smooth) for result in runs.values()]
    ax = axes.given_or_new(ax)
    top = curves.highest_readable([loss for _, loss in drawn])
    for (name, style), (position, loss) in zip(axes.styles(runs).items(), drawn, strict=True):
        stop, lost = curves.until_lost(loss, top)
        if lost:
            style |= {"marker": "x", "ms": 8, "mew": 2, "markevery": [-1] if stop else None}
            name = f"{name} (diverged)".lstrip()
        # A little below the edge, so that a cross is seen whole.
        position, loss = position[:stop], np.minimum(loss[:stop], 0.8 * top)
        ax.plot(position, loss, label=name or None, **style)
    if np.isfinite(top):
        ax.set_yscale("log")
        if any((loss > 0.8 * top).any() for _, loss in drawn):
            ax.set_ylim(top=top)
    axes.finish(ax, label, "training loss")
    if named:
        ax.legend(frameon=False)
    return ax


def plot_staleness(schedule: sim.Schedule, *, ax: Axes | None = None) -> Axes:
    """Draws how stale the pushes of a schedule are: a histogram, and the mean of each worker.

    Args:
      schedule: Any schedule. Pushes that the server drops are hatched.
      ax: Where to draw. Default: a new figure.

    Returns:
      The axes. Triangles at its upper edge are the means of the single workers.

    Example:
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax import plots
      >>> schedule = sim.make_schedule(sim.GammaTime(100, 1.0), 8, 2000, seed=0)
      >>> ax = plots.plot_staleness(schedule)
      >>> ax.get_xlabel()
      'staleness (versions)'
    """
    ax = axes.given_or_new(ax)
    staleness = schedule.staleness
    pushes = np.bincount(schedule.worker, minlength=schedule.num_workers)
    total = np.bincount(schedule.worker, staleness, minlength=schedule.num_workers)
    means = total[pushes > 0] / pushes[pushes > 0]
    last, label = int(staleness.max()), "staleness (versions)"
    if last >= _MAX_BARS:  # few very late pushes would squeeze all others into one bar
        last = int(max(_MAX_BARS - 1, np.quantile(staleness, 0.99), means.max()))
    width = -(-(last + 1) // _MAX_BARS)
    num_bins = last // width + 1
    bins = np.minimum(staleness // width, num_bins - 1)
    if staleness.max() >= width * num_bins:
        label += f", the last bar: {width * (num_bins - 1)} and more"
    centre = width * np.arange(num_bins) + (width - 1) / 2
    share = lambda chosen: np.bincount(bins[chosen], minlength=num_bins) / len(bins)
    applied, dropped = share(schedule.applied), share(~schedule.applied)
    ax.bar(centre, applied, 0.85 * width, color=axes.BLUE, label="applied")
    if dropped.any():
        bars = ax.bar(centre, dropped, 0.85 * width, applied, color="white", label="dropped")
        for bar in bars:
            bar.set(edgecolor=axes.GREY, hatch="///")
    ax.margins(y=0.1)  # room for the triangles
    height = {"transform": ax.get_xaxis_transform(), "label": "mean of each worker"}
    ax.plot(means, np.full(len(means), 0.97), "v", color=axes.ORANGE, alpha=0.7, **height)
    mean = staleness.mean()
    ax.axvline(mean, color=axes.ORANGE, ls="--", lw=1.2, label=f"mean of all: {mean:.3g}")
    axes.finish(ax, label, "share of pushes")
    ax.grid(visible=False, axis="x")
    axes.whole_numbers(ax.xaxis)
    ax.legend(frameon=False)
    return ax


def plot_timeline(
    schedule: sim.Schedule, *, num_events: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draws who worked when: a bar from the pull to the arrival of each of the first pushes.

    Args:
      schedule: Any schedule. Pushes that the server drops are hatched; a second delivery of a push
        is a thin bar.
      num_events: Pushes to draw, ≥ 1, from the first one on. Default: 8 for each worker.
      ax: Where to draw. Default: a new figure, with a colour bar for the staleness.

    Returns:
      The axes, worker 0 at the top.

    Raises:
      ValueError: If `num_events` is below 1.

    Example:
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax import plots
      >>> schedule = sim.make_schedule(sim.ConstantTime([1.0, 1.0, 2.5]), 3, 100, seed=0)
      >>> ax = plots.plot_timeline(schedule, num_events=20)
      >>> ax.get_xlabel(), ax.get_ylabel()
      ('simulated seconds', 'worker')
    """
    from matplotlib import cm, colors, patches

    if num_events is None:
        num_events = 8 * schedule.num_workers
    if num_events < 1:
        raise ValueError(f"num_events must be >= 1, got {num_events}.")
    ax = axes.given_or_new(ax)
    first = slice(min(num_events, len(schedule)))
    staleness = schedule.staleness[first]
    applied = schedule.applied[first]
    repeated = schedule.batch[first] != np.arange(len(staleness))
    shades = cm.ScalarMappable(colors.Normalize(0, max(1, int(staleness.max()))), "viridis_r")
    kinds = (
        ("applied", applied & ~repeated, 0.8, None),
        ("dropped", ~applied & ~repeated, 0.8, "////"),
        ("delivered again", repeated, 0.3, "...."),
    )
    handles = []
    for label, chosen, height, hatch in kinds:
        start, end = schedule.read_time[first][chosen], schedule.time[first][chosen]
        ax.barh(
            schedule.worker[first][chosen],
            end - start,
            height,
            start,
            color=shades.to_rgba(staleness[chosen]),
            edgecolor="white",
            linewidth=0.8,
            hatch=hatch,
        )
        if chosen.any():
            swatch = {"facecolor": axes.GREY, "edgecolor": "white", "hatch": hatch}
            handles.append(patches.Patch(label=label, **swatch))
    bar = ax.figure.colorbar(shades, ax=ax, label="staleness (versions)", pad=0.02)
    axes.whole_numbers(bar.ax.yaxis)
    axes.finish(ax, "simulated seconds", "worker")
    ax.grid(visible=False)
    ax.set_xlim(left=0)
    ax.set_ylim(schedule.num_workers - 0.5, -0.5)
    axes.whole_numbers(ax.yaxis)
    if len(handles) > 1:
        ax.legend(handles=handles, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def plot_compensation(
    result: sim.SimResult, *, smooth: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draws what the compensation did to the gradients in the course of a run.

    Args:
      result: What `simulate` returned, with `metrics=('compensation_ratio', 'cosine')`.
      smooth: Updates in a point, ≥ 1. Default: as many as make about 100 points.
      ax: Where to draw. Default: a new figure.

    Returns:
      The axes of |compensation| / |gradient|. An axis of its own on the right has the cosine
      between the gradient and the compensated gradient.

    Raises:
      ValueError: If the compensation was not measured, or `smooth` is below 1.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax import plots
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=50, seed=0)
      >>> tx = optax.chain(dc.compensate_delay(0.1), optax.sgd(0.1))
      >>> problem = sim.Problem(lambda w, b: jnp.sum((w - b) ** 2), jnp.zeros(2))
      >>> recording = sim.Recording(metrics=["compensation_ratio", "cosine"])
      >>> result = sim.simulate(problem, tx, schedule, jnp.ones((50, 2)), recording=recording)
      >>> plots.plot_compensation(result).get_ylabel()
      '|compensation| / |gradient|'
    """
    version, ratio, cosine = (
        _measured(result.trace, name) for name in ("version", "compensation_ratio", "cosine")
    )
    measured = np.isfinite(ratio) & np.isfinite(cosine)
    if not measured.any():
        raise ValueError("No update of the run has a finite compensation: there is none to draw.")
    size = curves.events_in_a_point(smooth, int(measured.sum()))
    version, ratio, cosine = (
        curves.bin_means(column[measured], size) for column in (version, ratio, cosine)
    )
    ax = axes.given_or_new(ax)
    right = ax.twinx()
    ax.plot(version, ratio, color=axes.BLUE, lw=1.6)
    right.plot(version, cosine, color=axes.ORANGE, lw=1.2, alpha=0.8)
    if (ratio > 0).any():
        ax.set_yscale("log", nonpositive="mask")
    axes.finish(ax, "server updates", "|compensation| / |gradient|")
    ax.yaxis.label.set_color(axes.BLUE)
    right.set_ylabel("cosine (gradient, compensated gradient)", color=axes.ORANGE)
    right.spines["top"].set_visible(False)
    return ax


def _loss_curve(trace: sim.Trace, column: str, smooth: int | None) -> tuple[np.ndarray, np.ndarray]:
    size = curves.events_in_a_point(smooth, len(trace.loss))
    return curves.bin_means(getattr(trace, column), size), curves.bin_means(trace.loss, size)


def _measured(trace: sim.Trace, name: str) -> np.ndarray:
    column = getattr(trace, name)
    if column is None:
        raise ValueError(
            f"The run did not measure {name}: call simulate with "
            "metrics=('compensation_ratio', 'cosine') and a compensating transformation."
        )
    return column
