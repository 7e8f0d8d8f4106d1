"""Runs that survive being killed: saved every few events, resumed bit for bit."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import engines, leaves, recording
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.checkpoints import identity
from dcasgd_jax.sim.checkpoints import store as stores
from dcasgd_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often `simulate` saves a run, and where it finds the run to go on with.

    If the directory holds a checkpoint of the same run, `simulate` goes on from it and returns
    what it would have returned had it never been interrupted; bit for bit, because the run is
    always cut at the same events. If the run is there to its end, nothing is run. A checkpoint of
    another run is refused, with the respect in which it differs. A damaged one is moved aside with
    a warning, and the one before it is taken. Each is a file `<events done>.npz`, written in the
    background while the next events run.

    The data is part of the run: arrays, and the examples and rows of `Indexed`, are hashed whole
    in each call, which takes about a second per GB. What an iterator gives is not checked, and of a
    `batch_fn` only its code and the arrays in it, not what it reads from elsewhere: if that data
    changes, pass another directory. Neither the engine, `every` nor `keep` are part of a
    run, but changing them may change its last bits.

    Args:
      directory: A local directory of this run alone, made if it is not there. One process at a
        time: another is refused until the first one ends, however it ends.
      every: Events between two saves ≥ 1: at the multiples of `every`, and at the end.
      keep: Checkpoints that are kept ≥ 1; with 1, there is none before a damaged one.

    Example:
      >>> import tempfile, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> def train(directory, stop=None):
      ...     return sim.simulate(
      ...         problem, optax.sgd(0.05), schedule, jnp.ones((100, 3)), stop=stop,
      ...         checkpoint=sim.Checkpoint(directory, every=50))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     half, whole = train(directory, stop=50), train(directory)
      >>> len(half.losses), len(whole.losses)
      (50, 100)
    """

    directory: str | os.PathLike[str]
    every: int = 1000
    keep: int = 2

    def __post_init__(self):
        if not isinstance(self.directory, str | os.PathLike) or "://" in str(self.directory):
            raise ValueError(
                f"Checkpoint.directory must be the path of a local directory, got "
                f"{self.directory!r}."
            )
        checks.check_fields(self, every=1, keep=1)

    @property
    def path(self) -> pathlib.Path:
        """The absolute path of the directory."""
        return pathlib.Path(self.directory).expanduser().absolute()

    def prepare(self) -> None:
        """Raises now, rather than after some work, if nothing could be saved."""
        if jax.process_count() > 1:
            raise ValueError("checkpoint= is for runs of one process; save their `state` yourself.")
        stores.make_directory(self.path)


def run_with_checkpoints(
    checkpoint: Checkpoint,
    engine: engines.Engine,
    run: engines.Run,
    state: programs.SimState,
    progress: recording.Progress | None,
    this_run: identity.Identity,
) -> tuple[programs.SimState, recording.Record]:
    """What `engine.run` does, saved on the way, from the newest checkpoint on."""

    def check(facts: dict[str, Any]) -> None:
        difference = identity.find_difference(facts["run"], this_run)
        if difference is not None:
            raise ValueError(
                f"{checkpoint.path} holds a checkpoint of another run. It has {difference}. Pass "
                "another directory, or delete this one to start over."
            )

    first, num_events = run.span.start, len(run.events.event)
    record = None
    with stores.Store(checkpoint.path, checkpoint.keep) as store:
        saved = store.newest(check)
        if saved is not None:
            state, record = _unpack(saved, state, identity.evaluation_shapes(run, state))
            _check_stop(checkpoint, run, int(state.event))
        done = resumed = int(state.event) - first
        if isinstance(run.batches, sources.IteratorBatches):
            run.batches.skip(done)
        while done < num_events and not (record and record.lost):
            event = first + done
            until = min(event - event % checkpoint.every + checkpoint.every, run.span.stop) - first
            report = None
            if progress is not None:
                before = done - resumed
                report = lambda count: progress(before + count)  # noqa: B023
            state, new = engine.run(_part(run, slice(done, until)), state, report)
            record = new if record is None else _join(record, new, done)
            done = int(state.event) - first
            store.save(int(state.event), _pack(state, record, this_run))
    assert record is not None  # a checkpoint has one, and without it there were events to run
    return state, record


