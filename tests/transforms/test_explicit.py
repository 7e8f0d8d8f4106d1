"""`compensate_delay`: its identities, its schedules and its cap."""

import compensations
import hypothesis
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same
from hypothesis import strategies as st

PROBLEM = oracle.Problem()
ROUND_ROBIN = [event % 4 for event in range(12)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def in_dtype(dtype):
    """Parameters and gradients of the softmax problem in `dtype`."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)

    def grad_fn(params, event):
        wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
        return jax.tree.map(lambda g: jnp.asarray(g, dtype), PROBLEM.grad(wide, event))

    return params, grad_fn


def sgd(compensate, learning_rate=0.5):
    return optax.chain(compensate, optax.sgd(learning_rate))


@pytest.mark.parametrize("ms_decay", [None, 0.95])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lambda_zero_is_bitwise_the_inner_optimizer(dtype, ms_decay):
    params, grad_fn = in_dtype(dtype)
    adam = optax.adam(0.1)
    tx = optax.chain(compensations.explicit(0.0, ms_decay=ms_decay), adam)
    actual, _ = loops.run_workers(tx, params, ROUND_ROBIN, grad_fn, loops.by_argument)
    expected, _ = loops.run_workers(adam, params, ROUND_ROBIN, grad_fn, loops.by_age)
    assert_same(actual, expected)


@pytest.mark.parametrize("ms_decay", [None, 0.95])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_staleness_is_bitwise_the_inner_optimizer(dtype, ms_decay):
    params, grad_fn = in_dtype(dtype)
    tx = sgd(compensations.explicit(1e3, ms_decay=ms_decay))
    actual, _ = loops.run_workers(tx, params, [0] * 12, grad_fn, loops.by_argument)
    expected, _ = loops.run_workers(optax.sgd(0.5), params, [0] * 12, grad_fn, loops.by_age)
    assert_same(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_cap_is_bitwise_asynchronous_sgd(dtype):
    params, grad_fn = in_dtype(dtype)
    tx = sgd(compensations.explicit(1e3, max_pull=0.0, learning_rate=0.5))
    actual, _ = loops.run_workers(tx, params, ROUND_ROBIN, grad_fn, loops.by_argument)
    expected, _ = loops.run_workers(optax.sgd(0.5), params, ROUND_ROBIN, grad_fn, loops.by_age)
    assert_same(actual, expected)


def test_infinite_cap_is_bitwise_the_paper():
    params, grad_fn = in_dtype(jnp.float32)
    capped = sgd(compensations.explicit(2.0, max_pull=np.inf, learning_rate=0.5))
    actual, _ = loops.run_workers(capped, params, ROUND_ROBIN, grad_fn, loops.by_argument)
    paper = sgd(compensations.explicit(2.0))
    expected, _ = loops.run_workers(paper, params, ROUND_ROBIN, grad_fn, loops.by_argument)
    assert_same(actual, expected)


@pytest.mark.parametrize("ms_decay", [None, 0.95])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stale_and_compensated_differs_from_the_second_event_on(dtype, ms_decay):
    """The run's first push is fresh; every later one is stale, and is seen to be."""
    params, grad_fn = in_dtype(dtype)
    tx = sgd(compensations.explicit(2.0, ms_decay=ms_decay))
    actual, _ = loops.run_workers(tx, params, ROUND_ROBIN, grad_fn, loops.by_argument)
    plain, _ = loops.run_workers(optax.sgd(0.5), params, ROUND_ROBIN, grad_fn, loops.by_age)
    assert_same(actual[:2], plain[:2])
    difference = np.abs(np.asarray(actual[2]["W"] - plain[2]["W"], np.float64))
    assert difference.max() > 1e-3  # the gap of these two runs in float64 is 0.01 (c), 0.3 (a)


def test_schedules_are_read_at_the_number_of_updates(x64):
    """λ0 = 0 for two updates and 2 afterwards, by hand."""
    tx = compensations.explicit(lambda count: jnp.where(count < 2, 0.0, 2.0))
    state = tx.init(jnp.asarray(1.0))
    seen = []
    for _ in range(4):
        kwargs = {"stale_params": jnp.asarray(0.5)}
        updates, state = tx.update(jnp.asarray(0.2), state, jnp.asarray(1.0), **kwargs)
        seen.append(float(updates))
    np.testing.assert_allclose(seen, [0.2, 0.2, 0.24, 0.24], rtol=1e-15)  # 2 operations
    assert int(state.num_updates) == 4


def test_constant_schedule_is_bitwise_the_constant():
    params, grad_fn = in_dtype(jnp.float32)
    runs = [
        loops.run_workers(
            sgd(compensations.explicit(lambda0, ms_decay=0.9)),
            params,
            ROUND_ROBIN,
            grad_fn,
            loops.by_argument,
        )
        for lambda0 in (2.0, lambda count: 2.0, lambda count: jnp.asarray(2.0, jnp.float32))
    ]
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


def test_per_worker_mean_squares_are_separate(x64):
    """One worker's gradient must not shrink another's strength."""
    tx = compensations.explicit(2.0, ms_decay=0.5, eps=0.0, num_workers=2)
    params, stale = jnp.asarray(1.0), jnp.asarray(0.0)
    _, state = tx.update(jnp.asarray(8.0), tx.init(params), params, stale_params=stale, worker=0)
    updates, state = tx.update(jnp.asarray(1.0), state, params, stale_params=stale, worker=1)
    np.testing.assert_array_equal(state.curvature.mean_square.rows, [32.0, 0.5])  # exact
    np.testing.assert_allclose(updates, 1 + 2 / np.sqrt(0.5), rtol=1e-15)  # a few operations


UNIT = st.floats(-3, 3, allow_subnormal=False, width=32)
EVENT = {"grad": UNIT, "param": UNIT, "stale": UNIT, "lambda0": st.floats(0, 1e8)}
CHECKED = hypothesis.settings(deadline=None, derandomize=True, max_examples=60, database=None)


@CHECKED
@hypothesis.given(**EVENT, kappa=st.floats(0, 4), rate=st.floats(1e-6, 10))
def test_one_event_moves_a_weight_at_most_kappa_of_the_way_back(
    grad, param, stale, lambda0, kappa, rate
):
    with jax.enable_x64(True):
        tx = sgd(compensations.explicit(lambda0, max_pull=kappa, learning_rate=rate), rate)
        params = jnp.asarray(param)
        update = tx.update(
            jnp.asarray(grad), tx.init(params), params, stale_params=jnp.asarray(stale)
        )
        pulled = float(update[0]) + rate * grad  # what is not the gradient's own step
    # float64: the pull is a difference of numbers up to rate * |g| + kappa * |Δ| <= 54.
    rounding = 1e-13
    assert abs(pulled) <= kappa * abs(param - stale) + rounding
    assert pulled * (stale - param) >= -rounding  # towards the stale weight
    uncapped = rate * lambda0 * grad**2
    if uncapped <= kappa:  # the cap only caps
        np.testing.assert_allclose(pulled, uncapped * (stale - param), rtol=1e-9, atol=rounding)


def test_cap_follows_a_learning_rate_schedule(x64):
    """The cap binds at every rate, so that each event moves by κ of the displacement exactly."""
    rates = jnp.asarray([0.5, 0.1, 0.0, 2.0])
    tx = sgd(
        compensations.explicit(1e9, max_pull=0.25, learning_rate=lambda count: rates[count]),
        lambda count: rates[count],
    )
    params, stale = jnp.asarray(1.0), jnp.asarray(-1.0)
    state = tx.init(params)
    moved = []
    for _ in rates:
        updates, state = tx.update(jnp.asarray(1e-2), state, params, stale_params=stale)
        moved.append(float(updates))
    expected = [-0.25 * 2 - rate * 1e-2 if rate else 0.0 for rate in np.asarray(rates)]
    np.testing.assert_allclose(moved, expected, rtol=1e-14)  # a few float64 operations


@pytest.mark.parametrize("max_pull", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.0, lambda count: 0.0 * count])
def test_rate_zero_makes_no_nan(rate, max_pull):
    tx = sgd(compensations.explicit(2.0, max_pull=max_pull, learning_rate=rate), rate)
    params = {"w": jnp.asarray([1.0, 2.0, 3.0])}
    stale = {"w": jnp.asarray([0.0, 2.0, 3.0])}
    grads = {"w": jnp.asarray([0.5, 0.5, 0.0])}
    updates, _ = tx.update(grads, tx.init(params), params, stale_params=stale)
    np.testing.assert_array_equal(np.abs(updates["w"]), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("ms_decay", [None, 0.0])
def test_zero_gradient_and_zero_eps_make_no_nan(ms_decay):
    tx = compensations.explicit(2.0, ms_decay=ms_decay, eps=0.0)
    grads, params, stale = jnp.asarray([0.0, 1.0]), jnp.ones(2), jnp.zeros(2)
    updates, _ = tx.update(grads, tx.init(params), params, stale_params=stale)
    np.testing.assert_array_equal(updates, [0.0, 3.0])
