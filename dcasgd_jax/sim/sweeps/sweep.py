"""`sweep`: one simulation for many members, that differ in numbers, seeds or schedules, at once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from dcasgd_jax import checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import arguments, engines, preconditions, preparation, results, watching
from dcasgd_jax.sim.problem import Problem, Recording, Server, as_server
from dcasgd_jax.sim.simulate import simulate
from dcasgd_jax.sim.sweeps import host_threads, members, vectorized
from dcasgd_jax.sim.sweeps import layout as layouts
from dcasgd_jax.sim.sweeps import preparation as sweep_preparation
from dcasgd_jax.sim.sweeps import results as sweep_results
from dcasgd_jax.sim.sweeps.members import PerMember
from dcasgd_jax.sim.work import OneGradient, Worker
from dcasgd_jax.typing import PyTree


def sweep(
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    schedule: schedules.Schedule | PerMember,
    batches: PyTree | Callable[[jax.Array, jax.Array], PyTree] | PerMember,
    *,
    worker: Worker | None = None,
    hyperparams: Mapping[str, Any] | None = None,
    key: jax.Array | PerMember | None = None,
    engine: engines.Engine | None = None,
    devices: Sequence[Any] | None = None,
    at_once: int | None = None,
    chunk_size: int = 1024,
    recording: Recording | None = None,
    progress: Callable[[int], None] | None = None,
) -> sweep_results.SweepResult:
    r"""Simulates many members at once; each is what `simulate` makes of it alone.

    Members differ in injected hyperparameters, and in everything that is wrapped in
    `sim.PerMember`; whatever is not wrapped is one for all. One compiled program runs them: groups
    of `at_once` members vectorized, the groups spread over the devices and, on the CPU, over
    threads for the cores that are left, without any communication. A member whose loss is no longer
    finite disturbs no other.

    Convolutions on the CPU are far slower inside a loop, and again when vectorized, so there the
    members run with `HostEngine`, one on each core; with a logger, one after another.

    Args:
      problem: As in `simulate`, and so is every argument that is not explained here. Its `params`
        and `model_state` may be `sim.PerMember`.
      tx: Built with `optax.inject_hyperparams` if hyperparameters are swept; or a `sim.Server` with
        one, whose `opt_state` (before the hyperparameters are set) may be `sim.PerMember`. A `send`
        finds a learning rate that is swept among the injected hyperparameters of `opt_state`.
      schedule: One, or one for each member with as many events and updates as the others.
      batches: A tree of arrays, `sim.Indexed` or a `batch_fn`; no iterator, and one `batch_fn` for
        all members. Trees that differ are copied to the devices by the chunk; rows of `sim.Indexed`
        into the same examples are not much to copy.
      worker: One for all members.
      hyperparams: Names and values `[num_members]`, set wherever the name occurs among the injected
        hyperparameters of the server's `tx` and `per_push`, and of what the worker keeps (the
        `inner_tx` of `sim.LocalSteps`); `sim.grid` makes all combinations.
      key: PRNG key.
      engine: An engine runs the members one after another. Default: all at once, as above.
      devices: To spread members over. Default: all local ones.
      at_once: Members that one device vectorizes. Default: all that it has; on the CPU as many as
        have 10,000 parameters together, so one by one from 5,000 on, which is faster there.
      chunk_size: Events per compiled scan ≥ 1; bounds the memory of batches and reports.
      recording: As in `simulate`.
      progress: Called with the number of events done by all members together, now and then.

    Returns:
      A `SweepResult`: stacked, and `member(i)` as `simulate` would have returned it.

    Raises:
      ValueError: For lengths that differ, an unknown or scheduled hyperparameter, no members,
        schedules that do not fit together, and as in `simulate`.
      TypeError: For batches that are an iterator, and as in `simulate`.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> @optax.inject_hyperparams
      ... def tx(learning_rate, lambda0):
      ...     return optax.chain(dc.compensate_delay(lambda0), optax.sgd(learning_rate))
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> result = sim.sweep(
      ...     problem, tx(learning_rate=0.0, lambda0=0.0), schedule, jnp.ones((100, 3)),
      ...     hyperparams=sim.grid(learning_rate=[0.01, 0.05], lambda0=[0.0, 0.1]))
      >>> result.params.shape, result.losses.shape
      ((4, 3), (4, 100))
    """
    server = as_server(tx)
    worker = OneGradient() if worker is None else worker
    recording = Recording() if recording is None else recording
    arguments.check_problem_kind(problem)
    arguments.check_recording(recording)
    preconditions.check_policy(problem.model_state_policy)
    checks.check_kind(
        "hyperparams", hyperparams or {}, lambda value: isinstance(value, Mapping),
        "a dict of names and values, such as sim.grid makes one",
    )  # fmt: skip
    hyperparams = {name: np.asarray(values) for name, values in (hyperparams or {}).items()}
    given = {
        "params": problem.params,
        "schedule": schedule,
        "batches": batches,
        "key": key,
        "model_state": problem.model_state,
        "opt_state": server.opt_state,
        "Recording.logger": recording.logger,
    }
    num_members = members.count(hyperparams, **given)
    of_members = {name: members.spread(value, num_members) for name, value in given.items()}
    sweep_preparation.check_arguments(
        of_members, problem, server=server._replace(opt_state=None), engine=engine,
        recording=recording, progress=progress, worker=worker,
    )  # fmt: skip
    chunk_size = checks.check_count("chunk_size", chunk_size)
    if at_once is not None:
        at_once = checks.check_count("at_once", at_once)
    sweep_preparation.check_batches(of_members["batches"])
    program = sweep_preparation.make_program(of_members, problem, server, recording, worker)
    starts = [
        vectorized.Start(
            of_members["params"][i],
            of_members["opt_state"][i],
            of_members["model_state"][i],
            {name: values[i] for name, values in hyperparams.items()},
        )
        for i in range(num_members)
    ]
    sweep_preparation.check_starts(program, starts, of_members["schedule"], hyperparams)
    runs = sweep_preparation.make_runs(program, of_members, recording)
    of_push, convolves = _look_at_a_gradient(program, runs[0], starts[0])
    on_host = _platform(devices) == "cpu" and convolves and engine is None
    if on_host and recording.logger is not None:
        engine = engines.HostEngine()  # a logger is called in the thread that knows it
    if engine is not None:
        one = functools.partial(_run_one, problem, server, engine, worker)
        finished = _one_by_one(one, program, runs, starts, of_members, recording, progress)
        return sweep_results.from_members(hyperparams, runs, of_push, finished)
    together = _together(program, runs, starts, recording, of_push)
    if on_host:
        states, records = host_threads.run(together, progress)
    else:
        layout = _layout(starts, devices, at_once)
        states, records = vectorized.run(together, layout, chunk_size, progress)
    return sweep_results.from_records(hyperparams, runs, of_push, states, records)


def _together(program, runs, starts, recording, of_push) -> vectorized.Members:
    return vectorized.Members(
        program=program,
        runs=[_watched(run, recording, i, of_push) for i, run in enumerate(runs)],
        starts=starts,
        num_slots=max(run.schedule.num_slots for run in runs),
        num_workers=runs[0].schedule.num_workers,
    )


def _layout(starts, devices, at_once) -> layouts.Layout:
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(starts[0].params))
    return layouts.make_layout(len(starts), devices, at_once, size)


def _platform(devices: Sequence[Any] | None) -> str:
    """Of the devices, of which there is at least one."""
    if devices is None:
        return jax.default_backend()
    if not len(devices):
        raise ValueError("devices is empty: give at least one, or None for all local ones.")
    return devices[0].platform


def _look_at_a_gradient(program, run, start) -> tuple[np.ndarray, bool]:
    """Samples of each worker's push, and whether their gradient uses convolutions."""
    first, num_workers = preparation.first_batch(run), run.schedule.num_workers
    make = functools.partial(vectorized.initial_state, program, 1, num_workers, start)
    convolves = preparation.convolves(run, jax.eval_shape(make), first)
    return program.worker.samples(first, num_workers), convolves


