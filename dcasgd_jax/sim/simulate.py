"""`simulate`: a schedule, a loss and an optimizer in, trained parameters and a trace out."""

from collections.abc import Callable, Iterable

import jax
import optax

from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import (
    arguments,
    continuation,
    engines,
    offers,
    preconditions,
    preparation,
    results,
    step,
    watching,
)
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.checkpoints import checkpoint as checkpoints
from dcasgd_jax.sim.checkpoints import identity
from dcasgd_jax.sim.problem import Problem, Recording, Server, as_server
from dcasgd_jax.sim.work import OneGradient, Worker
from dcasgd_jax.typing import PyTree


def simulate(
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    schedule: schedules.Schedule,
    batches: PyTree | Callable[[jax.Array, jax.Array], PyTree] | Iterable[PyTree],
    *,
    worker: Worker | None = None,
    key: jax.Array | None = None,
    engine: engines.Engine | None = None,
    recording: Recording | None = None,
    state: programs.SimState | None = None,
    stop: int | None = None,
    checkpoint: checkpoints.Checkpoint | None = None,
    progress: Callable[[int], None] | None = None,
) -> results.SimResult:
    r"""Trains with stale gradients exactly as a schedule says, in compiled code.

    Event k evaluates one gradient at the version that the worker had read, and hands it to `tx`:

    .. math:: w_{v+1} = w_v + tx(\nabla f(w_r; B_k)), \quad v = version_k, \; r = read\_version_k

    `tx` is offered `stale_params` (:math:`w_r`), `staleness` and `worker` as extra arguments.
    `dc.compensate_delay` uses them, and so do `dc.remember_pulls`, `dc.dcasgd` and
    `dc.assume_delay`, whose own memory is for servers that offer nothing. Before the run the chain
    is tried out: a compensation behind the learning rate, or with a cap that was told a smaller
    learning rate than the chain applies, is an error.
    It is also offered two functions, which cost nothing unless it calls them (not by
    `LanesEngine`, nor where an update averages pushes): `hessian_vector_product(tangent)`, with
    the Hessian of this batch's loss at :math:`w_r`, and `fisher_diagonal()`, the mean over the
    samples of the batch (the leading axis of its arrays) of their squared gradients there. And
    `batch_size`, where one array of a batch has one entry for each example, such as a label, all
    begin with that axis, and none with more axes is of signed integers, which may be tokens.

    Args:
      problem: `sim.Problem(loss_fn, params)`: what is trained, and how it is evaluated.
      tx: Any optax transformation; the same object again reuses the compiled program. Or a
        `sim.Server(tx, per_push=, send=, opt_state=)`, which does more with pushes and pulls.
      schedule: Who pushes what and when; from `make_schedule`, a file, or built by hand.
      batches: One of: a tree of arrays `[num_events, ...]`, row k is the batch of event k;
        `sim.Indexed(examples, rows)`, rows that point into examples on the device;
        `batch_fn(event, worker)`, traced into the program, with int32 scalars; an iterator of
        batches in the order of the events that this call runs, fetched ahead.
      worker: What a worker does between its pull and its push: `sim.LocalSteps(...)` makes every
        push a pseudo-gradient of many steps, and then a row of `batches` holds those of all steps.
        Default: `sim.OneGradient()`.
      key: PRNG key; event k gets `fold_in(key, k)`, whatever the engine.
      engine: `ScanEngine()`, `HostEngine()`, `LanesEngine(mesh)`, or `None` to choose: the host
        engine for convolutions on the CPU, else the scan engine.
      recording: `sim.Recording(metrics, every, eval_versions, logger)`: what to keep besides the
        losses, and who hears of the run while it runs.
      state: The state of an earlier result, to go on from, of this schedule or of a shorter one
        that it begins with; of the problem's params and states, and of the server's, only the
        structure is then read.
      stop: Event to stop before. Default: the end of the schedule.
      checkpoint: `sim.Checkpoint(directory)`: saves the run there, and goes on with it if it is
        there already; the result is always that of the whole run. Pass the other arguments as at
        the first call, also `state` if the run began with one, and an iterator of batches from
        its beginning. Other arrays in `batches` are refused; that an iterator or a `batch_fn`
        gives the same data as before is not checked.
      progress: Called with the number of events done in this call, now and then.

    Returns:
      A `SimResult`. A run whose params are no longer finite is given up: `non_finite` names the
      first push with such a loss, and the trace ends there.

    Raises:
      ValueError: For batches shorter than the run or longer than the schedule, a schedule whose
        averaged pushes read several versions while `tx` compensates, a `send` that returns no tree
        like the params, batches without the steps of `sim.LocalSteps`, a state of another
        schedule, a checkpoint of another run, metrics of a compensation that there is not, an
        optimizer made for another number of workers, or a compensation in the wrong place of its
        chain.
      TypeError: For an argument of another kind, or a function that cannot be hashed.
      OSError: If checkpoints cannot be written where they should, or another process does it.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> tx = optax.chain(dc.compensate_delay(lambda0=0.1), optax.sgd(0.05))
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> result = sim.simulate(problem, tx, schedule, batches=jnp.ones((100, 3)))
      >>> print(jnp.round(result.params, 3))
      [1. 1. 1.]
    """
    server = as_server(tx)
    worker = OneGradient() if worker is None else worker
    recording = Recording() if recording is None else recording
    arguments.check_arguments(
        problem=problem, server=server, schedule=schedule, batches=batches, key=key,
        engine=engine, recording=recording, state=state, checkpoint=checkpoint, progress=progress,
        worker=worker,
    )  # fmt: skip
    arguments.check_one_logger(recording, "only a sweep has members")
    has_model_state = problem.model_state is not None or (
        state is not None and state.model_state is not None
    )
    program = preparation.make_program(
        schedule, problem, server, recording, batches, has_model_state=has_model_state,
        worker=worker,
    )  # fmt: skip
    start, stop = preparation.find_span(program, schedule, state, stop)
    versions = None
    if state is not None:
        state, versions = continuation.resume(state, schedule, program)
    if checkpoint is not None:
        checkpoint.prepare()
    evaluated = preparation.evaluated_versions(schedule, problem.eval_fn, recording.eval_versions)
    run = preparation.make_run(
        program,
        schedule,
        slice(start, stop),
        batches,
        key=key,
        evaluated=evaluated,
        trace_every=recording.every,
    )
    current = _first_state(program, problem, server, schedule, state)
    try:
        first = preparation.first_batch(run)
        convolves = preparation.convolves(run, current, first)
        engine = engines.choose_engine(convolves) if engine is None else engine
        samples = results.samples_seen(schedule, worker.samples(first, schedule.num_workers))
        run = run._replace(watch=watching.watch(recording, schedule, samples, stop))
        if checkpoint is None:
            current, record = engine.run(run, current, progress)
        else:
            this_run = identity.identify(run, current, first, evaluated)
            current, record = checkpoints.run_with_checkpoints(
                checkpoint, engine, run, current, progress, this_run
            )
    finally:
        run.batches.close()
    trace = results.make_trace(schedule, start, record, samples)
    return results.SimResult(
        params=current.params,
        opt_state=current.opt_state,
        model_state=step.model_state_to_evaluate(current),
        losses=trace.loss,
        trace=trace,
        evaluations=results.make_evaluations(schedule, start, record, samples),
        non_finite=results.find_non_finite(schedule, start, record),
        state=continuation.mark(current, schedule, start, versions),
    )


def _first_state(
    program: programs.Program,
    problem: Problem,
    server: Server,
    schedule: schedules.Schedule,
    state: programs.SimState | None,
) -> programs.SimState:
    """The state to begin with, in memory of its own; checks that the optimizer fits."""
    if state is None:
        current = step.initial_state(
            program,
            problem.params,
            server.opt_state,
            problem.model_state,
            schedule.num_slots,
            schedule.num_workers,
        )
    else:
        current = step.copy_tree(state)
    offers.check_num_workers((current.opt_state, current.push_state), schedule.num_workers)
    if state is None:
        preparation.check_chains(program, current, given=server.opt_state is not None)
    preconditions.check_send(program, current.params, current.opt_state)
    return current
