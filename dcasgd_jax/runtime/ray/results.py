"""What a live run returns, and how it is replayed in the simulator."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.runtime import history, step
from dcasgd_jax.runtime.bookkeeping import Counts
from dcasgd_jax.runtime.refusals import GivenUp
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import recording
from dcasgd_jax.sim import results as sim_results
from dcasgd_jax.sim import step as sim_step
from dcasgd_jax.sim.problem import Problem, Server
from dcasgd_jax.sim.simulate import simulate
from dcasgd_jax.sim.work import OneGradient, Worker
from dcasgd_jax.typing import PyTree


@document_fields
class Run(NamedTuple):
    """What `train` returns.

    Attributes:
      result: As from `sim.simulate`.
      schedule: Who pushed what when; of the first shard if there are several.
      number: Int64 [num_events]: event k used batch `number[k]` of its worker.
      shards: The same for each shard.
      counts: Of all shards together.
      seconds: Wall time of training, also that before an interruption.
      wire_dtype: As given to `train`.
      given_up: Why the run ended before its last update, if it did.
    """

    result: sim_results.SimResult
    schedule: Schedule
    number: np.ndarray
    shards: tuple[history.Recorded, ...]
    counts: Counts
    seconds: float
    wire_dtype: str | None
    given_up: GivenUp | None = None

    @property
    def reads_are_consistent(self) -> bool:
        """Whether every gradient was taken at one version of the whole model."""
        first, *others = map(_by_gradient, self.shards)
        return all(np.array_equal(first, other) for other in others)


def _by_gradient(shard: history.Recorded) -> np.ndarray:
    """Which version each gradient read and met, whatever the order within one version."""
    schedule = shard.schedule
    columns = (schedule.worker, shard.number, schedule.read_version, schedule.version)
    order = np.lexsort((schedule.version, shard.number, schedule.worker))
    return np.stack([*columns, schedule.applied])[:, order]


def make_result(
    params: PyTree,
    states: list[programs.SimState],
    of_first: history.Recorded,
    metrics: dict[str, np.ndarray],
    of_push: np.ndarray,
    given_up: GivenUp | None,
    policy: programs.ModelStatePolicy,
) -> sim_results.SimResult:
    """The result of a live run as the simulator would give it."""
    schedule, loss = of_first.schedule, of_first.loss
    num_events = len(schedule)
    suspect = ~np.isfinite(loss)
    if given_up is not None:  # a gradient may be infinite where its loss is not
        suspect[given_up.event] = True
    bad = np.flatnonzero(suspect)
    record = recording.Record(
        kept=np.arange(num_events),
        metrics=programs.Metrics(loss=loss, **metrics),
        evaluated=np.zeros(0, np.int64),
        evaluations=None,
        first_non_finite=int(bad[0]) if len(bad) else None,
        lost=False,
    )
    samples = sim_results.samples_seen(schedule, of_push)
    trace = sim_results.make_trace(schedule, 0, record, samples)
    one, model_state = len(states) == 1, states[0].model_state
    if policy == "per_worker":
        pushed = np.bincount(schedule.worker[~schedule.corrupt], minlength=schedule.num_workers) > 0
        model_state = sim_step.used_mean(model_state, pushed)
    return sim_results.SimResult(
        params=params,
        opt_state=states[0].opt_state if one else tuple(state.opt_state for state in states),
        model_state=model_state,
        losses=trace.loss,
        trace=trace,
        evaluations=None,
        non_finite=sim_results.find_non_finite(schedule, 0, record),
        state=states[0] if one else tuple(states),  # type: ignore[arg-type]
    )


def replay(
    run: Run,
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    batches_fn: Callable[[int, int], PyTree],
    *,
    worker: Worker | None = None,
    **options: Any,
) -> sim_results.SimResult:
    """Repeats a live run in the simulator, event for event, on one device.

    Args:
      run: What `train` returned.
      problem: As given to `train`.
      tx: As given to `train`.
      batches_fn: As given to `train`; called here with the same workers and numbers.
      worker: As given to `train`.
      options: Further arguments of `sim.simulate`, such as `recording=`.

    Returns:
      What `sim.simulate` returns; the params are those of the run to float32 rounding.

    Raises:
      ValueError: If shards applied the pushes in different orders: their gradients were taken at
        weights that were never a version, which no schedule can say. If workers keep something
        from push to push, such as an inner optimizer, and one of them, or a server, was restarted:
        what was lost then is not on record. If pushes were refused as not finite and each worker
        has a model state, which the simulator's keep. If workers take local steps from rounded
        weights.

    Example:
      >>> from dcasgd_jax.runtime import ray
      >>> run = ray.train(
      ...     problem, tx, batches_fn, num_workers=2, num_updates=50)  # doctest: +SKIP
      >>> again = ray.replay(run, problem, tx, batches_fn)  # doctest: +SKIP
    """
    if not run.reads_are_consistent:
        raise ValueError(
            f"The {len(run.shards)} shards of this run applied pushes in different orders, so "
            "workers read mixtures of versions: no schedule can replay that. Use num_shards=1."
        )
    worker = OneGradient() if worker is None else worker
    _check_kept(run, problem, worker)
    pushes = zip(run.schedule.worker.tolist(), run.number.tolist(), run.schedule.batch, strict=True)

    def batches() -> Iterator[PyTree]:
        for event, (worker, number, batch) in enumerate(pushes):
            if batch == event:
                yield jax.tree.map(np.asarray, batches_fn(worker, number))

    if run.wire_dtype is not None:
        problem = problem._replace(loss_fn=step.rounded_loss(problem.loss_fn))
    return simulate(problem, tx, run.schedule, batches(), worker=worker, **options)


def _check_kept(run: Run, problem: Problem, worker: Worker) -> None:
    """What a worker did must follow from the pushes that are on record."""
    if run.wire_dtype is not None and not isinstance(worker, OneGradient):
        raise ValueError(
            f"The weights were rounded to {run.wire_dtype} on their way, and workers took local "
            "steps from there: that cannot be replayed. Train with wire_dtype=None."
        )
    counts = run.counts
    own_states = problem.model_state is not None and problem.model_state_policy == "per_worker"
    if counts.non_finite and own_states:
        raise ValueError(
            f"{counts.non_finite} pushes of this run were refused as not finite, and the model "
            "state that came with them: a worker of the simulator keeps what it computes, so this "
            'cannot be replayed. With model_state_policy="server" it can.'
        )
    again = counts.worker_restarts + counts.server_restarts + counts.unknown_version
    if again and jax.eval_shape(worker.init, problem.params) is not None:
        raise ValueError(
            "Workers of this run keep something from push to push, and it was interrupted "
            f"({again} restarts or pushes refused because of one): what was lost is not on record, "
            'so it cannot be replayed. sim.LocalSteps(..., inner_state="reset") keeps nothing.'
        )
