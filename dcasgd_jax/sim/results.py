"""What a run returns: trained parameters, the trace of its events, evaluations on the way."""

from typing import Any, NamedTuple

import numpy as np
import optax

from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import recording
from dcasgd_jax.typing import PyTree


class Trace(NamedTuple):
    """What happened at the events that this call ran; NumPy arrays [num_kept], by default all."""

    event: np.ndarray  # index into the schedule
    worker: np.ndarray
    version: np.ndarray  # the server's version when the push arrived
    staleness: np.ndarray  # versions
    time: np.ndarray  # simulated seconds
    samples: np.ndarray  # examples that all workers have trained on so far
    applied: np.ndarray  # whether the server used the push
    loss: np.ndarray  # of the batch, at the params that the worker had read
    gap: np.ndarray | None = None  # root mean square of w - w_stale
    compensation_ratio: np.ndarray | None = None  # |compensation| / |gradient|
    cosine: np.ndarray | None = None  # between raw and compensated gradient
    below_eps: np.ndarray | None = None  # share of coordinates whose mean square is below eps

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that there are, by name: `pandas.DataFrame(trace.columns())`."""
        return {name: column for name, column in self._asdict().items() if column is not None}


class Evaluations(NamedTuple):
    """What `eval_fn` said of the versions that it was asked about; NumPy [num_evaluations]."""

    version: np.ndarray
    samples: np.ndarray  # examples that all workers had trained on by then
    time: np.ndarray  # simulated seconds
    values: PyTree  # what `eval_fn` returns, leaf [num_evaluations, ...]


class NonFinite(NamedTuple):
    """The first push whose loss was not finite."""

    event: int
    worker: int
    version: int  # the version that it had read


class SimResult(NamedTuple):
    """What `simulate` returns."""

    params: PyTree
    opt_state: optax.OptState
    model_state: PyTree | None  # the server's; where each worker has its own, their mean
    losses: np.ndarray  # as in the trace
    trace: Trace
    evaluations: Evaluations | None  # None without `eval_fn`
    non_finite: NonFinite | None  # where the loss first was not finite
    state: programs.SimState  # give it to `simulate` to go on from here

    def to_pandas(self) -> Any:
        """The trace as a pandas data frame, one row per event; needs pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise ModuleNotFoundError("to_pandas needs pandas: pip install pandas") from None
        return pd.DataFrame(self.trace.columns())


def samples_seen(schedule: schedules.Schedule, batch_size: int) -> np.ndarray:
    """Examples trained on up to each event; a push delivered twice counts once. [num_events]."""
    return np.cumsum(~schedule.repeats) * batch_size


def make_trace(
    schedule: schedules.Schedule, start: int, record: recording.Record, samples: np.ndarray
) -> Trace:
    """The trace of a run that began at event `start`."""
    event = start + record.kept
    return Trace(
        event=event,
        worker=schedule.worker[event],
        version=schedule.version[event],
        staleness=schedule.staleness[event],
        time=schedule.time[event],
        samples=samples[event],
        applied=schedule.applied[event],
        **record.metrics._asdict(),
    )


def make_evaluations(
    schedule: schedules.Schedule, start: int, record: recording.Record, samples: np.ndarray
) -> Evaluations | None:
    """The evaluations of a run that began at event `start`."""
    if record.evaluations is None:
        return None
    event = start + record.evaluated
    return Evaluations(
        version=schedule.version[event] + 1,
        samples=samples[event],
        time=schedule.time[event],
        values=record.evaluations,
    )


def find_non_finite(
    schedule: schedules.Schedule, start: int, record: recording.Record
) -> NonFinite | None:
    """Where the loss of a run that began at event `start` first was not finite."""
    if record.first_non_finite is None:
        return None
    event = start + record.first_non_finite
    return NonFinite(event, int(schedule.worker[event]), int(schedule.read_version[event]))
