"""The schedule: every event of a run, decided before the run and independent of gradients."""

import dataclasses
import functools
import os
import pathlib
import zipfile

import numpy as np

from dcasgd_jax.sim import files, laws, protocols, slots


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Who pushes, which version its gradient was taken at, and when: plain NumPy.

    Event k is a push of `worker[k]` that arrives at `time[k]`, when the server has applied
    `version[k]` updates, with a gradient taken at version `read_version[k]`. The server updates
    after the last push of each version, with the mean of that version's pushes; in asynchronous
    training that is after every push.

    Args:
      worker: `[num_events]`, each in `[0, num_workers)`; a worker that never pushes is fine.
      read_version: `[num_events]`, versions; at most `version`.
      version: `[num_events]`, versions; from 0, up by at most 1 from push to push. Default: every
        push is one update.
      time: `[num_events]`, simulated seconds, never decreasing. Default: one second per event.
      num_workers: M ≥ 1. Default: the largest worker plus one.

    Raises:
      ValueError: If the schedule is impossible; names the first impossible event.

    Example:
      >>> from dcasgd_jax import sim
      >>> schedule = sim.Schedule(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2])
      >>> schedule.staleness.tolist(), schedule.num_slots
      ([0, 1, 1, 1], 2)
    """

    worker: np.ndarray
    read_version: np.ndarray
    version: np.ndarray = None  # type: ignore[assignment]
    time: np.ndarray = None  # type: ignore[assignment]
    num_workers: int = None  # type: ignore[assignment]

    def __post_init__(self):
        num_events = len(np.atleast_1d(self.worker))
        version = np.arange(num_events) if self.version is None else self.version
        time = np.arange(1.0, num_events + 1) if self.time is None else self.time
        fields = {
            "worker": _frozen("worker", self.worker, np.int32),
            "read_version": _frozen("read_version", self.read_version, np.int32),
            "version": _frozen("version", version, np.int32),
            "time": _frozen("time", time, np.float64),
        }
        for name, array in fields.items():
            object.__setattr__(self, name, array)
        if self.num_workers is None:
            object.__setattr__(self, "num_workers", int(self.worker.max(initial=0)) + 1)
        self.validate()

    def validate(self) -> None:
        """Raises ValueError, naming the first impossible event, if this cannot have happened."""
        lengths = {f: len(getattr(self, f)) for f in ("worker", "read_version", "version", "time")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The schedule's arrays differ in length: {lengths}.")
        if not len(self.worker):
            raise ValueError("The schedule has no events.")
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be >= 1, got {self.num_workers}.")
        steps = np.diff(self.version, prepend=0)
        previous_time = np.concatenate([[0.0], self.time[:-1]])
        faults = [
            (
                (self.worker < 0) | (self.worker >= self.num_workers),
                lambda k: f"worker {self.worker[k]} is not in [0, {self.num_workers})",
            ),
            (
                (steps < 0) | (steps > 1) | ((np.arange(len(steps)) == 0) & (steps != 0)),
                lambda k: (
                    f"the server is at version {self.version[k]}, but must start at 0 and go up by "
                    "at most 1 from push to push"
                ),
            ),
            (
                self.read_version > self.version,
                lambda k: (
                    f"it reads version {self.read_version[k]}, but the server is only at version "
                    f"{self.version[k]}"
                ),
            ),
            (self.read_version < 0, lambda k: f"it reads version {self.read_version[k]}"),
            (
                _goes_back(self.worker, self.read_version),
                lambda k: (
                    f"worker {self.worker[k]} reads version {self.read_version[k]}, older than one "
                    "it has read before"
                ),
            ),
            (
                ~(self.time >= previous_time) | ~np.isfinite(self.time),
                lambda k: f"its time is {self.time[k]} s, after {previous_time[k]} s",
            ),
        ]
        first = min(
            ((int(np.argmax(bad)), i) for i, (bad, _) in enumerate(faults) if bad.any()),
            default=None,
        )
        if first is not None:
            event, fault = first
            raise ValueError(f"Impossible schedule: at event {event} {faults[fault][1](event)}.")

    def __len__(self) -> int:
        """Number of events."""
        return len(self.worker)

    @property
    def num_updates(self) -> int:
        """Server updates in all."""
        return int(self.version[-1]) + 1

    @property
    def staleness(self) -> np.ndarray:
        """Versions between the read and the arrival of each push; int32 [num_events]."""
        return self.version - self.read_version

    @property
    def updates(self) -> np.ndarray:
        """Whether the server updates right after each push; bool [num_events]."""
        return np.append(self.version[1:] != self.version[:-1], True)

    @property
    def num_slots(self) -> int:
        """Snapshots kept at once: the memory of a run in copies of the params."""
        return self.slots.num_slots

    @functools.cached_property
    def slots(self) -> slots.Slots:
        """Where each version is kept while it may still be read."""
        return slots.assign_slots(self.read_version, self.version)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the schedule to an npz file, whole or not at all."""
        with files.replacing(path) as stream:
            np.savez_compressed(
                stream,
                worker=self.worker,
                read_version=self.read_version,
                version=self.version,
                time=self.time,
                num_workers=np.int64(self.num_workers),
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schedule":
        """Reads what `save` wrote; ValueError names a file that is no schedule."""
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            with np.load(pathlib.Path(path), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in names}
        except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a saved schedule: {error}") from None
        return cls(**{**arrays, "num_workers": int(arrays["num_workers"])})


def make_schedule(
    law: laws.WorkerTimeLaw,
    num_workers: int,
    num_updates: int,
    *,
    seed: int,
    protocol: protocols.ServerProtocol | None = None,
) -> Schedule:
    """Draws compute times from a law and plays a protocol with them, on the host.

    Args:
      law: A worker-time law, such as `GammaTime(shape=100, mean=1.0)`.
      num_workers: M ≥ 1.
      num_updates: Server updates ≥ 1. Events (pushes) are as many, or M times as many where M
        pushes make one update.
      seed: Integer ≥ 0. The same seed gives every protocol the same compute times.
      protocol: Default: `Asynchronous()`.

    Returns:
      The schedule; the same arguments always give the same one.

    Raises:
      ValueError: For numbers out of range, or a law for another number of workers.

    Example:
      >>> from dcasgd_jax import sim
      >>> schedule = sim.make_schedule(sim.GammaTime(100, 1.0), 8, 10_000, seed=0)
      >>> round(float(schedule.staleness.mean()))
      7
    """
    for name, value, least in (
        ("num_workers", num_workers, 1),
        ("num_updates", num_updates, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    law.check(num_workers)
    times = protocols.ComputeTimes(law, num_workers, seed)
    protocol = protocols.Asynchronous() if protocol is None else protocol
    events = protocol.events(times, num_workers, num_updates)
    return Schedule(*events, num_workers=num_workers)


def _frozen(name: str, values, dtype) -> np.ndarray:
    """A read-only copy of `values`, which must be one-dimensional and fit `dtype` exactly."""
    given = np.asarray(values)
    if given.ndim != 1:
        raise ValueError(f"The schedule's {name} must be one-dimensional, got {given.ndim} axes.")
    array = given.astype(dtype)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(array, given):
        raise ValueError(f"The schedule's {name} must hold 32-bit integers.")
    array.setflags(write=False)
    return array


def _goes_back(worker: np.ndarray, read_version: np.ndarray) -> np.ndarray:
    """Where a worker reads an older version than it did at its previous push; bool [num_events]."""
    by_worker = np.argsort(worker, kind="stable")
    older = np.diff(read_version[by_worker]) < 0
    back = np.zeros(len(worker), bool)
    back[by_worker[1:]] = older & (np.diff(worker[by_worker]) == 0)
    return back