def _one_by_one(simulate_one, program, runs, starts, of_members, recording, progress):
    """What `simulate` returns for each member."""
    finished = []
    for i, (run, start) in enumerate(zip(runs, starts, strict=True)):
        schedule = run.schedule
        done = i * len(schedule)
        finished.append(
            simulate_one(
                start,
                schedule,
                of_members["batches"][i],
                key=of_members["key"][i],
                recording=watching.of_member(recording, i),
                state=vectorized.initial_state(
                    program, schedule.num_slots, schedule.num_workers, start
                ),
                progress=progress and (lambda events, done=done: progress(done + events)),
            )
        )
    return finished


def _watched(run, recording, member, of_push):
    """A run that its member's logger hears of, if there is one."""
    if recording.logger is None:
        return run
    samples = results.samples_seen(run.schedule, of_push)
    of_one = watching.of_member(recording, member)
    return run._replace(watch=watching.watch(of_one, run.schedule, samples, len(run.schedule)))


def _run_one(problem, server, engine, worker, start, schedule, batches, **of_member):
    """One member alone; its state has the hyperparameters in it."""
    of_one = problem._replace(params=start.params, model_state=start.model_state)
    return simulate(
        of_one, server._replace(opt_state=None), schedule, batches,
        engine=engine, worker=worker, **of_member,
    )  # fmt: skip
