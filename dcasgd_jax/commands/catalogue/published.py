"""The rivals that `sim.sweep` can train: transformations, and what workers are sent."""

from collections.abc import Callable

import jax
import optax

import dcasgd_jax as dc
from dcasgd_jax import rivals
from dcasgd_jax.commands import methods
from dcasgd_jax.rivals import prediction

REMEMBERED_ROUNDS = 8  # rounds of all workers whose step sizes `adaptive_step_sizes` remembers


def choices(num_workers: int, num_pushes: int, momentum: float | None) -> list[methods.Method]:
    """Rivals of any optimizer, and with momentum those that are about it."""
    found = _of_any_optimizer(num_workers, num_pushes, momentum)
    if momentum is None:
        return found
    return [*found, *_of_momentum(num_workers, momentum, methods.rate_factor(num_pushes))]


def _of_any_optimizer(
    num_workers: int, num_pushes: int, momentum: float | None
) -> list[methods.Method]:
    # The horizon of a prediction: the delay of workers that take turns.
    delay = num_workers - 1
    buffer_size = max(num_workers // 2, 1)
    direction = lambda: optax.identity() if momentum is None else optax.trace(momentum)
    by_staleness = lambda rule: lambda rate: [
        direction(), optax.scale_by_learning_rate(rate), rivals.scale_by_staleness(rule)
    ]  # fmt: skip
    return [
        _rival("staleness-lr", "rate / staleness", by_staleness(rivals.inverse_staleness)),
        _rival(
            "delay-adaptive",
            "rate by min(1, M / staleness)",
            by_staleness(rivals.delay_adaptive(num_workers)),
        ),
        _wu("wu-1", "delay-adaptive steps, form 1", num_workers, direction, 0.9),
        _wu("wu-2", "delay-adaptive steps, form 2", num_workers, direction, None),
        _rival(
            "drop-stale",
            "drops gradients of staleness ≥ M",
            lambda rate: [
                rivals.drop_stale(direction(), num_workers, num_workers=num_workers),
                optax.scale_by_learning_rate(rate),
            ],
        ),
        _rival(
            "fedbuff",
            "an update from M / 2 pushes",
            lambda rate: [
                rivals.fedbuff(direction(), buffer_size, num_workers=num_workers),
                optax.scale_by_learning_rate(rate),
            ],
            rate_scale=buffer_size,
        ),
        _rival(
            "pipemare",
            "small steps at first (T1)",
            lambda rate: [
                direction(),
                optax.scale_by_learning_rate(rate),
                rivals.pipemare_rescale(delay, max(num_pushes // 4, 1)),
            ],
        ),
        _rival(
            "step-prediction",
            "workers get w + (M - 1) last steps",
            lambda rate: [
                direction(),
                optax.scale_by_learning_rate(rate),
                rivals.remember_step(),
            ],
            send=rivals.sends.step_prediction(delay),
        ),
    ]


def _of_momentum(num_workers: int, momentum: float, factor: optax.Schedule) -> list[methods.Method]:
    delay = num_workers - 1
    per_worker = lambda **options: rivals.per_worker_momentum(momentum, num_workers, **options)
    then = lambda *stages: lambda rate: [*stages, optax.scale_by_learning_rate(rate)]
    look_ahead = _decayed(rivals.sends.dana_look_ahead(momentum), factor)
    return [
        _rival("multi-asgd", "a momentum per worker", then(per_worker())),
        _rival("dana-zero", "multi-asgd, look-ahead sent", then(per_worker()), send=look_ahead),
        _rival("dana-slim", "multi-asgd, Nesterov's form", then(per_worker(nesterov=True))),
        _dana_dc(per_worker, look_ahead),
        _rival(
            "velocity-prediction",
            "workers get w - (M - 1) rate velocity",
            then(optax.trace(momentum)),
            send=_decayed(rivals.sends.velocity_prediction(delay), factor),
        ),
        _rival(
            "msnag",
            "the same, with the velocity's decay",
            then(optax.trace(momentum)),
            send=_decayed(rivals.sends.multi_step_nesterov(delay, momentum), factor),
        ),
        _rival(
            "spike", "spike compensation", then(rivals.spike_compensation(momentum, delay))
        ),
        _rival("ordered", "ordered momentum", then(rivals.ordered_momentum(momentum, num_workers))),
        _rival(
            "delayed-nesterov",
            "momentum at every M-th push",
            lambda rate: [rivals.delayed_nesterov(rate, num_workers, momentum)],
            rate_scale=num_workers,
        ),
        _rival(
            "aagd",
            "momentum compensation",
            lambda rate: [optax.scale_by_learning_rate(rate), rivals.accelerate(momentum)],
            send=rivals.sends.momentum_compensation(delay, momentum),
        ),
    ]  # fmt: skip


def _rival(
    name: str,
    title: str,
    stages: Callable[[optax.Schedule], list],
    *,
    send: Callable | None = None,
    rate_scale: float = 1.0,
) -> methods.Method:
    def recipe(learning_rate, number, factor):
        del number
        return optax.chain(*stages(lambda count: learning_rate * factor(count)))

    return methods.Method(name, title, rate_scale=rate_scale, recipe=recipe, send=send)


def _wu(name, title, num_workers, direction, alpha) -> methods.Method:
    def recipe(learning_rate, number, factor):
        del number
        remembered = REMEMBERED_ROUNDS * num_workers
        steps = rivals.adaptive_step_sizes(learning_rate, remembered, alpha=alpha)
        return optax.chain(direction(), steps, optax.scale_by_schedule(factor))

    # The bound is shared by the gradients under way.
    return methods.Method(name, title, rate_scale=num_workers, recipe=recipe)


def _decayed(send: prediction.Send, factor: optax.Schedule) -> prediction.Send:
    """`send`, which knows only the injected learning rate, with the factor on that rate."""

    def decayed(params, opt_state):
        at_present = factor(opt_state.count)
        sent = send(params, opt_state)
        # What is added to the params is proportional to the learning rate.
        return jax.tree.map(lambda w, w_sent: w + at_present * (w_sent - w), params, sent)

    return decayed


def _dana_dc(per_worker, look_ahead) -> methods.Method:
    def recipe(learning_rate, lambda0, factor):
        return optax.chain(
            dc.compensate_delay(lambda0, curvature=methods.ADAPTIVE),
            per_worker(),
            optax.scale_by_learning_rate(lambda count: learning_rate * factor(count)),
        )

    title = "dana-zero, compensated as dcasgd-a"
    return methods.Method("dana-dc", title, numbers=(0.5, 2.0, 8.0), recipe=recipe, send=look_ahead)
