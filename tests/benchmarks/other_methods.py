"""What the other curvatures, rules and rivals cost, against the paper's method."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import engines
import jax
import jax.numpy as jnp
import optax
import server_step
from timing import Row, alternate

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim

RATE, MOMENTUM = 0.1, 0.9


class Method(NamedTuple):
    """What is timed: a transformation, and what a worker is sent after its push."""

    tx: optax.GradientTransformation
    send: Callable[[Any, Any], Any] | None = None


def own_methods(num_workers: int) -> dict[str, Method]:
    """DC-ASGD with other strengths and curvatures than the paper's DC-ASGD-a."""
    make = functools.partial(dc.dcasgd, RATE, num_workers)
    ratio, share = (
        functools.partial(dc.strengths.ratio, 0.5),
        functools.partial(dc.strengths.capped_share, 0.1),
    )
    methods = {
        "squared gradient": make(curvature=dc.curvatures.squared_gradient()),
        "bias correction": make(curvature=dc.curvatures.adaptive(bias_correction=True)),
        "cap": make(max_pull=1.0),
        "absolute": make(curvature=dc.curvatures.absolute()),
        "ratio": make(lambda0=ratio()),
        "ratio, capped": make(lambda0=ratio(), max_pull=1.0),
        "capped share": make(lambda0=share(), max_pull=1.0),
    }
    return {name: Method(tx) for name, tx in methods.items()}


def rival_methods(num_workers: int) -> dict[str, Method]:
    """The rivals whose step takes one gradient of the size of the parameters."""
    rate = optax.scale_by_learning_rate(RATE)
    momentum = optax.sgd(RATE, momentum=MOMENTUM)
    dana = rivals.dana(RATE, MOMENTUM, num_workers)
    horizon = num_workers - 1
    per_worker = functools.partial(rivals.per_worker_momentum, MOMENTUM, num_workers)
    return {
        "Multi-ASGD": Method(optax.chain(per_worker(), rate)),
        "DANA-Slim": Method(optax.chain(per_worker(nesterov=True), rate)),
        "DANA-Zero with its look-ahead": Method(dana.tx, dana.send),
        "staleness-aware rate": Method(
            optax.chain(rate, rivals.scale_by_staleness(rivals.inverse_staleness))
        ),
        "delay-adaptive steps (Wu 1)": Method(rivals.adaptive_step_sizes(RATE, 8)),
        "delay-adaptive steps (Wu 2)": Method(rivals.adaptive_step_sizes(RATE, 8, alpha=None)),
        "drop-stale around momentum": Method(rivals.drop_stale(momentum, bound=100)),
        "FedBuff around SGD": Method(rivals.fedbuff(optax.sgd(RATE), num_workers)),
        "FedBuff around momentum": Method(rivals.fedbuff(momentum, num_workers)),
        "delayed Nesterov": Method(rivals.delayed_nesterov(RATE, num_workers, MOMENTUM)),
        "ordered momentum": Method(
            optax.chain(rivals.ordered_momentum(MOMENTUM, num_workers), rate)
        ),
        "spike compensation": Method(
            optax.chain(rivals.spike_compensation(MOMENTUM, horizon), rate)
        ),
        "PipeMare T1": Method(optax.chain(rate, rivals.pipemare_rescale(horizon, 1000))),
        "AAGD with its look-ahead": Method(
            optax.chain(rate, rivals.accelerate()), rivals.sends.momentum_compensation(horizon)
        ),
        "momentum with velocity prediction": Method(
            momentum, rivals.sends.velocity_prediction(horizon, RATE)
        ),
        "momentum with multi-step Nesterov": Method(
            momentum, rivals.sends.multi_step_nesterov(horizon, MOMENTUM, RATE)
        ),
        "momentum with step prediction": Method(
            optax.chain(momentum, rivals.remember_step()), rivals.sends.step_prediction(horizon)
        ),
    }


