"""What a run reports, collected on the host without making the device wait."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import watching
from dcasgd_jax.typing import PyTree

Progress = Callable[[int], None]


class Record(NamedTuple):
    """What the events of a run reported; NumPy arrays."""

    kept: np.ndarray  # int64 [num_kept], positions in the run of the events in the trace
    metrics: programs.Metrics  # arrays [num_kept]
    evaluated: np.ndarray  # int64 [num_evaluations], positions of the evaluated versions' events
    evaluations: PyTree | None  # leaf [num_evaluations, ...]
    first_non_finite: int | None  # position of the first loss that is not finite
    lost: bool  # the run was given up: its params are not finite


class Log:
    """Collects reports one chunk late, so that the device never waits for the host."""

    def __init__(
        self,
        events: programs.Event,
        trace_every: int,
        progress: Progress | None,
        watch: watching.Watch | None = None,
    ):
        self._events, self._trace_every, self._progress = events, trace_every, progress
        self._watch = watch
        self._waiting: tuple | None = None
        self._kept: list[np.ndarray] = []
        self._metrics: list[programs.Metrics] = []
        self._evaluated: list[np.ndarray] = []
        self._evaluations: list[PyTree] = []
        self._first_non_finite: int | None = None

    def add(self, chunk: slice, metrics, evaluations) -> None:
        """Takes the reports of a chunk: stacked trees, or lists with a tree per event.

        Stacked trees may be longer than the chunk: what comes after it is nothing.
        """
        self._fetch()
        self._waiting = chunk, metrics, evaluations

    def is_lost(self, params: PyTree) -> bool:
        """Whether a loss was not finite and the params are not either: nothing will recover."""
        return self._first_non_finite is not None and not bool(_all_finite(params))

    def record(self, params: PyTree) -> Record:
        """Everything; of a run that is lost, see `end_where_lost`."""
        self._fetch()
        kept = np.concatenate(self._kept)
        metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *self._metrics)
        evaluated = np.concatenate([*self._evaluated, np.zeros(0, np.int64)])
        evaluations = None
        if self._evaluations:
            evaluations = jax.tree.map(lambda *parts: np.concatenate(parts), *self._evaluations)
        lost = self.is_lost(params)
        if lost and self._watch is not None:
            self._watch.close()
        return end_where_lost(
            Record(kept, metrics, evaluated, evaluations, self._first_non_finite, lost)
        )

    def _fetch(self) -> None:
        if self._waiting is None:
            return
        chunk, metrics, evaluations = self._waiting
        self._waiting = None
        positions = np.arange(chunk.start, chunk.stop)
        metrics = _stacked(jax.device_get(metrics))
        metrics = jax.tree.map(lambda column: column[: len(positions)], metrics)
        self._suspect(positions, metrics.loss)
        keep = self._events.event[chunk] % self._trace_every == 0
        self._kept.append(positions[keep])
        self._metrics.append(jax.tree.map(lambda column: column[keep], metrics))
        asked, evaluations = self._fetch_evaluations(positions, evaluations)
        if self._watch is not None:
            event = self._events.event
            columns = {n: c for n, c in metrics._asdict().items() if c is not None}
            self._watch.add(event[positions], columns, event[asked], evaluations)
        if self._progress is not None:
            self._progress(chunk.stop)

    def _suspect(self, positions: np.ndarray, loss: np.ndarray) -> None:
        bad = ~np.isfinite(loss.astype(np.float64))
        if bad.any() and self._first_non_finite is None:
            self._first_non_finite = int(positions[np.argmax(bad)])

    def _fetch_evaluations(self, positions: np.ndarray, evaluations) -> tuple[np.ndarray, PyTree]:
        """The positions that are evaluated, and what was found there."""
        if self._events.evaluates is None:
            return positions[:0], None
        asked = np.flatnonzero(self._events.evaluates[positions])
        if not len(asked):
            return positions[:0], None
        if not isinstance(evaluations, list):
            evaluations = jax.tree.map(lambda leaf: leaf[asked], evaluations)
        self._evaluated.append(positions[asked])
        self._evaluations.append(_stacked(jax.device_get(evaluations)))
        return self._evaluated[-1], self._evaluations[-1]


def end_where_lost(record: Record) -> Record:
    """The record; of a lost run up to its first loss that was not finite.

    How far a run goes on after that depends on its engine and chunks; what it reports does not.
    """
    first = record.first_non_finite
    if not record.lost or first is None:
        return record
    until = int(np.searchsorted(record.kept, first, "right"))
    # The event of that loss is the last in the trace; the version that it makes is lost already.
    num_evaluations = int(np.searchsorted(record.evaluated, first, "left"))
    evaluations = None
    if num_evaluations:
        evaluations = jax.tree.map(lambda leaf: leaf[:num_evaluations], record.evaluations)
    return record._replace(
        kept=record.kept[:until],
        metrics=jax.tree.map(lambda column: column[:until], record.metrics),
        evaluated=record.evaluated[:num_evaluations],
        evaluations=evaluations,
    )


def _stacked(reports):
    if isinstance(reports, list):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *reports)
    return reports


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)
