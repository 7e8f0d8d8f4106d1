"""Engines: how the events of a schedule are executed. All run the same step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dcasgd_jax import checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import recording, step, watching
from dcasgd_jax.typing import PyTree


class Run(NamedTuple):
    """Consecutive events of a schedule and what they need."""

    program: programs.Program
    schedule: schedules.Schedule
    span: slice  # these events of the schedule
    events: programs.Event  # NumPy arrays [num_events] of the span
    batches: sources.Batches  # of the span
    shared: programs.Shared
    trace_every: int  # events between two that are kept in the trace
    watch: watching.Watch | None = None  # who is told on the way


class Engine(Protocol):
    """What `simulate` needs of an engine."""

    def run(
        self, run: Run, state: programs.SimState, progress: recording.Progress | None
    ) -> tuple[programs.SimState, recording.Record]:
        """Runs the events; donates `state`. Returns the state after them and what they report."""
        ...


@dataclasses.dataclass(frozen=True)
class ScanEngine:
    """Compiles many events into one `lax.scan`: for accelerators and small models.

    Args:
      chunk_size: Events per compiled scan ≥ 1. Longer runs repeat the same program, so neither
        compile time nor device memory grows with the number of events.
    """

    chunk_size: int = 4096

    def __post_init__(self):
        checks.check_fields(self, chunk_size=1)

    def run(self, run: Run, state: programs.SimState, progress: recording.Progress | None):
        """See `Engine.run`."""
        log = recording.Log(run.events, run.trace_every, progress, run.watch)
        for chunk in chunks(len(run.events.event), self.chunk_size):
            events = sources.take_rows(run.events, chunk)
            state, reports = _scan_chunk(
                run.program, state, events, run.batches.chunk(chunk), run.shared
            )
            log.add(chunk, *reports)
            if log.is_lost(state.params):
                break
        return state, log.record(state.params)


@dataclasses.dataclass(frozen=True)
class HostEngine:
    """One compiled step per event, dispatched without waiting: for convolutions on CPU, debugging.

    XLA runs convolutions on the CPU far slower inside a loop than outside; this engine keeps the
    loop on the host.

    Args:
      jit: False runs every operation one by one, slowly: for debugging, and the other engines'
        oracle.
      chunk_size: Events between two collections of metrics ≥ 1.
    """

    jit: bool = True
    chunk_size: int = 256

    def __post_init__(self):
        checks.check_fields(self, chunk_size=1)

    def run(self, run: Run, state: programs.SimState, progress: recording.Progress | None):
        """See `Engine.run`."""
        run_event: Callable = _compiled_event if self.jit else step.run_event
        evaluate: Callable = compiled_evaluation if self.jit else step.evaluate
        functions = HostFunctions(
            functools.partial(run_event, run.program), functools.partial(evaluate, run.program)
        )
        with contextlib.nullcontext() if self.jit else jax.disable_jit():
            return run_on_host(functions, run, state, progress, self.chunk_size)


class HostFunctions(NamedTuple):
    """What is called at the events of a run on the host."""

    run_event: Callable[..., Any]  # of state, event, row and shared: the next state, and metrics
    evaluate: Callable[[programs.SimState], PyTree]


def compile_for_host(run: Run, state: programs.SimState) -> HostFunctions:
    """Programs for states of these shapes; what is set in the calling thread holds for them."""
    first = jax.tree.map(lambda column: column[0], run.events)
    inputs = state, first, run.batches.one(0), run.shared
    evaluates = run.program.eval_fn is not None
    return HostFunctions(
        _compiled_event.lower(run.program, *inputs).compile(),
        compiled_evaluation.lower(run.program, state).compile() if evaluates else _no_evaluation,
    )


def _no_evaluation(state: programs.SimState) -> PyTree:
    raise AssertionError("No event of a run without eval_fn evaluates.")


def run_on_host(
    functions: HostFunctions,
    run: Run,
    state: programs.SimState,
    progress: recording.Progress | None,
    chunk_size: int,
) -> tuple[programs.SimState, recording.Record]:
    """See `Engine.run`; `chunk_size` events between two collections of metrics."""
    log = recording.Log(run.events, run.trace_every, progress, run.watch)
    for chunk in chunks(len(run.events.event), chunk_size):
        metrics, evaluations = [], []
        for k in range(chunk.start, chunk.stop):
            event = sources.take_rows(run.events, k)
            state, event_metrics = functions.run_event(state, event, run.batches.one(k), run.shared)
            metrics.append(event_metrics)
            if event.evaluates:
                evaluations.append(functions.evaluate(state))
        log.add(chunk, metrics, evaluations)
        if log.is_lost(state.params):
            break
    return state, log.record(state.params)


def choose_engine(convolves: bool) -> Engine:
    """`HostEngine` for convolutions on the CPU, `ScanEngine` for everything else."""
    return HostEngine() if convolves and jax.default_backend() == "cpu" else ScanEngine()


def scan_events(program, state, events, batches, shared):
    """Runs events in one `lax.scan`; returns the state, and the reports of every event."""

    def body(state, inputs):
        event, row = inputs
        state, metrics = step.run_event(program, state, event, row, shared)
        return state, (metrics, evaluation_or_zeros(program, state, event))

    return jax.lax.scan(body, state, (events, batches))


def evaluation_or_zeros(program, state, event):
    """The evaluation of the version after an event that asks for one, else zeros."""
    if event.evaluates is None:
        return None
    shape = jax.eval_shape(functools.partial(step.evaluate, program), state)
    zeros = lambda state: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return jax.lax.cond(event.evaluates, functools.partial(step.evaluate, program), zeros, state)


_scan_chunk = jax.jit(scan_events, static_argnames="program", donate_argnames="state")
_compiled_event = jax.jit(step.run_event, static_argnames="program", donate_argnames="state")
compiled_evaluation = jax.jit(step.evaluate, static_argnames="program")


def chunks(num_events: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` events."""
    for start in range(0, num_events, size):
        yield slice(start, min(start + size, num_events))
