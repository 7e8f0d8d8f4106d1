"""Waves: runs of events whose gradients do not wait for each other's updates."""

import numpy as np


def assign_waves(
    worker: np.ndarray,
    read_version: np.ndarray,
    version: np.ndarray,
    max_size: int | None = None,
) -> np.ndarray:
    """Cuts the events into waves, each as long as it can be.

    Every gradient of a wave is taken at a version that exists when the wave begins, and no worker
    occurs twice in it: the gradients can be computed at once and applied in order.

    Args:
      worker: `[num_events]`, who pushes.
      read_version: `[num_events]`, versions that the pushed gradients were taken at.
      version: `[num_events]`, the server's version at each event: 0, then up by 0 or 1.
      max_size: The most events in a wave, ≥ 1; by default the workers are the only limit.

    Returns:
      The first event of each wave; int64 [num_waves].

    Example:
      >>> from dcasgd_jax.schedules.waves import assign_waves
      >>> import numpy as np
      >>> assign_waves(np.array([0, 1, 0]), np.array([0, 0, 1]), np.arange(3)).tolist()
      [0, 2]
    """
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be >= 1, got {max_size}.")
    num_events = len(version)
    first_event = np.concatenate([[0], np.flatnonzero(np.diff(version)) + 1])
    # Event k fits into a wave only if the wave begins after this event.
    after = np.maximum(previous_push(worker), first_event[read_version] - 1)
    if max_size is not None:
        np.maximum(after, np.arange(num_events) - max_size, out=after)
    np.maximum.accumulate(after, out=after)
    wave_end = np.searchsorted(after, np.arange(num_events)).tolist()
    starts = []
    start = 0
    while start < num_events:
        starts.append(start)
        start = wave_end[start]
    return np.asarray(starts, np.int64)


def previous_push(worker: np.ndarray) -> np.ndarray:
    """Index of the same worker's previous push, -1 if there is none; int64 [num_events]."""
    by_worker = order_by_worker(worker)
    in_order = worker[by_worker]
    previous = np.empty(len(worker), np.int64)
    previous[by_worker[1:]] = by_worker[:-1]
    previous[by_worker[:1]] = -1
    previous[by_worker[1:][in_order[1:] != in_order[:-1]]] = -1
    return previous


def order_by_worker(worker: np.ndarray) -> np.ndarray:
    """Events of worker 0 in order, then those of worker 1, and so on; int64 [num_events]."""
    if len(worker) and worker.min() >= 0 and worker.max() < 2**15:
        worker = worker.astype(np.int16)  # NumPy sorts 16 bits by radix, ten times as fast
    return np.argsort(worker, kind="stable")
