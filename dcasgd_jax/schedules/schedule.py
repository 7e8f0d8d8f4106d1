"""The schedule: every event of a run, decided before the run and independent of gradients."""

import dataclasses
import functools
import os

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import archives, slots, validation, waves

# In this order, because the default of one may need those before it.
_DTYPES = {
    "worker": np.int32,
    "read_version": np.int32,
    "applied": np.bool_,
    "version": np.int32,
    "time": np.float64,
    "batch": np.int32,
    "corrupt": np.bool_,
    "read_time": np.float64,
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
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
      num_workers: M ≥ 1. Default: the largest worker plus one.
      applied: `[num_events]`, bool; whether the server uses the push. One that is too stale, late
        behind a barrier or lost is computed but changes nothing. Default: all are used.
      batch: `[num_events]`, the event whose batch and random key the gradient is taken with:
        itself, or the earlier one that a second delivery of the same push repeats.
      corrupt: `[num_events]`, bool; whether the gradient arrives as NaN. Default: none does.
      read_time: `[num_events]`, simulated seconds at which the worker pulled; in `[0, time]`.
        Default: when the worker's previous push arrived, 0 at first.

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

    worker: np.ndarray
    read_version: np.ndarray
    version: np.ndarray = None  # type: ignore[assignment]
    time: np.ndarray = None  # type: ignore[assignment]
    num_workers: int = None  # type: ignore[assignment]
    applied: np.ndarray = None  # type: ignore[assignment]
    batch: np.ndarray = None  # type: ignore[assignment]
    corrupt: np.ndarray = None  # type: ignore[assignment]
    read_time: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        for name, dtype in _DTYPES.items():
            values = getattr(self, name)
            if values is None:
                values = getattr(self, f"_default_{name}")()
            object.__setattr__(self, name, _frozen(name, values, dtype))
        if self.num_workers is None:
            object.__setattr__(self, "num_workers", int(self.worker.max(initial=0)) + 1)
        checks.check_fields(self, num_workers=1)
        self.validate()

    def _default_applied(self):
        return np.ones(len(self.worker), bool)

    def _default_corrupt(self):
        return np.zeros(len(self.worker), bool)

    def _default_batch(self):
        return np.arange(len(self.worker))

    def _default_version(self):
        return np.cumsum(self.applied) - self.applied

    def _default_time(self):
        return np.arange(1.0, len(self.worker) + 1)

    def _default_read_time(self):
        if not len(self.worker) == len(self.time) == len(self.batch):
            return np.zeros(len(self.worker))  # `validate` says which one has another length
        read_time = np.where(self.previous_push < 0, 0.0, self.time[self.previous_push])
        # A repeated delivery was read when the first one was.
        original = np.clip(self.batch, 0, len(self.worker) - 1)
        return read_time[original]

    def validate(self) -> None:
        """Raises ValueError, naming the first impossible event, if this cannot have happened."""
        validation.check_schedule(self)

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
    def repeats(self) -> np.ndarray:
        """Whether each push is a second delivery of an earlier one; bool [num_events]."""
        return self.batch != np.arange(len(self))

    @functools.cached_property
    def previous_push(self) -> np.ndarray:
        """Event of the same worker's previous push, -1 if there is none; int64 [num_events]."""
        return waves.previous_push(self.worker)

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

    def save(self, path: str | os.PathLike) -> None:
        """Writes the schedule to an npz file, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _DTYPES}
        archives.save(path, {**arrays, "num_workers": np.asarray(self.num_workers, np.int64)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schedule":
        """Reads what `save` wrote; ValueError names a file that is damaged or no schedule."""
        required = {"worker", "read_version", "version", "time", "num_workers"}
        try:
            arrays = archives.load(path, required, set(_DTYPES) - required)
            if arrays["num_workers"].shape or arrays["num_workers"].dtype.kind not in "iu":
                raise ValueError("its num_workers is no integer")
            return cls(**{**arrays, "num_workers": int(arrays["num_workers"])})
        except ValueError as error:
            raise ValueError(
                f"{path} is not a saved schedule, or it is damaged: {error}. Make the schedule "
                "again and save it."
            ) from None


def _frozen(name: str, values, dtype) -> np.ndarray:
    """A read-only copy of `values`, which must be one-dimensional and fit `dtype` exactly."""
    given = np.asarray(values)
    kind = "booleans" if dtype == np.bool_ else "numbers"
    numeric = lambda array: array.dtype.kind in "biuf"
    checks.check_kind(f"The schedule's {name}", given, numeric, f"{kind} [num_events]")
    if given.ndim != 1:
        raise ValueError(f"The schedule's {name} must be one-dimensional, got {given.ndim} axes.")
    array = given.astype(dtype)
    exact = dtype == np.float64 or given.dtype == dtype or np.array_equal(array, given)
    if not exact:
        kind = "booleans" if dtype == np.bool_ else "32-bit integers"
        raise ValueError(f"The schedule's {name} must hold {kind}.")
    array.setflags(write=False)
    return array