def step_rows(shapes: dict | None = None, num_workers: int = 4, repeats: int = 9) -> list[Row]:
    """Update + apply (+ send), donated, of each method against `dc.dcasgd`."""
    shapes = server_step.resnet50_shapes() if shapes is None else shapes
    methods = own_methods(num_workers) | rival_methods(num_workers)
    rows = []
    for name, method in methods.items():
        make = functools.partial(_make_step, method, shapes, num_workers)
        rows.append(_step_row(name, make, shapes, num_workers, repeats))
    several = {
        "DC-S3GD, 2 workers at once": rivals.dc_s3gd(optax.sgd(RATE)),
        "DC-SSGD, a round of 2 gradients": rivals.dc_ssgd(RATE, lambda0=2.0),
    }
    for name, tx in several.items():
        make = functools.partial(_make_stacked_step, tx, shapes, 2, name.startswith("DC-S3GD"))
        rows.append(_step_row(name, make, shapes, num_workers, repeats, gradients=2))
    return rows


def _step_row(name, make, shapes, num_workers: int, repeats: int, gradients: int = 1) -> Row:
    paper, _ = server_step.make_step(dc.dcasgd(RATE, num_workers=num_workers), shapes, num_workers)
    seconds, paper_seconds = alternate(make(), paper, repeats=repeats)
    seconds /= gradients
    size = server_step.num_params(shapes) / 1e6
    each = "" if gradients == 1 else " for each gradient"
    return Row(
        f"{name}: update + apply{each}, {size:.1f}M float32, vs DC-ASGD-a",
        f"{seconds * 1e3:.1f} ms",
        f"{paper_seconds * 1e3:.1f} ms",
        seconds / paper_seconds,
        "<= 1.3",
    )


def _make_step(method: Method, shapes, num_workers: int) -> Callable[[], None]:
    """One push: update, apply, and what the worker is sent, into the memory of the last push's."""
    tx = optax.with_extra_args_support(method.tx)
    if method.send is None:
        return server_step.make_step(tx, shapes, num_workers, staleness=3)[0]
    send = method.send
    fill = lambda value: {name: jnp.full(shape, value) for name, shape in shapes.items()}

    def step(params, state, sent, grads, worker):
        del sent
        updates, state = tx.update(grads, state, params, worker=worker, staleness=3)
        params = optax.apply_updates(params, updates)
        return params, state, send(params, state)

    grads, params = fill(0.01), fill(0.1)
    carry = [params, tx.init(params), fill(0.1)]
    compiled = jax.jit(step, donate_argnums=(0, 1, 2), keep_unused=True)
    event = iter(range(10**9))

    def run():
        worker = jnp.int32(next(event) % num_workers)
        carry[:] = jax.block_until_ready(compiled(*carry, grads, worker))

    return run


def _make_stacked_step(tx, shapes, count: int, params_too: bool) -> Callable[[], None]:
    """One round of `count` gradients; `params_too` if every worker has params of its own."""
    fill = lambda value, *lead: {
        name: jnp.full((*lead, *shape), value) for name, shape in shapes.items()
    }
    grads, params = fill(0.01, count), fill(0.1, *([count] if params_too else []))
    carry = [params, tx.init(params)]

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run():
        carry[:] = jax.block_until_ready(compiled(*carry, grads))

    return run


def hessian_rows(num_events: int = 4096, batch: int = 32, repeats: int = 5) -> list[Row]:
    """A whole `simulate` with an exact Hessian-vector product per event against one without."""
    params, batches = engines.mlp_problem(num_events, batch)
    schedule = sim.make_schedule(sim.GammaTime(), engines.WORKERS, num_events, seed=0)
    plain, exact = (
        optax.chain(compensate, optax.sgd(0.05))
        for compensate in (
            optax.identity(),
            dc.compensate_delay(0.5, curvature=dc.curvatures.hessian()),
        )
    )

    problem = sim.Problem(engines.mlp_loss, params)

    def run(tx):
        return lambda: sim.simulate(problem, tx, schedule, batches).losses.sum()

    seconds, plain_seconds = alternate(run(exact), run(plain), repeats=repeats)
    rate = lambda seconds: f"{num_events / seconds:,.0f}/s"
    return [
        Row(
            "curvature hessian(), 8 workers, 64-128-10 MLP: time of an event vs plain ASGD",
            rate(seconds),
            rate(plain_seconds),
            seconds / plain_seconds,
            "<= 2.2",
        )
    ]
