"""What a sweep returns: everything that `simulate` returns, for all members at once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from dcasgd_jax import extras
from dcasgd_jax.sim import continuation, engines, recording, results, step
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class SweepResult:
    """What `sweep` returns; a leading axis of members everywhere.

    A member whose params are no longer finite reports nothing more: nan, or 0 for an integer.
    """

    hyperparams: dict[str, np.ndarray]  # [num_members, ...], as given
    params: PyTree
    opt_state: optax.OptState
    model_state: PyTree | None
    losses: np.ndarray  # as in the trace
    trace: results.Trace  # columns [num_members, num_kept]
    evaluations: results.Evaluations | None  # [num_members, num_evaluations, ...]
    non_finite: tuple[results.NonFinite | None, ...]  # of each member
    _member: Callable[[int], results.SimResult]

    def __len__(self) -> int:
        """Number of members."""
        return len(self.non_finite)

    def __repr__(self) -> str:
        """One line: how many members of what, how many of them lost."""
        lost = sum(where is not None for where in self.non_finite)
        return (
            f"SweepResult: {len(self)} members of {self.losses.shape[1]} events, "
            f"{lost} with losses that are not finite; hyperparams {sorted(self.hyperparams)}"
        )

    def member(self, index: int) -> results.SimResult:
        """What `simulate` would have returned for one member; its state can go on from here."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no member {index}: the sweep has {len(self)}.")
        return self._member(index % len(self))

    def to_pandas(self) -> Any:
        """The traces as one data frame, with the member and its hyperparameters; needs pandas."""
        extras.require_packages("pandas")
        import pandas as pd

        num_kept = self.losses.shape[1]
        numbers = {name: v for name, v in self.hyperparams.items() if v.ndim == 1}
        of_members = {"member": np.arange(len(self)), **numbers}
        repeated = {name: np.repeat(column, num_kept) for name, column in of_members.items()}
        traced = {name: column.ravel() for name, column in self.trace.columns().items()}
        return pd.DataFrame(repeated | traced)


def from_records(
    hyperparams: dict[str, np.ndarray],
    runs: Sequence[engines.Run],
    of_push: np.ndarray,
    states: programs.SimState,
    records: Sequence[recording.Record],
) -> SweepResult:
    """The result of members that ran together; `states` have a leading axis of members."""
    samples = [results.samples_seen(run.schedule, of_push) for run in runs]
    about = [
        (run.schedule, 0, record, seen)
        for run, record, seen in zip(runs, records, samples, strict=True)
    ]
    evaluations = [results.make_evaluations(*of_member) for of_member in about]
    traces = [results.make_trace(*of_member) for of_member in about]
    non_finite = [results.find_non_finite(*of_member[:3]) for of_member in about]

    def member(index: int) -> results.SimResult:
        state = _take_member(states, index)
        # Slots that only the other members need.
        kept = slice(0, runs[index].schedule.num_slots)
        snapshots = jax.tree.map(lambda slots: slots[kept], state.snapshots)
        state = state._replace(snapshots=snapshots)
        return results.SimResult(
            params=state.params,
            opt_state=state.opt_state,
            model_state=step.model_state_to_evaluate(state),
            losses=traces[index].loss,
            trace=traces[index],
            evaluations=evaluations[index],
            non_finite=non_finite[index],
            state=continuation.mark(state, runs[index].schedule),
        )

    trace = _stack_traces(traces, runs, samples)
    return SweepResult(
        hyperparams=hyperparams,
        params=states.params,
        opt_state=states.opt_state,
        model_state=jax.vmap(step.model_state_to_evaluate)(states),
        losses=trace.loss,
        trace=trace,
        evaluations=_stack_evaluations(evaluations, runs, samples),
        non_finite=tuple(non_finite),
        _member=member,
    )


def from_members(
    hyperparams: dict[str, np.ndarray],
    runs: Sequence[engines.Run],
    of_push: np.ndarray,
    finished: Sequence[results.SimResult],
) -> SweepResult:
    """The result of members that ran one after another."""
    samples = [results.samples_seen(run.schedule, of_push) for run in runs]
    stack = lambda trees: jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *trees)
    trace = _stack_traces([result.trace for result in finished], runs, samples)
    return SweepResult(
        hyperparams=hyperparams,
        params=stack([result.params for result in finished]),
        opt_state=stack([result.opt_state for result in finished]),
        model_state=stack([result.model_state for result in finished]),
        losses=trace.loss,
        trace=trace,
        evaluations=_stack_evaluations([result.evaluations for result in finished], runs, samples),
        non_finite=tuple(result.non_finite for result in finished),
        _member=list(finished).__getitem__,
    )


@jax.jit
def _take_member(states: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], states)


def _stack_traces(
    traces: Sequence[results.Trace], runs: Sequence[engines.Run], samples: Sequence[np.ndarray]
) -> results.Trace:
    kept = np.arange(0, len(samples[0]), runs[0].trace_every)
    whole = []
    for trace, run, seen in zip(traces, runs, samples, strict=True):
        reported = programs.Metrics(*(getattr(trace, name) for name in programs.Metrics._fields))
        metrics = jax.tree.map(lambda column: _padded(column, len(kept)), reported)
        record = recording.Record(kept, metrics, kept[:0], None, None, lost=False)
        whole.append(results.make_trace(run.schedule, 0, record, seen))
    return jax.tree.map(lambda *columns: np.stack(columns), *whole)


def _stack_evaluations(
    evaluations: Sequence[results.Evaluations | None],
    runs: Sequence[engines.Run],
    samples: Sequence[np.ndarray],
) -> results.Evaluations | None:
    some = next((found for found in evaluations if found is not None), None)
    if some is None:
        return None
    # A member that was given up before its first evaluation has none at all.
    nothing = jax.tree.map(lambda leaf: leaf[:0], some.values)
    whole = []
    for found, run, seen in zip(evaluations, runs, samples, strict=True):
        asked = np.flatnonzero(run.events.evaluates)
        values = nothing if found is None else found.values
        values = jax.tree.map(lambda leaf: _padded(leaf, len(asked)), values)  # noqa: B023
        record = recording.Record(asked, programs.Metrics(None), asked, values, None, lost=False)
        whole.append(results.make_evaluations(run.schedule, 0, record, seen))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *whole)


def _padded(column: np.ndarray, length: int) -> np.ndarray:
    """`column` and then nan, or 0 where there is none."""
    missing = (length - len(column), *column.shape[1:])
    inexact = jax.numpy.issubdtype(column.dtype, np.inexact)
    return np.concatenate([column, np.full(missing, np.nan if inexact else 0, column.dtype)])
