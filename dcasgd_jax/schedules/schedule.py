"""The schedule: every event of a run, decided before the run and independent of gradients."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import archives, checks
from dcasgd_jax.schedules import rebuilding, slots, tables, validation, waves
from dcasgd_jax.schedules.events import COLUMNS, Events


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule(Events):
    """Who pushes, which version its gradient was taken at, and when: plain NumPy.

    Event k is a push of `worker[k]` that arrives at `time[k]`, when the server has applied
    `version[k]` updates, with a gradient taken at version `read_version[k]`. The server updates
    after the last push of each version, with the mean of the version's applied pushes; in
    asynchronous training that is after every push. The last event updates if it is applied.

    Args:
      worker: `[num_events]`, each in `[0, num_workers)`; a worker that never pushes is fine.
      read_version: `[num_events]`, versions; at most `version`.
      version: `[num_events]`, versions; from 0, up by at most 1 from push to push, and only after
        a push that is applied. Default: every applied push is one update.
      time: `[num_events]`, simulated seconds, never decreasing. Default: one second per event.
      applied: `[num_events]`, bool; whether the server uses the push. One that is too stale, late
        behind a barrier or lost is computed but changes nothing. Default: all are used.
      batch: `[num_events]`, the event whose batch and random key the gradient is taken with:
        itself, or the earlier one that a second delivery of the same push repeats.
      corrupt: `[num_events]`, bool; whether the gradient arrives as NaN. Default: none does.
      read_time: `[num_events]`, simulated seconds at which the worker pulled; in `[0, time]`.
        Default: when the worker's previous push arrived, 0 at first.
      update_time: `[num_events]`, simulated seconds at which the server makes the update of the
        push's version; later than the last push of the version where the server has waited for
        more. Default: when the last push of the version arrives.
      num_workers: M ≥ 1. Default: the largest worker plus one.

    Raises:
      ValueError: If the schedule is impossible; names the first impossible event.

    Example:
      >>> from dcasgd_jax import sim
      >>> schedule = sim.Schedule(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2])
      >>> schedule.staleness.tolist(), schedule.num_slots
      ([0, 1, 1, 1], 2)
      >>> print(schedule)
      Schedule: 4 events, 4 updates, 2 workers, staleness mean 0.75 max 1, ...
    """

    num_workers: int = None  # type: ignore[assignment]

    def __post_init__(self):
        super().__post_init__()
        if self.num_workers is None:
            object.__setattr__(self, "num_workers", int(self.worker.max(initial=0)) + 1)
        checks.check_fields(self, num_workers=1)
        self.validate()

    def validate(self) -> None:
        """Raises ValueError, naming the first impossible event, if this cannot have happened."""
        validation.check_events(self, self.num_workers)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.worker)

    def __repr__(self) -> str:
        """One line: how large, how stale, how parallel."""
        staleness = self.staleness[self.applied] if self.applied.any() else np.zeros(1)
        count = lambda number, unit: f"{number:,} {unit}{'' if number == 1 else 's'}"
        parts = [
            count(len(self), "event"),
            count(self.num_updates, "update"),
            count(self.num_workers, "worker"),
            f"staleness mean {staleness.mean():.3g} max {staleness.max():.0f}",
            count(self.num_slots, "slot"),
            f"{count(len(self.waves), 'wave')} of {len(self) / len(self.waves):.3g} events",
        ]
        if not self.applied.all():  # who is dropped often is hardly listened to
            applied = self.applied_per_worker
            parts.append(f"applied pushes per worker {applied.min()} to {applied.max()}")
        return f"Schedule: {', '.join(parts)}"

    @property
    def num_updates(self) -> int:
        """Server updates in all."""
        return int(self.version[-1]) + int(self.updates[-1])

    @property
    def staleness(self) -> np.ndarray:
        """Versions between the read and the arrival of each push; int32 [num_events]."""
        return self.version - self.read_version

    @property
    def updates(self) -> np.ndarray:
        """Whether the server updates right after each push; bool [num_events]."""
        return np.append(self.version[1:] != self.version[:-1], self.applied[-1])

    @property
    def num_pushes(self) -> np.ndarray:
        """Applied pushes that the update of each event's version averages, ≥ 1; int32 [T]."""
        pushes = np.bincount(self.version, weights=self.applied)
        return np.maximum(pushes, 1).astype(np.int32)[self.version]

    @property
    def applied_per_worker(self) -> np.ndarray:
        """Pushes of each worker that the server uses; int64 [num_workers]."""
        return np.bincount(self.worker[self.applied], minlength=self.num_workers)

    @property
    def repeats(self) -> np.ndarray:
        """Whether each push is a second delivery of an earlier one; bool [num_events]."""
        return self.batch != np.arange(len(self))

    @property
    def own_pushes_missing(self) -> np.ndarray:
        """Earlier pushes of the same worker that are not in the version read: 0, 1, or 2 for more.

        In a second delivery those of the first; int32 [num_events].
        """
        events = np.flatnonzero(~self.repeats)
        events = events[waves.order_by_worker(self.worker[events])]
        missing = np.zeros(len(self), np.int32)
        for back in (1, 2):  # arrivals of one worker are in order: its last push is missing first
            now, before = events[back:], events[:-back]
            own = self.worker[now] == self.worker[before]
            missing[now] += own & (self.read_version[now] <= self.version[before])
        return missing[self.batch]

    @property
    def num_slots(self) -> int:
        """Snapshots kept at once, which is the memory of a run in copies of the params."""
        return self.slots.num_slots

    @functools.cached_property
    def slots(self) -> slots.Slots:
        """Where each version is kept while it may still be read."""
        return slots.assign_slots(self.read_version, self.version)

    @functools.cached_property
    def waves(self) -> np.ndarray:
        """First events of the waves, whose gradients can be computed at once; int64 [num_waves]."""
        return waves.assign_waves(self.worker, self.read_version, self.version)

    def first(self, num_updates: int) -> "Schedule":
        """The events of the first `num_updates` updates, ≥ 1: the same run, stopped then."""
        num_updates = checks.check_count("num_updates", num_updates)
        if num_updates > self.num_updates:
            raise ValueError(
                f"The schedule holds {self.num_updates} updates, but num_updates is {num_updates}; "
                "ask for fewer."
            )
        until = int(np.flatnonzero(self.updates)[num_updates - 1]) + 1
        return dataclasses.replace(self, **{name: getattr(self, name)[:until] for name in COLUMNS})

    def save(self, path: str | os.PathLike) -> None:
        """Writes the schedule to an npz file, whole or not at all."""
        num_workers = np.asarray(self.num_workers, np.int64)
        archives.save(path, {**_columns(self), "num_workers": num_workers}, compressed=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schedule":
        """Reads what `save` wrote; ValueError names a file that is damaged or no schedule."""
        try:
            arrays = archives.load(path)
            expected = {*COLUMNS, "num_workers"}
            # Files of before there was such a column lack it; then its default is right.
            if missing := sorted(expected - set(arrays) - {"update_time"}):
                raise ValueError(f"it has no {', '.join(missing)}")
            if foreign := sorted(set(arrays) - expected):
                raise ValueError(f"it has {', '.join(foreign)}")
            if arrays["num_workers"].shape or arrays["num_workers"].dtype.kind not in "iu":
                raise ValueError("its num_workers is no integer")
            return cls(**{**arrays, "num_workers": int(arrays["num_workers"])})
        except ValueError as error:
            raise ValueError(
                f"{path} is not a saved schedule, or it is damaged: {error}. Make the schedule "
                "again and save it."
            ) from None

    @classmethod
    def from_staleness(
        cls, staleness: Sequence[int] | np.ndarray, num_workers: int | None = None
    ) -> "Schedule":
        """A schedule in which push k is `staleness[k]` versions old and makes update k.

        One second each. A worker is busy from the version it reads to its push. Each read is given
        to the free worker with the lowest index, which needs as few workers as possible.

        Args:
          staleness: `[num_updates]`, versions, each in `[0, k]`.
          num_workers: M, at least the number of gradients that are under way at once, which is the
            default.

        Raises:
          ValueError: If a push cannot be that stale, the first one is named; or too few workers.

        Example:
          >>> from dcasgd_jax import sim
          >>> sim.Schedule.from_staleness([0, 1, 0, 3, 1]).worker.tolist()
          [0, 1, 0, 2, 0]
        """
        events = rebuilding.events_of_staleness("Schedule.from_staleness", staleness)
        needed = int(events.worker.max()) + 1
        if num_workers is not None and needed > checks.check_count("num_workers", num_workers):
            raise ValueError(
                f"Schedule.from_staleness needs at least {needed} workers: so many gradients are "
                f"under way at once, but num_workers is {num_workers}."
            )
        return cls(**_columns(events), num_workers=num_workers or needed)

    @classmethod
    def from_delays(cls, delays: rebuilding.Delays) -> "Schedule":
        """A run rebuilt from recorded delays, one second per update.

        With one column per worker, row t holds how many versions old the newest gradient of each
        worker is at update t. A worker has pushed for update t if its gradient was taken at another
        version than that of row t-1; all have for row 0, which is all zero. Pushes for the same
        update are averaged.

        A single column holds the staleness of each update, as in `from_staleness`.

        Args:
          delays: `[num_updates, num_workers]`, or `[num_updates]`; versions.

        Raises:
          ValueError: If this cannot be a record; names row and column, from 0.

        Example:
          >>> from dcasgd_jax import sim
          >>> schedule = sim.Schedule.from_delays([[0, 0], [0, 1], [1, 1]])
          >>> schedule.worker.tolist(), schedule.version.tolist(), schedule.read_version.tolist()
          ([0, 1, 0, 1], [0, 0, 1, 2], [0, 0, 1, 1])
        """
        events, num_workers = rebuilding.events_of_delays("Schedule.from_delays", delays)
        return cls(**_columns(events), num_workers=num_workers)

    @classmethod
    def from_delays_csv(cls, path: str | os.PathLike, num_rows: int | None = None) -> "Schedule":
        """Reads delays in versions: one row per update, one column per worker, header optional.

        The first row is a header if each of its cells is a name: a letter first, and nothing that
        looks like a mistyped number (O.5, l0, x1.5).

        Args:
          path: The file.
          num_rows: Updates that must be there, to notice a file that was cut off between two rows.
            Default: any number; how many were read is in the `repr` of the result.

        Raises:
          ValueError: If the file is no such table; names the file.
        """
        caller, values = f"{path}: Schedule.from_delays", tables.read_table(path, num_rows).values
        events, num_workers = rebuilding.events_of_delays(caller, values)
        return cls(**_columns(events), num_workers=num_workers)


def _columns(events: Events) -> dict[str, np.ndarray]:
    return {name: getattr(events, name) for name in COLUMNS}
