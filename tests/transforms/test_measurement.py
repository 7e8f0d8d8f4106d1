"""What is measured of a compensation, against float64 NumPy, and how it lives in the state."""

import functools

import cases
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_same

import dcasgd_jax as dc

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
FLOAT32 = dict(rtol=2e-6)  # sums of a few dozen float32 numbers, and two roots
EPS = 0.02  # of squares of gradients of order 1: some coordinates are below, most are not
MEASURING = [case for case in cases.CASES if not case.name.startswith("delay_gradients")]


def wide(tree):
    """All coordinates of a tree in one float64 vector."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def expected_metrics(gradient, compensated, mean_square=None):
    """In float64, from the vectors themselves."""
    gradient, compensated = wide(gradient), wide(compensated)
    norm = np.linalg.norm
    return (
        norm(compensated - gradient) / norm(gradient),
        gradient @ compensated / (norm(gradient) * norm(compensated)),
        np.nan if mean_square is None else np.mean(wide(mean_square) < EPS),
    )


def measured(tx, grads, params, stale, state=None, **extra_args):
    return tx.update(
        grads,
        tx.init(params) if state is None else state,
        params,
        stale_params=stale,
        measure_compensation=True,
        **extra_args,
    )


def floats(metrics):
    return tuple(float(metric) for metric in metrics)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ms_decay", [None, 0.9])
def test_metrics_are_those_of_the_rounded_update(dtype, ms_decay):
    params = cases.params(dtype)
    grads, stale = cases.grads(0, params), cases.stale(3, params)
    tx = compensations.explicit(2.0, ms_decay=ms_decay, eps=EPS)
    compensated, state = measured(tx, grads, params, stale)
    metrics = dc.compensation_metrics(state)
    assert {metric.dtype for metric in metrics} == {jnp.dtype(jnp.float32)}
    squares = None if ms_decay is None else jax.tree.map(lambda g: 0.1 * wide(g) ** 2, grads)
    expected = expected_metrics(grads, compensated, squares)
    np.testing.assert_allclose(floats(metrics), expected, **FLOAT32)
    assert expected[0] > 0.1  # a compensation that is seen,
    assert expected[1] < 0.999  # turns the gradient,
    assert ms_decay is None or 0 < expected[2] < 1  # and is at the floor in places
    np.testing.assert_array_equal(dc.compensation_metrics(state).ratio, metrics.ratio)


@pytest.mark.parametrize("ms_decay", [None, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_measuring_changes_no_update(dtype, ms_decay):
    params = cases.params(dtype)
    grads, stale = cases.grads(0, params), cases.stale(0, params)
    tx = compensations.explicit(2.0, ms_decay=ms_decay)
    plain, plain_state = tx.update(grads, tx.init(params), params, stale_params=stale)
    updates, state = measured(tx, grads, params, stale)
    assert_same(updates, plain)
    assert_same(state._replace(sums=plain_state.sums), plain_state)


def test_metrics_by_hand():
    """Gradient (3, 4, 12), compensation (2 * 9, 2 * 16, 0); in a chain, over two leaves."""
    tx = optax.chain(optax.identity(), compensations.explicit(2.0), optax.sgd(0.1))
    params, stale = {"a": jnp.ones(2), "b": jnp.ones(())}, {"a": jnp.zeros(2), "b": jnp.ones(())}
    grads = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray(12.0)}
    state = tx.init(params)
    nothing = (np.nan, np.nan, np.nan)
    np.testing.assert_array_equal(floats(dc.compensation_metrics(state)), nothing)
    _, state = tx.update(grads, state, params, stale_params=stale)
    np.testing.assert_array_equal(floats(dc.compensation_metrics(state)), nothing)
    _, state = measured(tx, grads, params, stale, state)
    seen = dc.compensation_metrics(state)
    length = np.sqrt(21**2 + 36**2 + 12**2)
    expected = (np.hypot(18, 32) / 13, (3 * 21 + 4 * 36 + 12 * 12) / (13 * length), np.nan)
    np.testing.assert_allclose(floats(seen), expected, **FLOAT32)
    zero = jax.tree.map(jnp.zeros_like, grads)
    _, state = tx.update(zero, state, params, stale_params=stale)
    assert_same(dc.compensation_metrics(state), seen)  # still those of the last one measured
    _, state = measured(tx, zero, params, stale, state)
    nowhere = (0.0, 1.0, np.nan)
    np.testing.assert_array_equal(floats(dc.compensation_metrics(state)), nowhere)


def test_gradient_that_is_compensated_away_or_turned_round():
    tx, params = compensations.explicit(1.0), jnp.asarray([0.0, 0.0])
    for distance, cosine in ((0.5, 0.0), (1.0, -1.0)):  # 2 - 2**2 * 0.5 = 0, 2 - 2**2 = -2
        stale = jnp.full(2, distance)
        _, state = measured(tx, jnp.full(2, 2.0), params, stale)
        ratio = 2 * distance
        np.testing.assert_allclose(
            floats(dc.compensation_metrics(state)), (ratio, cosine, np.nan), **FLOAT32
        )


def test_small_and_large_gradients_stay_in_the_range_of_float32():
    for size in (1e-15, 1e15):  # the product of two squares would be 0, or infinite
        tx = compensations.explicit(0.5 / size)
        _, state = measured(tx, jnp.full(3, size), jnp.ones(3), jnp.zeros(3))
        np.testing.assert_allclose(
            floats(dc.compensation_metrics(state)), (0.5, 1.0, np.nan), **FLOAT32
        )


def test_a_tiny_compensation_is_not_lost_in_the_gradient():
    """Of norms alone, |g~|**2 - |g|**2 in float32, nothing would be left of it."""
    params, stale = jnp.ones(3), jnp.asarray([0.0, 1.0, 1.0])
    grads = jnp.asarray([2.0**-10, 1.0, 1.0])
    _, state = measured(compensations.explicit(1.0), grads, params, stale)
    np.testing.assert_allclose(
        dc.compensation_metrics(state).ratio, 2.0**-20 / np.sqrt(2), **FLOAT32
    )


@pytest.mark.parametrize("right", [None, 0.5], ids=["constant", "adaptive"])
def test_parts_of_a_partition_are_taken_together(right):
    parts = {
        "left": compensations.explicit(2.0, ms_decay=0.5, eps=EPS),
        "right": compensations.explicit(3.0, ms_decay=right, eps=EPS),
    }
    labels = {"a": "left", "b": "right"}
    tx = optax.partition(parts, labels, mask_compatible_extra_args=True)
    params = {"a": jnp.ones(4), "b": jnp.ones(2)}
    grads = {"a": jnp.asarray([0.1, 0.1, 0.1, 1.0]), "b": jnp.asarray([0.1, 2.0])}
    stale = {"a": jnp.asarray([0.0, 0.5, 2.0, 1.5]), "b": jnp.asarray([0.0, 1.5])}
    compensated, state = measured(tx, grads, params, stale)
    ratio, cosine, below_eps = expected_metrics(grads, compensated, grads)
    below_eps = 3 / 4 if right is None else 4 / 6  # 0.5 * 0.1**2 < EPS < 0.5 * 1**2
    np.testing.assert_allclose(
        floats(dc.compensation_metrics(state)), (ratio, cosine, below_eps), **FLOAT32
    )
    assert cosine < 0.99


def test_mean_square_below_eps_is_that_of_the_worker_who_pushed():
    tx = compensations.explicit(2.0, ms_decay=0.5, eps=EPS, num_workers=2)
    params, stale = jnp.ones(4), jnp.zeros(4)
    state, shares = tx.init(params), []
    pushes = [
        (0, [1.0, 1.0, 1.0, 1.0]),  # worker 0's mean square: all above
        (1, [0.1, 0.1, 0.1, 1.0]),  # worker 1's: three below
        (0, [0.1, 0.1, 0.1, 0.1]),  # worker 0's, of before, keeps all above
        (1, [0.1, 0.1, 1.0, 0.1]),  # and worker 1's gets its third above
    ]
    for worker, grads in pushes:
        _, state = measured(tx, jnp.asarray(grads), params, stale, state, worker=worker)
        shares.append(float(dc.compensation_metrics(state).below_eps))
    assert shares == [0.0, 0.75, 0.0, 0.5]


def test_coordinates_without_a_gradient_are_not_counted():
    tx = compensations.explicit(2.0, ms_decay=0.5, eps=EPS)
    params, stale = {"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    grads = {"a": jnp.asarray([0.1, 1.0]), "b": None}
    updates, state = measured(tx, grads, params, stale)
    assert updates["b"] is None
    ratio, cosine, _ = expected_metrics(grads["a"], updates["a"])
    np.testing.assert_allclose(
        floats(dc.compensation_metrics(state)), (ratio, cosine, 0.5), **FLOAT32
    )


def test_eps_zero_has_no_coordinate_below_it():
    tx = compensations.explicit(2.0, ms_decay=0.5, eps=0.0)
    _, state = measured(tx, jnp.asarray([0.0, 1.0]), jnp.ones(2), jnp.zeros(2))
    assert float(dc.compensation_metrics(state).below_eps) == 0.0


def test_injected_eps_is_the_one_that_counts():
    make = optax.inject_hyperparams(compensations.explicit, static_args=("num_workers",))
    tx = make(lambda0=2.0, ms_decay=0.5, eps=1e-7)
    params = jnp.ones(2)
    state = tx.init(params)
    state.hyperparams["eps"] = jnp.asarray(EPS)
    _, state = measured(tx, jnp.asarray([0.1, 1.0]), params, jnp.zeros(2), state)
    assert float(dc.compensation_metrics(state).below_eps) == 0.5


@pytest.mark.parametrize("case", MEASURING, ids=lambda case: case.name)
def test_state_keeps_its_types_whether_measured_or_not(case):
    """What `lax.scan`, `lax.cond` and jit's cache look at: dtype, shape and weak type."""
    tx, tree = case.make(), cases.params()
    grads = cases.grads(0, tree)

    def step(carry, inputs):
        (state, params), (measures, worker) = carry, inputs
        kwargs = case.update_kwargs(0, params)
        if "worker" in kwargs:
            kwargs["worker"] = worker
        push = lambda s: tx.update(grads, s, params, measure_compensation=True, **kwargs)
        skip = lambda s: tx.update(grads, s, params, **kwargs)
        updates, state = jax.lax.cond(measures, push, skip, state)
        return (state, optax.apply_updates(params, updates)), dc.compensation_metrics(state)

    inputs = jnp.asarray([True, True, True, True, False]), jnp.asarray([0, 0, 0, 1, 1], jnp.int32)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, inputs))
    fresh = tx.init(tree)
    (state, _), metrics = scan((fresh, tree))  # raises if a carry changes type
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, fresh)
    adaptive = case.name.startswith("dcasgd") or "ms_decay" in case.kwargs
    assert [np.isfinite(metric).all() for metric in metrics] == [True, True, adaptive]
    assert metrics.ratio[3] > 0  # the first push of worker 1 is stale
    np.testing.assert_array_equal(metrics.ratio[4], metrics.ratio[3])


