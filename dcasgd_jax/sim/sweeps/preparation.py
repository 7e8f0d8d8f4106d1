"""From what the user gave to `sweep` to what its members run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import arguments, chain_order, engines, offers, preconditions, preparation
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import worker as worker_part
from dcasgd_jax.sim.problem import Problem, Recording, Server
from dcasgd_jax.sim.sweeps import hyperparams as injected
from dcasgd_jax.sim.sweeps import vectorized
from dcasgd_jax.sim.work import Worker


def check_arguments(of_members: dict[str, list[Any]], problem: Problem, **shared: Any) -> None:
    """Arguments of the right kind, for every member."""
    columns = [of_members[name] for name in ("params", "schedule", "batches", "key")]
    different = {tuple(map(id, values)): values for values in zip(*columns, strict=True)}
    for params, schedule, batches, key in different.values():
        arguments.check_arguments(
            **shared,
            problem=problem._replace(params=params),
            schedule=schedule,
            batches=batches,
            key=key,
        )


def check_batches(of_members: list[Any]) -> None:
    """Batches that every member can read, in one program."""
    if any(sources.iterates(batches) for batches in of_members):
        raise TypeError(
            "The members of a sweep cannot share an iterator, which is read once: pass the batches "
            "as arrays, sim.Indexed or a batch_fn."
        )
    different = any(batches is not of_members[0] for batches in of_members)
    if different and any(map(callable, of_members)):
        raise TypeError(
            "There is one batch_fn for all members, traced into their one program: let it draw on "
            "what differs through loss_fn's key, or pass the batches as arrays."
        )


def make_program(
    of_members: dict[str, list],
    problem: Problem,
    server: Server,
    recording: Recording,
    worker: Worker,
) -> programs.Program:
    """The program that suits the schedules of all members."""
    different = list({id(schedule): schedule for schedule in of_members["schedule"]}.values())
    first = different[0]
    of_first = problem._replace(params=of_members["params"][0])
    made = [
        preparation.make_program(
            schedule,
            of_first,
            server,
            recording,
            of_members["batches"][0],
            has_model_state=problem.model_state is not None,
            worker=worker,
        )
        for schedule in different
    ]
    keeps = worker_part.keeps_state(worker, of_first.params)
    for i, (schedule, program) in enumerate(zip(different, made, strict=True)):
        properties = {
            "events": (len(schedule), len(first)),
            "updates": (schedule.num_updates, first.num_updates),
            "ways to take pushes": (program.flow, made[0].flow),
        }
        if made[0].model_state == "per_worker" or keeps:
            properties["workers"] = schedule.num_workers, first.num_workers
        for what, (of_this, wanted) in properties.items():
            if of_this != wanted:
                raise ValueError(
                    f"The schedules of a sweep must be alike, but the first has {wanted} {what} "
                    f"and another ({i} of {len(different)}) has {of_this}: sweep them apart."
                )
    return made[0]._replace(
        mixes=any(program.mixes for program in made),
        corrupts=any(program.corrupts for program in made),
        repeats=any(program.repeats for program in made),
    )


def check_starts(
    program: programs.Program,
    starts: Sequence[vectorized.Start],
    of_schedules: Sequence[schedules.Schedule],
    values: Mapping[str, Any],
) -> None:
    """The names must be there to be set, with values of the right shape; what is sent, too.

    And every member has as many workers as its optimizer, and a chain in the right order.
    """
    states = jax.eval_shape(lambda: _states(program, starts[0]))
    preconditions.check_send(program, starts[0].params, states[0])
    of_worker = jax.eval_shape(program.worker.init, starts[0].params)
    injected.check((*states, of_worker), values)
    for start, schedule in {
        (id(s.opt_state), c.num_workers): (s, c) for s, c in zip(starts, of_schedules, strict=True)
    }.values():
        states = jax.eval_shape(lambda start=start: _states(program, start))
        offers.check_num_workers(states, schedule.num_workers)
    for start in _extremes(starts):
        opt_state = push_state = None
        if start.opt_state is not None or start.hyperparams:
            states = _states(program, start)
            opt_state, push_state = injected.put(states, start.hyperparams)
        chain_order.check_server(start.params, program.tx, opt_state, program.per_push, push_state)


def _extremes(starts: Sequence[vectorized.Start]) -> list[vectorized.Start]:
    """The first member, and those with the smallest and largest value of each hyperparameter."""
    chosen = {0}
    for name in starts[0].hyperparams:
        values = [float(np.max(start.hyperparams[name])) for start in starts]
        chosen |= {int(np.argmin(values)), int(np.argmax(values))}
    return [starts[i] for i in sorted(chosen)]


def _states(program: programs.Program, start: vectorized.Start) -> tuple[Any, Any]:
    """The states of the optimizer and of what transforms each push."""
    opt_state = start.opt_state
    if opt_state is None:
        opt_state = program.tx.init(start.params)
    return opt_state, None if program.per_push is None else program.per_push.init(start.params)


def make_runs(
    program: programs.Program,
    of_members: dict[str, list],
    recording: Recording,
) -> list[engines.Run]:
    """The run of each member; members with the same inputs share them."""
    made, examples = {}, {}
    runs = []
    columns = [of_members[name] for name in ("schedule", "batches", "key")]
    for schedule, batches, key in zip(*columns, strict=True):
        known = id(schedule), id(batches)
        if known not in made:
            if isinstance(batches, sources.Indexed):
                # Moved to the device once, whoever uses them.
                given = batches.examples
                if id(given) not in examples:
                    examples[id(given)] = jax.tree.map(jnp.asarray, given)
                batches = batches._replace(examples=examples[id(given)])
            made[known] = preparation.make_run(
                program,
                schedule,
                slice(0, len(schedule)),
                batches,
                key=None,
                evaluated=preparation.evaluated_versions(
                    schedule, program.eval_fn, recording.eval_versions
                ),
                trace_every=recording.every,
            )
        run = made[known]
        runs.append(run._replace(shared=run.shared._replace(key=key)))
    batches, index = of_members["batches"], runs[0].schedule.batch
    if all(b is batches[0] for b in batches) and all(
        np.array_equal(run.schedule.batch, index) for run in made.values()
    ):
        runs = [run._replace(batches=runs[0].batches) for run in runs]
    return runs
