"""What has been pushed to a server, in the order of arrival: a schedule that really happened."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax.schedules.events import COLUMNS, latest_of_version
from dcasgd_jax.schedules.schedule import Schedule

_DTYPES = {**COLUMNS, "number": np.int64, "loss": np.float64}


class Event(NamedTuple):
    """One push; one row of the columns of a `Schedule`, and two more."""

    worker: int
    read_version: int
    version: int
    time: float
    applied: bool
    batch: int
    corrupt: bool
    read_time: float
    update_time: float  # no sooner than this: see `recorded`
    number: int  # which of its worker's gradients
    loss: float


class Recorded(NamedTuple):
    """The pushes of a run."""

    schedule: Schedule
    number: np.ndarray  # int64 [num_events]: event k used batch `number[k]` of its worker
    loss: np.ndarray  # float64 [num_events]: at the parameters that the worker used


class History:
    """Pushes so far, and the numbers that were measured of them."""

    def __init__(self, metrics: tuple[str, ...] = ()):
        self._columns: dict[str, list[Any]] = {name: [] for name in (*_DTYPES, *metrics)}
        self._metrics = metrics

    def __len__(self) -> int:
        return len(self._columns["worker"])

    def add(self, event: Event, metrics: Mapping[str, float]) -> None:
        """Notes a push; `metrics` must hold the names given at the start, or nothing."""
        for name, value in event._asdict().items():
            self._columns[name].append(value)
        for name in self._metrics:
            self._columns[name].append(metrics.get(name, np.nan))

    def event(self, index: int) -> Event:
        """A push that was noted."""
        return Event(*(self._columns[name][index] for name in Event._fields))

    def note_update_without_push(self, version: int, seconds: float) -> None:
        """An update has come then: unused pushes since the last used one come after it.

        In a schedule an update follows a push that is applied.
        """
        applied, versions = self._columns["applied"], self._columns["version"]
        event = len(applied) - 1
        while event >= 0 and not applied[event]:
            versions[event] = version
            event -= 1
        if event >= 0:
            self._columns["update_time"][event] = seconds

    def arrays(self, start: int = 0) -> dict[str, np.ndarray]:
        """The columns from event `start` on."""
        return {
            name: np.array(values[start:], _DTYPES.get(name, np.float64))
            for name, values in self._columns.items()
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts the columns back that `arrays` returned."""
        # Checkpoints of before there was a column of update times lack it.
        columns = {"update_time": arrays["time"], **arrays}
        self._columns = {name: columns[name].tolist() for name in self._columns}


def recorded(
    arrays: Mapping[str, np.ndarray], num_workers: int, *, whole: bool = False
) -> Recorded:
    """The columns of a finished run as a schedule.

    Args:
      arrays: What `History.arrays` returned.
      num_workers: Of the run.
      whole: Keep the pushes after the last used one, which show why a run was given up.

    Raises:
      ValueError: If no push has been applied.
    """
    used = np.flatnonzero(arrays["applied"])
    if not len(used):
        raise ValueError("No push has been applied yet, so there is nothing to record.")
    until = len(arrays["applied"]) if whole else used[-1] + 1
    kept = {name: column[:until] for name, column in arrays.items()}
    no_sooner = np.maximum(kept["time"], kept["update_time"])  # a second delivery has the first's
    kept["update_time"] = latest_of_version(no_sooner, kept["version"])
    schedule = Schedule(**{name: kept[name] for name in COLUMNS}, num_workers=num_workers)
    return Recorded(schedule, kept["number"], kept["loss"])
