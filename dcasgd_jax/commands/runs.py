"""Runs of a method on the digits: what a seed decides, and what comes of it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import digits, sim
from dcasgd_jax.commands import methods, settings, study, tuning
from dcasgd_jax.schedules import protocols
from dcasgd_jax.typing import PyTree

NUM_CURVE_POINTS = 36  # about

Progress = Callable[[float], None]


class Workload(NamedTuple):
    """What a seed decides, the same for every method."""

    seed: int
    problem: sim.Problem
    rows: np.ndarray  # [num_pushes, batch_size], training images of each push
    schedule: Callable[[protocols.Protocol], sim.Schedule]


@functools.lru_cache(maxsize=32)
def make_workload(setting: settings.Setting, seed: int) -> Workload:
    """Initial parameters, batches, and a schedule for each protocol; always the same objects."""

    @functools.cache
    def schedule(protocol: protocols.Protocol) -> sim.Schedule:
        updates = num_server_updates(setting, protocol)
        return sim.make_schedule(
            setting.law, setting.num_workers, updates, seed=seed, protocol=protocol
        )

    return Workload(
        seed=seed,
        problem=digits.problem(setting.model, seed),
        rows=digits.batch_rows(digits.NUM_TRAIN, setting.batch_size, setting.num_pushes, seed),
        schedule=schedule,
    )


def num_server_updates(setting: settings.Setting, protocol: protocols.Protocol) -> int:
    """Server updates that the budget of pushes makes."""
    return setting.num_pushes // protocol.server(setting.num_workers).pushes_per_update


def train(
    setting: settings.Setting,
    method: methods.Method,
    members: Sequence[study.Member],
    progress: Progress = lambda num_pushes: None,
) -> list[study.Outcome]:
    """Trains all members at once, to how each of them ends.

    Args:
      setting: Task, cluster and budget.
      method: How to train.
      members: Hyperparameters and seeds.
      progress: Hears of pushes done.

    Returns:
      For each member the final train loss and test error, and the highest train loss on the way.
    """
    workloads = [make_workload(setting, member.seed) for member in members]
    if method.train is None:
        result = _sweep(setting, method, members, workloads, progress)
        params = jax.device_get(result.params)
        ends = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(len(members))]
        losses = result.losses
    else:
        ends, losses = [], []
        for member, workload in zip(members, workloads, strict=True):
            trained, of_gradients = method.train(setting, member.numbers, workload)
            ends.append(trained)
            losses.append(of_gradients)
            progress(setting.num_pushes)
    return [
        _outcome(setting, *of_member) for of_member in zip(workloads, ends, losses, strict=True)
    ]


def train_with_curves(
    setting: settings.Setting,
    method: methods.Method,
    members: Sequence[study.Member],
    progress: Progress = lambda num_pushes: None,
) -> list[study.Outcome]:
    """As `train`, with the train loss on the way, and what a change of one ulp comes to.

    Each member is trained twice: `train_loss_nudged` is the final train loss after every initial
    weight was moved to the next larger float. Where the two differ, the run is chaotic, and other
    machines, which add up in other orders, give other numbers.
    """
    if method.train is not None:
        return train(setting, method, members, progress)
    workloads = [make_workload(setting, member.seed) for member in members]
    nudged = [w._replace(problem=_nudged(w.problem)) for w in workloads]
    schedules = [workload.schedule(method.protocol) for workload in workloads]
    stops = curve_stops(schedules[0])
    result = _sweep(
        setting, method, [*members, *members], [*workloads, *nudged],
        lambda num_pushes: progress(num_pushes / 2),
        sim.Recording(["compensation_ratio"] if method.compensates else [], eval_versions=stops),
    )  # fmt: skip
    assert result.evaluations is not None
    params, ratios = jax.device_get(result.params), result.trace.compensation_ratio
    end = lambda i, w: _outcome(
        setting, w, jax.tree.map(lambda leaf: leaf[i], params), result.losses[i]
    )
    return [
        (ended := end(i, workload))
        | {"train_loss_nudged": end(len(members) + i, workload)["train_loss"]}
        | _course(schedule, stops, None if ratios is None else ratios[i])
        | {
            "curve_train_loss": [
                ended["initial_loss"],
                *np.asarray(result.evaluations.values.train_loss[i], np.float64).tolist(),
            ]
        }
        for i, (workload, schedule) in enumerate(zip(workloads, schedules, strict=True))
    ]


def loss_of(outcome: study.Outcome) -> float:
    """What tuning makes small: the final train loss, nan if the loss diverged or rose too high."""
    too_high = outcome["highest_loss"] > tuning.HIGHEST_LOSS * outcome["initial_loss"]
    return math.nan if too_high else outcome["train_loss"]


def has_diverged(initial_train_loss: float, final_train_loss: float) -> bool:
    """Whether the final loss is not finite, or not below both the initial one and chance."""
    return not final_train_loss < min(initial_train_loss, digits.CHANCE_LOSS)


def curve_stops(schedule: sim.Schedule) -> list[int]:
    """Versions at which a curve has a point: about `NUM_CURVE_POINTS`, the last one included."""
    points = np.linspace(0, schedule.num_updates, NUM_CURVE_POINTS + 1)[1:]
    return np.unique(np.ceil(points).astype(int)).tolist()


def _sweep(setting, method, members, workloads, progress, recording=None) -> Any:
    """Evaluates where the `recording` says, without one nowhere."""
    numbers = [member.numbers for member in members]
    hyperparams = {"learning_rate": np.array([n.learning_rate for n in numbers])}
    if method.compensates:
        hyperparams["lambda0"] = np.array([n.lambda0 for n in numbers])
    schedules = [workload.schedule(method.protocol) for workload in workloads]
    # Rounds of a barrier may leave some of the budget over; shared rows are given once.
    rows = {id(w): w.rows[: len(s)] for w, s in zip(workloads, schedules, strict=True)}
    of_one = workloads[0].problem
    return sim.sweep(
        sim.Problem(
            of_one.loss_fn,
            sim.PerMember(workload.problem.params for workload in workloads),
            eval_fn=None if recording is None else of_one.eval_fn,
        ),
        sim.Server(
            methods.make_tx(method, num_server_updates(setting, method.protocol)), send=method.send
        ),
        sim.PerMember(schedules),
        sim.PerMember(rows[id(workload)] for workload in workloads),
        hyperparams=hyperparams,
        recording=recording,
        progress=study.of_events(progress),
    )


def _outcome(
    setting: settings.Setting, workload: Workload, params: PyTree, losses: Any
) -> study.Outcome:
    """How a run ended; loss and error are nan if it diverged.

    The highest loss is that of as many gradients after one another as there are workers, which is
    less noisy than that of one.
    """
    evaluate: Any = workload.problem.eval_fn
    initial, final = float(evaluate(workload.problem.params).train_loss), evaluate(params)
    loss, error = float(final.train_loss), float(final.test_error)
    if has_diverged(initial, loss):
        loss, error = math.nan, math.nan
    whole = np.asarray(losses, np.float64)
    whole = whole[: len(whole) // setting.num_workers * setting.num_workers]
    rounds = whole.reshape(-1, setting.num_workers).mean(axis=1)
    return {
        "initial_loss": initial,
        "train_loss": loss,
        "test_error": error,
        "highest_loss": float(np.where(np.isfinite(rounds), rounds, np.inf).max()),
    }


def _course(schedule: sim.Schedule, stops: Sequence[int], ratios: Any) -> dict[str, Any]:
    """What a run goes through: its time, its staleness, its compensations."""
    # A diverged run ends in NaN; what it did before still counts.
    measured = np.zeros(0) if ratios is None else ratios[~np.isnan(ratios)]
    pushes = np.asarray(stops) * (len(schedule) // schedule.num_updates)
    return {
        "server_updates": schedule.num_updates,
        "simulated_seconds": float(schedule.time[-1]),
        "mean_staleness": float(schedule.staleness.mean()),
        "staleness_counts": np.bincount(schedule.staleness).tolist(),
        "max_compensation_ratio": float(measured.max()) if len(measured) else None,
        "median_compensation_ratio": float(np.median(measured)) if len(measured) else None,
        "curve_pushes": [0, *pushes.tolist()],
        "curve_seconds": [0.0, *schedule.time[pushes - 1].tolist()],
    }


def _nudged(problem: sim.Problem) -> sim.Problem:
    """With every initial weight at the next larger float."""
    up = lambda leaf: jnp.nextafter(leaf, jnp.inf)
    return problem._replace(params=jax.tree.map(up, problem.params))
