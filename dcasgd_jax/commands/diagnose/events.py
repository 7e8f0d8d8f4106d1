"""Events of a simulated run, stopped at: what the worker had read, what the server has by then."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import diagnostics, digits, sim, trees
from dcasgd_jax.commands import methods, runs, settings, study
from dcasgd_jax.typing import PyTree

MOMENTS = {"early": 0.1, "middle": 0.45, "late": 0.9}
"""Where in the run they begin, as fractions of its pushes; the learning rate falls at 0.5, 0.75."""

WINDOW = 0.05  # of the pushes: how far the events of a moment are spread

EPS = 1e-7

CONTROL = "uniform"
_OTHERS = tuple(n for n in diagnostics.CURVATURES if n not in ("hessian", CONTROL))
NAMES = (*_OTHERS, "rows", "rotated", "hessian", "frozen_jacobian", CONTROL)
"""Curvatures that are explained, as they are shown."""

Progress = Callable[[int], None]


class Stop(NamedTuple):
    """The server and a worker just before a push is applied."""

    event: int
    params: PyTree
    stale_params: PyTree  # where the gradient of the push was taken
    rows: np.ndarray  # its training images
    mean_square: PyTree  # of the adaptive strength, from the pushes before
    rotated: dc.curvatures.RotatedState  # likewise


def chosen_events(num_pushes: int, num_workers: int, per_moment: int) -> dict[str, list[int]]:
    """Events of each moment, evenly spread over its window, after every worker could push once."""
    span = max(round(WINDOW * num_pushes), per_moment)
    firsts, end = [], num_workers
    for fraction in MOMENTS.values():
        firsts.append(max(round(fraction * num_pushes), end))
        end = firsts[-1] + span
    end = num_pushes  # of a short run the windows lie side by side at its end
    for index in reversed(range(len(firsts))):
        end = firsts[index] = min(firsts[index], end - span)
    spread = lambda first: [first + i * span // per_moment for i in range(per_moment)]
    return dict(zip(MOMENTS, map(spread, firsts), strict=True))


def diagnose_run(
    setting: settings.Setting,
    learning_rate: float,
    seed: int,
    per_moment: int,
    progress: Progress = lambda num_pushes: None,
) -> study.Outcome:
    """Runs asynchronous SGD, and explains some of its pushes; fewer if its params are lost.

    Returns:
      The train loss at first, and at the last event that was looked at; whether it diverged, as
      `runs.has_diverged` says of them; and of each event its moment, worker and staleness, and the
      numbers of each curvature by name.
    """
    schedule = sim.make_schedule(setting.law, setting.num_workers, setting.num_pushes, seed=seed)
    chosen = chosen_events(setting.num_pushes, setting.num_workers, per_moment)
    moment_of = {event: moment for moment, events in chosen.items() for event in events}
    problem = digits.problem(setting.model, seed)
    evaluate: Any = problem.eval_fn
    initial, last = float(evaluate(problem.params).train_loss), math.nan
    found = []
    for stop in stops(setting, schedule, learning_rate, seed, sorted(moment_of), progress):
        numbers = jax.device_get(
            _explain(setting.model, setting.batch_size, stop._replace(event=0))
        )
        last = float(evaluate(stop.params).train_loss)
        found.append(
            {
                "moment": moment_of[stop.event],
                "event": stop.event,
                "worker": int(schedule.worker[stop.event]),
                "staleness": int(schedule.staleness[stop.event]),
                "explained": {
                    name: {field: float(value) for field, value in explained._asdict().items()}
                    for name, explained in numbers.items()
                },
            }
        )
    lost = len(found) < len(moment_of)
    return {
        "initial_train_loss": initial,
        "last_train_loss": math.nan if lost else last,
        "diverged": lost or runs.has_diverged(initial, last),
        "events": found,
    }


def stops(
    setting: settings.Setting,
    schedule: sim.Schedule,
    learning_rate: float,
    seed: int,
    events: Sequence[int],
    progress: Progress = lambda num_pushes: None,
) -> Iterator[Stop]:
    """Yields a `Stop` before each of the events, increasing from 1 on; the run goes on in between.

    The learning rate rises and falls as in `dcasgd-jax compare`; what the seed decides is the
    same, too. Ends early where the simulator gives the run up.
    """
    problem = digits.problem(setting.model, seed)._replace(eval_fn=None)
    rows = digits.batch_rows(digits.NUM_TRAIN, setting.batch_size, len(schedule), seed)
    tx = _make_tx(learning_rate, len(schedule), setting.batch_size)
    state, done = None, 0
    for event in events:
        # One compiled step for pieces of any length.
        result = sim.simulate(
            problem,
            tx,
            schedule,
            rows,
            engine=sim.HostEngine(),
            state=state,
            stop=event,
        )
        state = result.state
        if int(state.event) < event:
            return
        progress(event - done)
        done = event
        stale_params = state.params
        if schedule.staleness[event]:
            slot = int(schedule.slots.read[event])
            stale_params = jax.tree.map(lambda kept: kept[slot], state.snapshots.params)  # noqa: B023
        kinds = (dc.curvatures.AdaptiveState, dc.curvatures.RotatedState)
        adaptive, rotated = trees.find_states(state.opt_state, *kinds)
        yield Stop(event, state.params, stale_params, rows[event], adaptive.mean_square, rotated)


@functools.cache
def _make_tx(
    learning_rate: float, num_updates: int, batch_size: int
) -> optax.GradientTransformationExtraArgs:
    """Asynchronous SGD that keeps, without using them, the states of two curvatures."""
    factor = methods.rate_factor(num_updates)
    return optax.chain(
        dc.compensate_delay(0.0, curvature=dc.curvatures.adaptive(methods.MS_DECAY, EPS)),
        dc.compensate_delay(0.0, curvature=dc.curvatures.rotated(batch_size)),
        optax.scale_by_learning_rate(lambda count: learning_rate * factor(count)),
    )


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def _explain(model: str, batch_size: int, stop: Stop) -> dict[str, diagnostics.Explanation]:
    loss_fn = digits.problem(model).loss_fn
    images, labels = (jnp.asarray(array) for array in digits.load().train)
    loss_of = lambda logits, rows: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
    )
    stale_grads = jax.grad(loss_fn)(stop.stale_params, jnp.asarray(stop.rows))
    return diagnostics.explain(
        loss_fn,
        stop.params,
        stop.stale_params,
        stop.rows,
        mean_square=dc.update_mean_square(stop.mean_square, stale_grads, methods.MS_DECAY),
        eps=EPS,
        names=NAMES,
        batch_size=batch_size,
        rotated_state=stop.rotated,
        outputs=(lambda params, rows: digits.logits(params, images[rows]), loss_of),
    )
