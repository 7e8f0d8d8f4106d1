"""The columns of a schedule: their dtypes, and what is so where nobody says."""

import dataclasses
import functools
from typing import Any

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import waves

_INTEGERS = {"dtype": np.int32}
_SECONDS = {"dtype": np.float64}
_BOOLEANS = {"dtype": np.bool_}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Events:
    """Pushes in the order in which the server receives them; all arrays are [num_events].

    The one list of the columns of a schedule; what they mean is said at `Schedule`, which is
    events that can have happened.
    """

    worker: np.ndarray = dataclasses.field(metadata=_INTEGERS)
    read_version: np.ndarray = dataclasses.field(metadata=_INTEGERS)
    version: np.ndarray = dataclasses.field(default=None, metadata=_INTEGERS)  # type: ignore[assignment]
    time: np.ndarray = dataclasses.field(default=None, metadata=_SECONDS)  # type: ignore[assignment]
    applied: np.ndarray = dataclasses.field(default=None, metadata=_BOOLEANS)  # type: ignore[assignment]
    batch: np.ndarray = dataclasses.field(default=None, metadata=_INTEGERS)  # type: ignore[assignment]
    corrupt: np.ndarray = dataclasses.field(default=None, metadata=_BOOLEANS)  # type: ignore[assignment]
    read_time: np.ndarray = dataclasses.field(default=None, metadata=_SECONDS)  # type: ignore[assignment]
    update_time: np.ndarray = dataclasses.field(default=None, metadata=_SECONDS)  # type: ignore[assignment]

    def __post_init__(self):
        given = {name: getattr(self, name) for name in COLUMNS}
        missing = [name for name, values in given.items() if values is None]
        for name in COLUMNS:
            if name not in missing:
                self._set(name, given[name])
        for name in missing:  # in order, as the default of one may need those before it
            self._set(name, getattr(self, f"_default_{name}", lambda: None)())

    def _set(self, name: str, values: Any) -> None:
        object.__setattr__(self, name, _frozen(name, values, COLUMNS[name]))

    def _default_version(self):
        if self.applied is None:
            return np.arange(len(self.worker))
        return np.cumsum(self.applied) - self.applied

    def _default_time(self):
        return np.arange(1.0, len(self.worker) + 1)

    def _default_applied(self):
        return np.ones(len(self.worker), bool)

    def _default_batch(self):
        return np.arange(len(self.worker))

    def _default_corrupt(self):
        return np.zeros(len(self.worker), bool)

    def _default_read_time(self):
        if not len(self.worker) == len(self.time) == len(self.batch):
            return np.zeros(len(self.worker))  # validation says which one has another length
        read_time = np.where(self.previous_push < 0, 0.0, self.time[self.previous_push])
        # A repeated delivery was read when the first one was.
        original = np.clip(self.batch, 0, len(self.worker) - 1)
        return read_time[original]

    def _default_update_time(self):
        if not 0 < len(self.time) == len(self.version):
            return self.time
        return latest_of_version(self.time, self.version)

    @functools.cached_property
    def previous_push(self) -> np.ndarray:
        """Event of the same worker's previous push, -1 if there is none; int64 [num_events]."""
        return waves.previous_push(self.worker)


# The dtype of each column, by name.
COLUMNS: dict[str, Any] = {
    field.name: field.metadata["dtype"] for field in dataclasses.fields(Events)
}


def latest_of_version(seconds: np.ndarray, version: np.ndarray) -> np.ndarray:
    """The latest time of each event's version, of times [num_events]; float64 [num_events]."""
    starts = np.flatnonzero(np.append(True, version[1:] != version[:-1]))
    if len(starts) == len(seconds):
        return seconds
    latest = np.maximum.reduceat(seconds, starts)
    return np.repeat(latest, np.diff(starts, append=len(seconds)))


def _frozen(name: str, values: Any, dtype: Any) -> np.ndarray:
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
