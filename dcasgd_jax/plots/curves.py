"""Curves out of noisy columns of a trace: how many points, and how far."""

import numpy as np

NUM_POINTS = 100  # of a curve, if the caller leaves the smoothing to us


def events_in_a_point(smooth: int | None, num_events: int) -> int:
    """Events in a point: `smooth`, or as many as make about `NUM_POINTS`."""
    if smooth is None:
        return max(1, num_events // NUM_POINTS)
    if smooth < 1:
        raise ValueError(f"smooth must be >= 1, got {smooth}.")
    return smooth


def bin_means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` consecutive values each, the last of what is left; float64."""
    starts = np.arange(0, len(values), size)
    counts = np.diff(starts, append=len(values))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite losses of a run that diverged
        return np.add.reduceat(np.asarray(values, np.float64), starts) / counts


def highest_readable(losses: list[np.ndarray]) -> float:
    """Where a run leaves the picture, 30 times its start; infinite on an axis with losses <= 0."""
    drawn = [loss[np.isfinite(loss)] for loss in losses]
    drawn = [loss for loss in drawn if len(loss)]
    positive = bool(drawn) and all((loss > 0).all() for loss in drawn)
    return 30 * max(loss[0] for loss in drawn) if positive else np.inf


def until_lost(loss: np.ndarray, top: float) -> tuple[int, bool]:
    """How many points to draw, and whether the run gets lost there and does not come back."""
    finite = np.isfinite(loss)
    inside = finite & (loss <= top)
    if inside[-1]:
        return len(loss), False
    first_lost = int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0
    return first_lost + int(finite[first_lost]), True  # one point outside shows the way out
