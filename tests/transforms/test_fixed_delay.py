"""`assume_delay`: the ring of past parameters, per leaf."""

import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same

PROBLEM = oracle.Problem()


def train(tx, order, told, dtype=jnp.float32):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    return loops.run_workers(tx, params, order, loops.softmax_grad_fn(), told)[0]


@pytest.mark.parametrize("ms_decay", [None, 0.9])
@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_equals_explicit_and_per_worker_bitwise_on_a_round_robin(delay, ms_decay):
    """Same arithmetic on the same stale weights, so bit for bit in float32."""
    order = [event % (delay + 1) for event in range(14)]
    rule = {"lambda0": 2.0, "ms_decay": ms_decay}
    runs = [
        train(optax.chain(compensate, optax.sgd(0.5, momentum=0.5)), order, told)
        for compensate, told in (
            (compensations.fixed_delay(delay=delay, **rule), loops.by_age),
            (compensations.explicit(**rule), loops.by_argument),
            (compensations.per_worker(num_workers=delay + 1, **rule), loops.by_worker),
        )
    ]
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])
    plain = train(optax.sgd(0.5, momentum=0.5), order, loops.by_age)
    if delay:
        assert np.abs(plain[-1]["W"] - runs[0][-1]["W"]).max() > 1e-3
    else:
        assert_same(plain, runs[0])


def test_each_leaf_is_compensated_for_its_own_age(x64):
    """Against a table of all versions, by hand; gradients do not depend on the params."""
    delays = {"old": 3, "new": 0, "middle": 1}
    tx = compensations.fixed_delay(2.0, delays)
    rng = np.random.default_rng(0)
    versions = rng.normal(size=(8, 3))
    grads = rng.normal(size=(8, 3))
    tree = lambda row: dict(zip(delays, map(jnp.asarray, row), strict=True))
    state = tx.init(tree(versions[0]))
    for t in range(8):
        updates, state = tx.update(tree(grads[t]), state, tree(versions[t]))
        for i, (name, delay) in enumerate(delays.items()):
            g, moved = grads[t, i], versions[t, i] - versions[max(t - delay, 0), i]
            # A handful of float64 operations on numbers of order 1.
            np.testing.assert_allclose(updates[name], g + 2 * g * g * moved, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "delay",
    [
        {"stage": {"a": 3, "b": 3}, "head": 1},
        {"stage": 3, "head": 1},
        lambda params: {"stage": 3, "head": 1},
        lambda params: jax.tree.map(lambda p: p.ndim, params),
        {"stage": np.int64(3), "head": np.asarray(1)},
    ],
    ids=["full", "prefix", "callable_prefix", "callable_full", "numpy"],
)
def test_delay_may_be_a_prefix_or_a_function(delay):
    params = {"stage": {"a": jnp.ones((1, 2, 1)), "b": jnp.ones((1, 1, 1))}, "head": jnp.ones(4)}
    rows = compensations.fixed_delay(2.0, delay).init(params).past_params.rows
    lengths = jax.tree.map(lambda leaf: leaf.shape[0], rows)
    assert lengths == {"stage": {"a": 4, "b": 4}, "head": 2}


def test_delay_zero_stores_nothing():
    state = compensations.fixed_delay(2.0, {"a": 0, "b": 1}).init({"a": jnp.ones(9), "b": 1.0})
    assert state.past_params.rows["a"] is None
    assert state.past_params.rows["b"].shape == (2,)


def test_ignores_the_stale_params_that_the_simulator_offers():
    order = [event % 3 for event in range(6)]
    tx = optax.chain(compensations.fixed_delay(2.0, 2), optax.sgd(0.5))
    told = loops.by_argument_and_worker
    assert_same(train(tx, order, told), train(tx, order, loops.by_age))