def test_second_call_is_not_traced_again_and_state_can_be_donated():
    tx, params = compensations.explicit(2.0, ms_decay=0.9), cases.params()
    chex.clear_trace_counter()

    @functools.partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(state, grads, stale):
        _, state = measured(tx, grads, params, stale, state)
        return state, dc.compensation_metrics(state)

    state, eager_state = tx.init(params), tx.init(params)
    for k in range(3):
        grads, stale = cases.grads(k, params), cases.stale(k, params)
        state, metrics = step(state, grads, stale)
        _, eager_state = measured(tx, grads, params, stale, eager_state)
        assert_same(metrics, dc.compensation_metrics(eager_state), **FLOAT32)


def test_not_measuring_adds_no_operation():
    """The compiled update reads and returns the sums, and computes nothing with them."""
    tx, params = compensations.explicit(2.0, ms_decay=0.9), cases.params()
    grads, stale = cases.grads(0, params), cases.stale(0, params)
    update = lambda measure: jax.make_jaxpr(
        lambda g, s: tx.update(g, s, params, stale_params=stale, measure_compensation=measure)
    )(grads, tx.init(params))
    names = lambda jaxpr: {equation.primitive.name for equation in jaxpr.jaxpr.eqns}
    assert "reduce_sum" not in names(update(False))
    assert "reduce_sum" in names(update(True))


def test_metrics_of_another_optimizer_are_an_error():
    with pytest.raises(ValueError, match="no compensating transformation"):
        dc.compensation_metrics(optax.adam(0.1).init(jnp.ones(2)))


def test_what_was_not_measured_is_no_number():
    """Not ratio 0 and cosine 1, which would say that compensation does nothing."""
    tx, params = dc.dcasgd(0.1, 2), jnp.ones(2)
    state = tx.init(params)
    _, unmeasured = tx.update(params, state, params, worker=1)
    for never in (state, unmeasured):
        assert np.isnan(floats(dc.compensation_metrics(never))).all()
    _, state = tx.update(params, state, params, worker=1, measure_compensation=True)
    assert floats(dc.compensation_metrics(state)) == (0.0, 1.0, 0.0)  # measured: nothing is stale
