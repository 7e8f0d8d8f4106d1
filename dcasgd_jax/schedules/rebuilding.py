"""Events rebuilt from delays: a prescribed staleness per update, or recorded ages per worker."""

import heapq
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.schedules.events import Events

Delays = Sequence[Sequence[int]] | Sequence[int] | np.ndarray


def events_of_staleness(caller: str, staleness: Sequence[int] | np.ndarray) -> Events:
    """Events of `Schedule.from_staleness`; errors begin with `caller`."""
    staleness = _versions(caller, staleness)
    if staleness.ndim != 1:
        raise ValueError(
            f"{caller} needs one staleness per update, got an array of shape {staleness.shape}."
        )
    for k in np.flatnonzero((staleness < 0) | (staleness > np.arange(len(staleness))))[:1]:
        raise ValueError(
            f"{caller}: staleness[{k}] is {staleness[k]}, but must be in [0, {k}]: the server has "
            f"made {k} updates then."
        )
    version = np.arange(len(staleness))
    read_version = version - staleness
    return _one_second_each(_lowest_free_worker(read_version), read_version, version)


def events_of_delays(caller: str, delays: Delays) -> tuple[Events, int]:
    """Events and number of workers of `Schedule.from_delays`; errors begin with `caller`."""
    delays = _versions(caller, delays)
    if delays.ndim == 2 and delays.shape[1] == 1:
        delays = delays[:, 0]
    if delays.ndim == 1:
        events = events_of_staleness(caller, delays)
        return events, int(events.worker.max()) + 1
    if delays.ndim != 2:
        raise ValueError(
            f"{caller} needs an array [num_updates, num_workers] or [num_updates], got shape "
            f"{delays.shape}."
        )
    read = np.arange(len(delays))[:, None] - delays
    pushes = np.diff(read, axis=0, prepend=-1) > 0  # where a worker's newest gradient is a new one
    _check_table(caller, delays, read, pushes)
    version, worker = np.nonzero(pushes)
    return _one_second_each(worker, read[version, worker], version), delays.shape[1]


def _check_table(caller: str, delays: np.ndarray, read: np.ndarray, pushes: np.ndarray) -> None:
    """Raises ValueError, naming row and column, unless these ages can have been."""
    for t, m in np.argwhere((delays < 0) | (read < 0))[:1]:
        raise ValueError(
            f"{caller}: the delay in row {t}, column {m} is {delays[t, m]}, but must be in "
            f"[0, {t}]: the server has made {t} updates then."
        )
    for t, m in np.argwhere(np.diff(read, axis=0) < 0)[:1]:
        raise ValueError(
            f"{caller}: the delay in row {t + 1}, column {m} is {delays[t + 1, m]} after "
            f"{delays[t, m]}, but a delay grows by at most 1 from row to row."
        )
    for t in np.flatnonzero(~pushes.any(axis=1))[:1]:
        raise ValueError(
            f"{caller}: row {t} has no new gradient: all delays are 1 more than before."
        )


def _one_second_each(worker: np.ndarray, read_version: np.ndarray, version: np.ndarray) -> Events:
    """Events of updates that take a second each."""
    return Events(worker, read_version, version, version + 1.0, read_time=read_version * 1.0)


def _versions(caller: str, values: Delays) -> np.ndarray:
    """`values` as int64."""
    given = np.array(values)
    whole = given.size and given.dtype.kind in "iuf" and np.isfinite(given).all()
    if not whole or not np.all(given == np.floor(given)):
        raise ValueError(f"{caller} needs whole numbers of versions, at least one.")
    return given.astype(np.int64)


def _lowest_free_worker(read_version: np.ndarray) -> np.ndarray:
    """Worker of each push, as if there were always enough; int64 [num_events]."""
    by_read = iter(np.argsort(read_version, kind="stable").tolist())
    worker = [-1] * len(read_version)
    free: list[int] = []
    hired = 0
    for version, readers in enumerate(np.bincount(read_version, minlength=len(worker)).tolist()):
        if version:  # the push that made this version has set its worker free
            heapq.heappush(free, worker[version - 1])
        for _ in range(readers):
            if not free:
                free.append(hired)
                hired += 1
            worker[next(by_read)] = heapq.heappop(free)
    return np.array(worker)