def _part(run: engines.Run, events: slice) -> engines.Run:
    """Consecutive events of a run as a run of their own."""
    first = run.span.start
    return run._replace(
        span=slice(first + events.start, first + events.stop),
        events=sources.take_rows(run.events, events),
        batches=_Later(run.batches, events.start),
    )


class _Later:
    """Batches from a later event on."""

    def __init__(self, batches: sources.Batches, offset: int):
        self._batches, self._offset = batches, offset

    def chunk(self, events: slice) -> PyTree:
        return self._batches.chunk(slice(self._offset + events.start, self._offset + events.stop))

    def one(self, event: int) -> PyTree:
        return self._batches.one(self._offset + event)

    def close(self) -> None:
        """Whoever made the batches closes them."""


def _join(first: recording.Record, second: recording.Record, offset: int) -> recording.Record:
    """The record of two runs, of which the second began `offset` events after the first."""
    join = lambda before, after: np.concatenate([before, after])
    later = second.first_non_finite
    earliest = None if later is None else offset + later
    if first.first_non_finite is not None:
        earliest = first.first_non_finite
    if first.evaluations is None or second.evaluations is None:
        evaluations = second.evaluations if first.evaluations is None else first.evaluations
    else:
        evaluations = jax.tree.map(join, first.evaluations, second.evaluations)
    joined = recording.Record(
        kept=join(first.kept, offset + second.kept),
        metrics=jax.tree.map(join, first.metrics, second.metrics),
        evaluated=join(first.evaluated, offset + second.evaluated),
        evaluations=evaluations,
        first_non_finite=earliest,
        lost=second.lost,
    )
    # The first loss that was not finite may have come long before the run was lost.
    return recording.end_where_lost(joined)


def _pack(
    state: programs.SimState, record: recording.Record, this_run: identity.Identity
) -> stores.Saved:
    numbered = lambda name, arrays: {f"{name} {k}": array for k, array in enumerate(arrays)}
    columns = record.metrics._asdict()
    return stores.Saved(
        arrays={
            **numbered("state", [leaves.to_host(leaf) for leaf in jax.tree.leaves(state)]),
            **numbered("evaluations", jax.tree.leaves(record.evaluations)),
            **{f"trace {name}": column for name, column in columns.items() if column is not None},
            "kept": record.kept,
            "evaluated": record.evaluated,
        },
        facts={
            "run": this_run,
            "first_non_finite": record.first_non_finite,
            "lost": record.lost,
        },
    )


def _unpack(
    saved: stores.Saved, like: programs.SimState, evaluation_shapes: PyTree
) -> tuple[programs.SimState, recording.Record]:
    arrays, facts = saved
    leaves_like, structure = jax.tree.flatten(like)
    state_leaves = [leaves.to_device(arrays[f"state {k}"], x) for k, x in enumerate(leaves_like)]
    evaluations = None
    if len(arrays["evaluated"]):
        evaluated_leaves, evaluated_structure = jax.tree.flatten(evaluation_shapes)
        evaluations = evaluated_structure.unflatten(
            [arrays[f"evaluations {k}"] for k in range(len(evaluated_leaves))]
        )
    return structure.unflatten(state_leaves), recording.Record(
        kept=arrays["kept"],
        metrics=programs.Metrics(
            **{name: arrays.get(f"trace {name}") for name in programs.Metrics._fields}
        ),
        evaluated=arrays["evaluated"],
        evaluations=evaluations,
        first_non_finite=facts["first_non_finite"],
        lost=facts["lost"],
    )


def _check_stop(checkpoint: Checkpoint, run: engines.Run, event: int) -> None:
    if event > run.span.stop:
        raise ValueError(
            f"The run in {checkpoint.path} is at event {event} already, past stop={run.span.stop}: "
            "pass a later stop, or another directory."
        )
