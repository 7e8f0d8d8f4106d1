"""From what the user gave to what an engine runs."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import chain_order, engines, preconditions, step, work
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import worker as worker_part
from dcasgd_jax.sim.problem import Problem, Recording, Server
from dcasgd_jax.typing import PyTree


def make_program(
    schedule: schedules.Schedule,
    problem: Problem,
    server: Server,
    recording: Recording,
    batches: Any,
    *,
    has_model_state: bool,
    worker: work.Worker,
) -> programs.Program:
    """The program that a schedule needs for what the user asked for."""
    batch_fn = batches if callable(batches) else None
    preconditions.check_hashable(
        loss_fn=problem.loss_fn, batch_fn=batch_fn, eval_fn=problem.eval_fn, send=server.send
    )
    mixed = preconditions.first_mixed_event(schedule)
    model_state = problem.model_state_policy if has_model_state else "none"
    worker.check(schedule.num_workers)
    keeps = worker_part.keeps_state(worker, problem.params)
    repeats = (model_state == "per_worker" or keeps) and bool(np.any(schedule.repeats))
    if repeats:
        preconditions.check_repeats(schedule)
    if worker.eager:
        preconditions.check_own_pushes(schedule)
    flow: programs.Flow = "each" if schedule.applied.all() else "some"
    if np.any(schedule.num_pushes[schedule.applied] > 1):
        flow = "mean"
        preconditions.check_mean(schedule, mixed, server.tx, problem.params)
    return programs.Program(
        loss_fn=problem.loss_fn,
        tx=server.tx,
        per_push=server.per_push,
        batch_fn=batch_fn,
        eval_fn=problem.eval_fn,
        send=server.send,
        flow=flow,
        mixes=mixed is not None,
        corrupts=bool(schedule.corrupt.any()),
        repeats=repeats,
        model_state=model_state,
        metrics=tuple(name for name in programs.METRICS if name in recording.metrics),
        worker=worker,
    )


def check_chains(program: programs.Program, state: programs.SimState, *, given: bool) -> None:
    """Compensations must stand where raw gradients arrive; `given`: tx has a state of its own."""
    opt_state = state.opt_state if given else None
    chain_order.check_server(state.params, program.tx, opt_state, program.per_push)


def find_span(
    program: programs.Program,
    schedule: schedules.Schedule,
    state: programs.SimState | None,
    stop: int | None,
) -> tuple[int, int]:
    """The first event to run and the one to stop before."""
    if state is not None:
        preconditions.check_state(state, program)
    start = 0 if state is None else int(state.event)
    stop = len(schedule) if stop is None else checks.check_count("stop", stop)
    if stop > len(schedule):
        raise ValueError(
            f"stop={stop} is past the end: the schedule has {len(schedule)} events. Leave stop out "
            "to run to the end."
        )
    if start >= stop:
        raise ValueError(
            f"Nothing to run: the state is at event {start}, stop is {stop}, and the schedule has "
            f"{len(schedule)} events."
        )
    return start, stop


def make_run(
    program: programs.Program,
    schedule: schedules.Schedule,
    span: slice,
    batches: Any,
    *,
    key: jax.Array | None,
    evaluated: np.ndarray | None,
    trace_every: int,
) -> engines.Run:
    """What an engine runs."""
    index = schedule.batch[span]
    examples = None
    if program.batch_fn is not None:
        source: sources.Batches = sources.NoBatches()
    elif isinstance(batches, sources.Indexed):
        preconditions.check_batches(batches.rows, span.stop)
        preconditions.check_rows(batches.rows, batches.examples)
        examples = jax.tree.map(jnp.asarray, batches.examples)
        source = sources.ArrayBatches(batches.rows, index)
    elif sources.iterates(batches):
        source = sources.IteratorBatches(batches, index, span.start)
    else:
        preconditions.check_batches(batches, span.stop, most=len(schedule))
        source = sources.ArrayBatches(batches, index)
    return engines.Run(
        program=program,
        schedule=schedule,
        span=span,
        events=sources.take_rows(make_events(program, schedule, evaluated), span),
        batches=source,
        shared=programs.Shared(key=key, examples=examples),
        trace_every=trace_every,
    )


def make_events(
    program: programs.Program, schedule: schedules.Schedule, evaluated: np.ndarray | None
) -> programs.Event:
    """The schedule as the compiled step reads it; arrays [num_events]."""
    return programs.Event(
        event=np.arange(len(schedule), dtype=np.int32),
        worker=schedule.worker,
        current_slot=schedule.slots.current,
        read_slot=schedule.slots.read,
        staleness=schedule.staleness,
        batch=schedule.batch,
        applied=None if program.flow == "each" else schedule.applied,
        updates=schedule.updates if program.flow == "mean" else None,
        num_pushes=schedule.num_pushes if program.flow == "mean" else None,
        corrupt=schedule.corrupt if program.corrupts else None,
        repeats=schedule.repeats if program.repeats else None,
        evaluates=None if evaluated is None else evaluated,
        own_push_missing=schedule.own_pushes_missing > 0 if program.worker.eager else None,
    )


def evaluated_versions(
    schedule: schedules.Schedule,
    eval_fn: Callable | None,
    eval_versions: int | Sequence[int] | None,
) -> np.ndarray | None:
    """Whether the version that each event makes is to be evaluated; bool [num_events]."""
    if eval_fn is None:
        if eval_versions is not None:
            raise ValueError(
                "eval_versions needs an eval_fn to evaluate them with: sim.Problem(..., eval_fn=)."
            )
        return None
    last = schedule.num_updates
    given = eval_versions.tolist() if isinstance(eval_versions, np.ndarray) else eval_versions
    if given is None:
        chosen = {last}
    elif isinstance(given, Iterable) and not isinstance(given, str):
        in_list = lambda i, version: checks.check_count(f"eval_versions[{i}]", version, least=0)
        chosen = {in_list(i, version) for i, version in enumerate(given)}
    else:
        every = checks.check_count("eval_versions", given)
        chosen = {*range(every, last + 1, every), last}
    outside = sorted(v for v in chosen if not 1 <= v <= last)
    if outside:
        raise ValueError(
            f"eval_versions asks for version {outside[0]}, but the updates of this schedule make "
            f"versions 1 to {last}. (Version 0 are the params that you pass: call eval_fn on them.)"
        )
    return schedule.updates & np.isin(schedule.version + 1, sorted(chosen))


def first_batch(run: engines.Run) -> PyTree:
    """Shapes and dtypes of one event's batch, which is one for the worker.

    Raises:
      ValueError: If it is not.
    """
    if isinstance(run.batches, sources.IteratorBatches):
        row = run.batches.peek()
    elif isinstance(run.batches, sources.ArrayBatches):
        row = run.batches.one(0)
    else:
        row = None
    batch = _batch_of.eval_shape(run.program, _first_event(run), row, run.shared)
    run.program.worker.check_batch(batch)
    return batch


def convolves(run: engines.Run, state: programs.SimState, batch: PyTree) -> bool:
    """Whether a gradient uses convolutions; tracing it checks the model state that it returns."""
    event = _first_event(run)
    pulled = _read_version.eval_shape(run.program, state, event)
    arguments = _shapes((event, pulled, batch, run.shared.key))
    leaves, structure = jax.tree.flatten(arguments)
    return _gradient_convolves(run.program, tuple(leaves), structure)


@functools.lru_cache(maxsize=128)
def _gradient_convolves(program, shapes, structure):
    """Traces a gradient, once for each kind of argument."""
    gradient = functools.partial(worker_part.gradient_on_batch, program)
    jaxpr = jax.make_jaxpr(gradient)(*jax.tree.unflatten(structure, shapes))
    return "conv_general_dilated" in str(jaxpr)


# Traced once for each kind of argument, not at every call of `simulate`.
_batch_of = jax.jit(worker_part.batch_of, static_argnames="program")
_read_version = jax.jit(step.read_version, static_argnames="program")


def _first_event(run: engines.Run) -> programs.Event:
    return sources.take_rows(run.events, 0)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf)), tree
    )
