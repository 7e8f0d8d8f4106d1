"""What a run returns: trained parameters, the trace of its events, evaluations on the way."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dcasgd_jax import extras
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import leaves, recording
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


@document_fields
class Trace(NamedTuple):
    """What happened at the events that this call ran; NumPy arrays [num_kept], by default all.

    Attributes:
      event: Index into the schedule.
      worker: Who pushed.
      version: The server's version when the push arrived.
      staleness: Versions.
      time: Simulated seconds.
      samples: Examples that all workers have trained on so far.
      applied: Whether the server used the push.
      loss: Of the batch, at the params that the worker had read.
      gap: Root mean square of w - w_stale.
      compensation_ratio: |compensation| / |gradient|.
      cosine: Between raw and compensated gradient.
      below_eps: Share of coordinates whose mean square is below eps.
    """

    event: np.ndarray
    worker: np.ndarray
    version: np.ndarray
    staleness: np.ndarray
    time: np.ndarray
    samples: np.ndarray
    applied: np.ndarray
    loss: np.ndarray
    gap: np.ndarray | None = None
    compensation_ratio: np.ndarray | None = None
    cosine: np.ndarray | None = None
    below_eps: np.ndarray | None = None

    def __repr__(self) -> str:
        """Two lines: how many events, and which columns there are."""
        return f"Trace of {_number(np.size(self.event), 'event')}\n  {', '.join(self.columns())}"

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that there are, by name: `pandas.DataFrame(trace.columns())`."""
        return {name: column for name, column in self._asdict().items() if column is not None}


@document_fields
class Evaluations(NamedTuple):
    """What `eval_fn` said of the versions that it was asked about; NumPy [num_evaluations].

    Attributes:
      version: The versions that were evaluated.
      samples: Examples that all workers had trained on by then.
      time: Simulated seconds at which they were made.
      values: What `eval_fn` returns, leaf [num_evaluations, ...].
    """

    version: np.ndarray
    samples: np.ndarray
    time: np.ndarray
    values: PyTree

    def __repr__(self) -> str:
        """Two lines: which versions, and the names of what was evaluated."""
        ends = f" {self.version.min()} to {self.version.max()}" if np.size(self.version) else ""
        names = ", ".join(leaves.numbers_by_name(self.values, self.version.shape))
        return f"Evaluations of {_number(np.size(self.version), 'version')}{ends}\n  {names}"

    def to_pandas(self) -> Any:
        """A pandas data frame: a row per version, a column per number that was evaluated."""
        about = {"version": self.version, "samples": self.samples, "time": self.time}
        if self.version.ndim == 2:  # of a sweep
            member = np.arange(len(self.version))[:, None]
            about = {"member": np.broadcast_to(member, self.version.shape)} | about
        about = {name: column.ravel() for name, column in about.items()}
        return _data_frame(about | leaves.numbers_by_name(self.values, self.version.shape))


@document_fields
class NonFinite(NamedTuple):
    """The first push whose loss was not finite.

    Attributes:
      event: Its number in the schedule.
      worker: Whose it was.
      version: The version that it had read.
    """

    event: int
    worker: int
    version: int


@document_fields
class SimResult(NamedTuple):
    """What `simulate` returns.

    Attributes:
      params: The trained parameters.
      opt_state: State of the optimizer, as `tx.init` makes one.
      model_state: The server's; where each worker has its own, the mean of those who have pushed.
      losses: As in the trace.
      trace: What happened, event by event.
      evaluations: None without `eval_fn`.
      non_finite: Where the loss first was not finite.
      state: Give it to `simulate` to go on from here.
    """

    params: PyTree
    opt_state: optax.OptState
    model_state: PyTree | None
    losses: np.ndarray
    trace: Trace
    evaluations: Evaluations | None
    non_finite: NonFinite | None
    state: programs.SimState

    def __repr__(self) -> str:
        """A few lines: how far, which losses, what is in it."""
        kept = self.trace.event
        lines = [f"SimResult of {_number(len(kept), 'event')}"]
        if len(kept):
            last = max(len(kept) // 20, 1)
            few = _number(last, "event")
            lines += [
                f"  last push at version {self.trace.version[-1]}, mean staleness "
                f"{self.trace.staleness.mean():.2f}, {self.trace.time[-1]:.6g} simulated seconds",
                f"  mean loss of the first {few} {self.losses[:last].mean():.4g}, "
                f"of the last {self.losses[-last:].mean():.4g}",
            ]
        if self.non_finite is not None:
            lines.append(f"  given up: not finite from event {self.non_finite.event} on")
        lines.append(f"  params: {describe_size(self.params)}")
        return "\n".join(lines)

    def to_pandas(self) -> Any:
        """The trace as a pandas data frame, one row per event; needs pandas."""
        return _data_frame(self.trace.columns())


def describe_size(tree: PyTree) -> str:
    """How many arrays and numbers a tree holds."""
    arrays = jax.tree.leaves(tree)
    numbers = sum(int(np.prod(np.shape(leaf))) for leaf in arrays)
    return f"{_number(len(arrays), 'array')}, {_number(numbers, 'number')}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _data_frame(columns: dict[str, np.ndarray]) -> Any:
    extras.require_packages("pandas")
    import pandas as pd

    return pd.DataFrame(columns)


def samples_seen(schedule: schedules.Schedule, of_push: np.ndarray) -> np.ndarray:
    """Examples trained on up to each event; a push delivered twice counts once. [num_events].

    Args:
      schedule: Of the run.
      of_push: Examples of each worker's push, int64 [num_workers].
    """
    return np.cumsum(np.where(schedule.repeats, 0, of_push[schedule.worker]))


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
        time=schedule.update_time[event],
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
