"""`dcasgd` is the documented chain, and nothing else."""

import inspect

import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same

import dcasgd_jax as dc

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]


def train(tx, dtype=jnp.float32, order=IRREGULAR):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    grad_fn = lambda params, event: jax.tree.map(lambda p: jnp.sin(p + event), params)
    return loops.run_workers(tx, params, order, grad_fn, loops.by_worker)


def by_hand(stages, rate=0.3, **kwargs):
    compensate = compensations.per_worker(2.0, 4, **{"ms_decay": 0.95, **kwargs})
    return optax.chain(compensate, *stages, optax.scale_by_learning_rate(rate))


def pulled_outside(inner, **kwargs):
    curvature = compensations.curvature(0.95)
    return dc.remember_pulls(dc.compensate_updates(inner, 2.0, curvature=curvature, **kwargs), 4)


schedule = optax.linear_schedule(0.3, 0.0, 20)


@pytest.mark.parametrize(
    ("kwargs", "chain"),
    [
        ({}, by_hand([])),
        ({"ms_decay": None}, by_hand([], ms_decay=None)),
        ({"momentum": 0.9}, by_hand([optax.trace(0.9)])),
        ({"momentum": 0.9, "nesterov": True}, by_hand([optax.trace(0.9, nesterov=True)])),
        (
            {"momentum": 0.9, "weight_decay": 0.1},
            by_hand([optax.add_decayed_weights(0.1), optax.trace(0.9)]),
        ),
        ({"max_pull": 0.5}, by_hand([], max_pull=0.5, learning_rate=0.3)),
        (
            {"momentum": 0.5, "max_pull": 0.5},
            pulled_outside(optax.sgd(0.3, momentum=0.5), max_pull=0.5, learning_rate=0.6),
        ),
        (
            {"learning_rate": schedule, "momentum": 0.5, "max_pull": 0.5},
            pulled_outside(
                optax.sgd(schedule, momentum=0.5),
                max_pull=0.5,
                learning_rate=lambda count: 2 * schedule(count),
            ),
        ),
        ({"per_worker_mean_square": True}, by_hand([], per_worker_mean_square=True)),
        ({"eps": 1e-2}, by_hand([], eps=1e-2)),
        (
            {"learning_rate": schedule, "max_pull": 0.5},
            by_hand([], schedule, max_pull=0.5, learning_rate=schedule),
        ),
    ],
    ids=lambda value: "-".join(value) or "default" if isinstance(value, dict) else "",
)
def test_is_its_chain_bitwise(kwargs, chain):
    tx = compensations.dcasgd(**{"learning_rate": 0.3, "num_workers": 4, **kwargs})
    assert_same(train(tx)[0], train(chain)[0])


def test_every_option_does_something():
    """So the comparison above compares different optimizers."""
    default = dc.dcasgd(0.3, num_workers=4)
    for kwargs in (
        {"lambda0": 1.0},
        {"ms_decay": None},
        {"eps": 1e-2},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"max_pull": 0.05},
        {"per_worker_mean_square": True},
    ):
        other = compensations.dcasgd(0.3, num_workers=4, **kwargs)
        difference = train(other)[0][-1]["W"] - train(default)[0][-1]["W"]
        assert np.abs(difference).max() > 1e-3, kwargs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_is_optax_sgd_bitwise_without_anything_to_compensate(momentum, dtype):
    sgd = optax.with_extra_args_support(optax.sgd(0.3, momentum=momentum))
    lambda_zero = dc.dcasgd(0.3, num_workers=4, lambda0=0.0, momentum=momentum)
    assert_same(train(lambda_zero, dtype)[0], train(sgd, dtype)[0])
    one_worker = dc.dcasgd(0.3, num_workers=1, lambda0=1e4, momentum=momentum)
    alone = [0] * 12
    assert_same(train(one_worker, dtype, alone)[0], train(sgd, dtype, alone)[0])
    no_pull = dc.dcasgd(0.3, num_workers=4, lambda0=1e4, max_pull=0.0, momentum=momentum)
    assert_same(train(no_pull, dtype)[0], train(sgd, dtype)[0])


def test_defaults_are_the_papers():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(dc.dcasgd).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert repr(defaults.pop("curvature")) == "adaptive(ms_decay=0.95, eps=1e-07)"
    assert defaults == {
        "lambda0": 2.0,
        "momentum": None,
        "nesterov": False,
        "weight_decay": 0.0,
        "max_pull": None,
    }


def test_one_jitted_step_by_hand(x64):
    """The scalar of the reference: λ0 = 2, m = 0.95, ε = 1e-7, w = 1, w_stale = 0.5, g = 0.2."""
    tx = dc.dcasgd(0.1, num_workers=2)
    state = dc.record_pull(tx.init(jnp.asarray(1.0)), 1, jnp.asarray(0.5))
    worker = jnp.asarray(1, jnp.int32)
    updates, state = jax.jit(tx.update)(jnp.asarray(0.2), state, jnp.asarray(1.0), worker=worker)
    # Half a dozen float64 operations.
    np.testing.assert_allclose(1.0 + updates, 0.8905595168841368, rtol=1e-14)
    np.testing.assert_allclose(state.inner_state[0].curvature.mean_square, 0.002, rtol=1e-14)


def test_there_must_be_a_learning_rate():
    with pytest.raises(TypeError, match="learning_rate must be a number or a schedule, got None"):
        dc.dcasgd(None, 2)
