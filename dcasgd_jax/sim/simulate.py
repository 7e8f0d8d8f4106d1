"""`simulate`: a schedule, a loss and an optimizer in, trained parameters and a trace out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax.sim import engines, step
from dcasgd_jax.sim import schedule as schedules
from dcasgd_jax.typing import PyTree


class Trace(NamedTuple):
    """What happened at each event that this call ran; NumPy arrays [num_events]."""

    event: np.ndarray  # index into the schedule
    worker: np.ndarray
    version: np.ndarray  # the server's version when the push arrived
    staleness: np.ndarray  # versions
    time: np.ndarray  # simulated seconds
    loss: np.ndarray  # of the batch, at the params that the worker had read
    compensation_ratio: np.ndarray | None  # |compensation| / |gradient|, if it was asked for


class SimResult(NamedTuple):
    """What `simulate` returns."""

    params: PyTree
    opt_state: optax.OptState
    losses: np.ndarray  # [num_events], as in the trace
    trace: Trace
    state: step.SimState  # give it to `simulate` to go on from here


def simulate(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    tx: optax.GradientTransformation,
    schedule: schedules.Schedule,
    batches: PyTree | Callable[[jax.Array, jax.Array], PyTree],
    *,
    key: jax.Array | None = None,
    engine: engines.Engine | None = None,
    opt_state: optax.OptState | None = None,
    state: step.SimState | None = None,
    stop: int | None = None,
    measure_compensation: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SimResult:
    r"""Trains with stale gradients exactly as a schedule says, in compiled code.

    Event k evaluates one gradient at the version that the worker had read, and hands it to `tx`:

    .. math:: w_{v+1} = w_v + tx(\nabla f(w_r; B_k)), \quad v = version_k, \; r = read\_version_k

    `tx` is offered `stale_params` (:math:`w_r`), `staleness` and `worker` as extra arguments.
    Compensate with `dc.compensate_delay`: the simulator already keeps the stale parameters.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` if `key` is given; returns
        a scalar. Pass the same function object again to reuse the compiled program.
      params: Initial parameters; copied, never changed.
      tx: Any optax transformation; the same object again reuses the compiled program.
      schedule: Who pushes what and when; from `make_schedule`, a file, or built by hand.
      batches: A tree of arrays `[num_events, ...]` (longer is fine), row k for event k; or
        `batch_fn(event, worker)`, traced into the program, with int32 scalars.
      key: PRNG key; event k gets `fold_in(key, k)`, whatever the engine.
      engine: `ScanEngine()`, `HostEngine()`, or `None` to choose: the host engine for convolutions
        on the CPU, else the scan engine.
      opt_state: Initial optimizer state, e.g. with other injected hyperparameters. Default:
        `tx.init(params)`.
      state: The state of an earlier result, to go on from; `params` and `opt_state` are then not
        read.
      stop: Event to stop before. Default: the end of the schedule.
      measure_compensation: Put |compensation| / |gradient| of every update into the trace.
      progress: Called with the number of events done in this call, now and then.

    Returns:
      A `SimResult`.

    Raises:
      ValueError: For batches shorter than the run, a schedule whose averaged pushes read several
        versions, a state of another schedule, or `measure_compensation` without a compensating
        transformation in `tx`.
      TypeError: If `loss_fn` or `batch_fn` cannot be hashed.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> result = sim.simulate(
      ...     lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3),
      ...     optax.chain(dc.compensate_delay(lambda0=0.1), optax.sgd(0.05)),
      ...     schedule, batches=jnp.ones((100, 3)))
      >>> print(jnp.round(result.params, 3))
      [1. 1. 1.]
    """
    batch_fn = batches if callable(batches) else None
    averages = not bool(schedule.updates.all())
    program = step.Program(loss_fn, tx, batch_fn, averages, measure_compensation)
    for name, function in (("loss_fn", loss_fn), ("batch_fn", batch_fn)):
        _check_hashable(name, function)
    _check_averages(schedule)
    if state is not None:
        _check_state(state, schedule, program)
    start = 0 if state is None else int(state.event)
    stop = len(schedule) if stop is None else stop
    if not start < stop <= len(schedule):
        raise ValueError(
            f"Nothing to run: the state is at event {start}, stop is {stop}, and the schedule has "
            f"{len(schedule)} events."
        )
    if batch_fn is None:
        _check_batches(batches, stop)

    if state is None:
        current = step.initial_state(program, params, opt_state, schedule.num_slots)
    else:
        current = step.copy_tree(state)
    if engine is None:
        first = batch_fn(jnp.int32(0), jnp.int32(0)) if batch_fn else engines.take_rows(batches, 0)
        engine = engines.choose_engine(program, current.params, first, key)

    run = slice(start, stop)
    events = engines.take_rows(_events(schedule), run)
    rows = None if batch_fn else engines.take_rows(batches, run)
    current, metrics = engine.run(program, current, events, rows, key, progress)
    trace = Trace(
        event=np.arange(start, stop),
        worker=schedule.worker[run],
        version=schedule.version[run],
        staleness=schedule.staleness[run],
        time=schedule.time[run],
        loss=metrics.loss,
        compensation_ratio=metrics.compensation_ratio,
    )
    return SimResult(current.params, current.opt_state, metrics.loss, trace, current)


def _events(schedule: schedules.Schedule) -> step.Event:
    """The schedule as the compiled step reads it; arrays [num_events]."""
    pushes = np.bincount(schedule.version).astype(np.int32)
    return step.Event(
        worker=schedule.worker,
        current_slot=schedule.slots.current,
        read_slot=schedule.slots.read,
        staleness=schedule.staleness,
        updates=schedule.updates,
        num_pushes=pushes[schedule.version],
    )


def _check_hashable(name: str, function) -> None:
    try:
        hash(function)
    except TypeError:
        raise TypeError(
            f"{name} cannot be hashed, so its compiled program could not be found again: wrap it "
            "in a plain function."
        ) from None


def _check_averages(schedule: schedules.Schedule) -> None:
    same_update = schedule.version[1:] == schedule.version[:-1]
    mixed = same_update & (schedule.read_version[1:] != schedule.read_version[:-1])
    if mixed.any():
        event = int(np.argmax(mixed)) + 1
        raise ValueError(
            f"The pushes averaged into update {schedule.version[event]} read different versions "
            f"(event {event}): there is no single stale point to compensate."
        )


def _check_batches(batches: PyTree, num_events: int) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(batches)
    if not leaves:
        raise ValueError("batches holds no arrays; pass a tree of arrays [num_events, ...].")
    for path, leaf in leaves:
        name = f"batches{jax.tree_util.keystr(path)}"
        shape = np.shape(leaf)
        if not shape:
            raise ValueError(f"{name} is a scalar, but needs a leading axis of events.")
        if shape[0] < num_events:
            raise ValueError(
                f"{name} has {shape[0]} rows, but the run has {num_events} events: pass one batch "
                "per event (with averaging, per push, not per update)."
            )


def _check_state(state: step.SimState, schedule: schedules.Schedule, program: step.Program) -> None:
    slots = {leaf.shape[0] for leaf in jax.tree.leaves(state.snapshots)}
    averages = state.gradient_sum is not None
    if slots - {schedule.num_slots} or averages != program.averages:
        raise ValueError(
            f"This state belongs to another schedule: it keeps {max(slots, default=0)} snapshots "
            f"({'with' if averages else 'without'} averaging), this schedule needs "
            f"{schedule.num_slots} ({'with' if program.averages else 'without'})."
        )
