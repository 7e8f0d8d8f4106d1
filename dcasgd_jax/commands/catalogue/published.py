"""The rivals that `sim.sweep` can train: transformations, and what workers are sent."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim
from dcasgd_jax.commands import methods
from dcasgd_jax.commands.catalogue.entry import Entry, swept
from dcasgd_jax.rivals import prediction

REMEMBERED_ROUNDS = 8  # rounds of all workers whose step sizes `adaptive_step_sizes` remembers


def choices(num_workers: int, num_pushes: int, momentum: float | None) -> list[Entry]:
    """Rivals of any optimizer, and with momentum those that are about it."""
    found = _of_any_optimizer(num_workers, num_pushes, momentum)
    if momentum is None:
        return found
    return [*found, *_of_momentum(num_workers, momentum, methods.decay_schedule(num_pushes))]


def _of_any_optimizer(num_workers: int, num_pushes: int, momentum: float | None) -> list[Entry]:
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


def _of_momentum(num_workers: int, momentum: float, decay: optax.Schedule) -> list[Entry]:
    delay = num_workers - 1
    per_worker = lambda **options: rivals.per_worker_momentum(momentum, num_workers, **options)
    then = lambda *stages: lambda rate: [*stages, optax.scale_by_learning_rate(rate)]
    look_ahead = _decayed(rivals.sends.dana_look_ahead(momentum), decay)
    return [
        _rival("multi-asgd", "a momentum per worker", then(per_worker())),
        _rival("dana-zero", "multi-asgd, look-ahead sent", then(per_worker()), send=look_ahead),
        _rival("dana-slim", "multi-asgd, Nesterov's form", then(per_worker(nesterov=True))),
        _dana_dc(per_worker, look_ahead),
        _rival(
            "velocity-prediction",
            "workers get w - (M - 1) rate velocity",
            then(optax.trace(momentum)),
            send=_decayed(rivals.sends.velocity_prediction(delay), decay),
        ),
        _rival(
            "msnag",
            "the same, with the velocity's decay",
            then(optax.trace(momentum)),
            send=_decayed(rivals.sends.multi_step_nesterov(delay, momentum), decay),
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
) -> Entry:
    def recipe(learning_rate, number, decay):
        del number
        return optax.chain(*stages(lambda count: learning_rate * decay(count)))

    return swept(_method(name, title, recipe, send), rate_scale=rate_scale)


def _wu(name, title, num_workers, direction, alpha) -> Entry:
    def recipe(learning_rate, number, decay):
        del number
        remembered = REMEMBERED_ROUNDS * num_workers
        steps = rivals.adaptive_step_sizes(learning_rate, remembered, alpha=alpha)
        return optax.chain(direction(), steps, optax.scale_by_schedule(decay))

    # The bound is shared by the gradients under way.
    return swept(_method(name, title, recipe), rate_scale=num_workers)


def _decayed(send: prediction.Send, decay: optax.Schedule) -> prediction.Send:
    """`send`, which knows only the injected learning rate, with the decay of that rate."""

    def decayed(params, opt_state):
        factor = decay(opt_state.count)
        sent = send(params, opt_state)
        # What is added to the params is proportional to the learning rate.
        return jax.tree.map(lambda w, w_sent: w + factor * (w_sent - w), params, sent)

    return decayed


def _dana_dc(per_worker, look_ahead) -> Entry:
    def recipe(learning_rate, lambda0, decay):
        return optax.chain(
            dc.compensate_delay(lambda0, curvature=methods.ADAPTIVE),
            per_worker(),
            optax.scale_by_learning_rate(lambda count: learning_rate * decay(count)),
        )

    method = methods.Method(
        "dana-dc",
        "dana-zero, compensated as dcasgd-a",
        sim.Asynchronous(),
        compensates=True,
        recipe=recipe,
        send=look_ahead,
    )
    return swept(method, (0.5, 2.0, 8.0))


def _method(name: str, title: str, recipe: Any, send: Callable | None = None) -> methods.Method:
    return methods.Method(name, title, sim.Asynchronous(), recipe=recipe, send=send)
