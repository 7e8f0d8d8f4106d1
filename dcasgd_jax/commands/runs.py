"""One run: a method on a workload, with its numbers."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dcasgd_jax import digits, sim
from dcasgd_jax.commands import methods, settings
from dcasgd_jax.schedules import protocols
from dcasgd_jax.typing import PyTree

NUM_CURVE_POINTS = 36  # about

Progress = Callable[[int], None]


class Workload(NamedTuple):
    """What a seed decides, the same for every method."""

    seed: int
    params: PyTree
    rows: np.ndarray  # [num_pushes, batch_size], training images of each push
    schedules: dict[protocols.Protocol, sim.Schedule]


class Outcome(NamedTuple):
    """How a run ended; both are nan if it diverged."""

    train_loss: float
    test_error: float  # fraction


@dataclasses.dataclass(frozen=True)
class Run:
    """Numbers of one run.

    `diverged` means that the final train loss is not finite, or not below both the initial one and
    that of a uniform guess.
    """

    method: str
    seed: int
    learning_rate: float
    lambda0: float | None
    initial_train_loss: float
    final_train_loss: float
    final_test_error: float  # fraction
    diverged: bool
    server_updates: int
    simulated_seconds: float
    mean_staleness: float
    staleness_counts: list[int]  # pushes of staleness 0, 1, ...
    max_compensation_ratio: float | None  # of |compensation| / |gradient|; None: none measured
    median_compensation_ratio: float | None
    curve_pushes: list[int]
    curve_seconds: list[float]  # simulated
    curve_train_loss: list[float]


def make_workload(setting: settings.Setting, seed: int) -> Workload:
    """Initial parameters, batches and one schedule per protocol for `seed`."""
    schedules = {}
    for method in methods.METHODS.values():
        if method.protocol not in schedules:
            schedules[method.protocol] = sim.make_schedule(
                setting.law,
                setting.num_workers,
                num_server_updates(setting, method),
                seed=seed,
                protocol=method.protocol,
            )
    return Workload(
        seed=seed,
        params=digits.problem(setting.model, seed).params,
        rows=digits.batch_rows(digits.NUM_TRAIN, setting.batch_size, setting.num_pushes, seed),
        schedules=schedules,
    )


def problem_of(setting: settings.Setting, workload: Workload) -> sim.Problem:
    """What is trained; it is evaluated between runs, not in them."""
    return digits.problem(setting.model)._replace(params=workload.params, eval_fn=None)


def evaluation(setting: settings.Setting) -> Callable[[PyTree], digits.Evaluation]:
    """How good some parameters are."""
    evaluate: Any = digits.problem(setting.model).eval_fn
    return evaluate


def rows_of(workload: Workload, method: methods.Method) -> np.ndarray:
    """The batches of a method's run: rounds of a barrier may leave some of the budget over."""
    return workload.rows[: len(workload.schedules[method.protocol])]


def num_server_updates(setting: settings.Setting, method: methods.Method) -> int:
    """Server updates that the budget of pushes makes."""
    return setting.num_pushes // method.protocol.server(setting.num_workers).pushes_per_update


def segment_length(setting: settings.Setting) -> int:
    """Pushes between two points of a curve: whole rounds of M, and a divisor of all if possible.

    Segments of one length share one compiled program.
    """
    rounds = setting.num_pushes // setting.num_workers
    target = max(rounds // NUM_CURVE_POINTS, 1)
    near = [n for n in range(max(target // 2, 1), 2 * target + 1) if rounds % n == 0]
    best = min(near, key=lambda n: abs(n - target), default=target)
    return best * setting.num_workers


def train(
    setting: settings.Setting,
    method: methods.Method,
    hyperparameters: methods.Hyperparameters,
    workload: Workload,
    progress: Progress = lambda num_pushes: None,
    *,
    curve: bool = True,
) -> Run:
    """Trains once; `progress` hears of pushes done, `curve=False` evaluates only both ends."""
    evaluate = evaluation(setting)
    schedule = workload.schedules[method.protocol]
    length = segment_length(setting)
    stops = [*(range(length, len(schedule), length) if curve else ()), len(schedule)]
    end = evaluate(workload.params)
    losses, traces = [float(end.train_loss)], []
    for result in _segments(setting, method, hyperparameters, workload, stops):
        end = evaluate(result.params)
        losses.append(float(end.train_loss))
        traces.append(result.trace)
        progress(len(result.trace.event))
    return Run(
        method=method.name,
        seed=workload.seed,
        learning_rate=hyperparameters.learning_rate,
        lambda0=hyperparameters.lambda0,
        initial_train_loss=losses[0],
        final_train_loss=losses[-1],
        final_test_error=float(end.test_error),
        diverged=has_diverged(losses[0], losses[-1]),
        server_updates=schedule.num_updates,
        curve_pushes=[0, *stops],
        curve_seconds=[0.0, *schedule.time[np.asarray(stops) - 1].tolist()],
        curve_train_loss=losses,
        **_trace_numbers(traces),
    )


def final_train_losses(
    setting: settings.Setting,
    method: methods.Method,
    members: Sequence[tuple[methods.Hyperparameters, Workload]],
    progress: Progress = lambda num_pushes: None,
) -> np.ndarray:
    """Final train loss of each member [num_members], nan if it diverged; trains all at once.

    What `train` says of each, but for rounding; `progress` hears of pushes done.
    """
    return np.array([o.train_loss for o in final_outcomes(setting, method, members, progress)])


def final_outcomes(
    setting: settings.Setting,
    method: methods.Method,
    members: Sequence[tuple[methods.Hyperparameters, Workload]],
    progress: Progress = lambda num_pushes: None,
) -> list[Outcome]:
    """How each member ends; trains all at once. `progress` hears of pushes done."""
    numbers = [hyperparameters for hyperparameters, _ in members]
    workloads = [workload for _, workload in members]
    hyperparams = {"learning_rate": np.array([n.learning_rate for n in numbers])}
    if method.compensates:
        hyperparams["lambda0"] = np.array([n.lambda0 for n in numbers])
    # One array for each workload: members that share it are given it once.
    rows = {id(workload): rows_of(workload, method) for workload in workloads}
    done = 0

    def advance(num_events: int) -> None:
        nonlocal done
        progress(num_events - done)
        done = num_events

    result = sim.sweep(
        problem_of(setting, workloads[0])._replace(
            params=sim.PerMember(workload.params for workload in workloads)
        ),
        sim.Server(methods.make_tx(method, num_server_updates(setting, method)), send=method.send),
        sim.PerMember(workload.schedules[method.protocol] for workload in workloads),
        sim.PerMember(rows[id(workload)] for workload in workloads),
        hyperparams=hyperparams,
        progress=advance,
    )
    params = jax.device_get(result.params)
    of_member = lambda i: jax.tree.map(lambda leaf: leaf[i], params)
    return [outcome(setting, workload, of_member(i)) for i, workload in enumerate(workloads)]


def outcome(setting: settings.Setting, workload: Workload, params: PyTree) -> Outcome:
    """What the final parameters of a run on a workload are worth."""
    evaluate = evaluation(setting)
    initial, final = float(evaluate(workload.params).train_loss), evaluate(params)
    loss = float(final.train_loss)
    if has_diverged(initial, loss):
        return Outcome(math.nan, math.nan)
    return Outcome(loss, float(final.test_error))


def has_diverged(initial_train_loss: float, final_train_loss: float) -> bool:
    """Whether the final loss is not finite, or not below both the initial one and chance."""
    return not final_train_loss < min(initial_train_loss, digits.CHANCE_LOSS)


def _segments(
    setting: settings.Setting,
    method: methods.Method,
    hyperparameters: methods.Hyperparameters,
    workload: Workload,
    stops: Sequence[int],
) -> Iterator[sim.SimResult]:
    """The run in pieces that end at `stops`."""
    tx = methods.make_tx(method, num_server_updates(setting, method))
    opt_state = methods.init_opt_state(tx, workload.params, hyperparameters)
    # Chunks as long as a segment, whatever the stops: one compiled program for all.
    engine = sim.ScanEngine(chunk_size=segment_length(setting))
    recording = sim.Recording(metrics=["compensation_ratio"] if method.compensates else [])
    state = None
    for stop in stops:
        result = sim.simulate(
            problem_of(setting, workload),
            sim.Server(tx, opt_state=opt_state),
            workload.schedules[method.protocol],
            rows_of(workload, method),
            engine=engine,
            recording=recording,
            state=state,
            stop=stop,
        )
        state = result.state
        yield result


def _trace_numbers(traces: list[sim.Trace]) -> dict[str, Any]:
    staleness = np.concatenate([trace.staleness for trace in traces])
    ratios = [t.compensation_ratio for t in traces if t.compensation_ratio is not None]
    # A diverged run ends in NaN; what it did before still counts.
    measured = np.concatenate(ratios) if ratios else np.zeros(0)
    measured = measured[~np.isnan(measured)]
    return {
        "simulated_seconds": float(traces[-1].time[-1]),
        "mean_staleness": float(staleness.mean()),
        "staleness_counts": np.bincount(staleness).tolist(),
        "max_compensation_ratio": float(measured.max()) if len(measured) else None,
        "median_compensation_ratio": float(np.median(measured)) if len(measured) else None,
    }
