"""Random schedules, trees and hyperparameters: JAX against the NumPy oracle."""

import compensations
import hypothesis
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from hypothesis import strategies as st

CHECKED = hypothesis.settings(deadline=None, derandomize=True, max_examples=20, database=None)

# Few shapes, so that XLA compiles each primitive a few times only.
LEAVES = st.sampled_from([(), (2, 3)])
TREES = st.recursive(
    LEAVES.map(lambda shape: ("leaf", shape)),
    lambda children: st.one_of(
        st.lists(children, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), children, min_size=1, max_size=3),
    ),
    max_leaves=4,
).map(lambda tree: {"root": tree})
ORDERS = st.sampled_from([1, 2, 3, 6]).flatmap(
    lambda num_workers: st.tuples(
        st.just(num_workers),
        st.lists(st.integers(0, num_workers - 1), min_size=1, max_size=14),
    )
)
RULES = st.fixed_dictionaries(
    {
        "lambda0": st.floats(0, 3),
        "ms_decay": st.sampled_from([None, 0.0, 0.5, 0.95]),
        "eps": st.sampled_from([1e-7, 1e-2]),
        "per_worker_mean_square": st.booleans(),
        "max_pull": st.sampled_from([None, 0.0, 0.3, 1.0]),
        "momentum": st.sampled_from([0.0, 0.5]),
        "nesterov": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.01]),
    }
)
RATE = 0.05  # small: no drawn run diverges, which would amplify rounding without bound


def draw_params(tree, seed):
    rng = np.random.default_rng(seed)
    is_leaf = lambda node: isinstance(node, tuple) and node[:1] == ("leaf",)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf[1]), tree, is_leaf=is_leaf)


def flat(tree):
    """As the oracle wants it: name -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def flat_grad(name, leaf, event):
    """A gradient of order 1 that depends on the leaf, the weights and the event."""
    return np.sin(leaf + len(name) + 1.7 * event) + 0.5 * leaf


def grad_fn(params, event):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            flat_grad(jax.tree_util.keystr(path), np.asarray(leaf, np.float64), event), leaf.dtype
        ),
        params,
    )


def flat_grad_fn(params, event):
    return {name: flat_grad(name, leaf, event) for name, leaf in params.items()}


def expected_trace(params, num_workers, order, rule):
    server = oracle.Server(flat(params), num_workers, lr=RATE, **rule)
    return oracle.run(server, order, flat_grad_fn)


def largest_difference(trace, expected):
    assert len(trace) == len(expected)
    return max(
        np.abs(leaf - other[name]).max()
        for params, other in zip(trace, expected, strict=True)
        for name, leaf in flat(params).items()
    )


def dcasgd(num_workers, rule):
    return compensations.dcasgd(
        RATE, num_workers=num_workers, **{**rule, "momentum": rule["momentum"] or None}
    )


@CHECKED
@hypothesis.given(TREES, ORDERS, RULES, st.integers(0, 10**6))
def test_dcasgd_in_float64(tree, schedule, rule, seed):
    num_workers, order = schedule
    with jax.enable_x64(True):
        params = draw_params(tree, seed)
        tx = dcasgd(num_workers, rule)
        trace, _ = loops.run_workers(tx, params, order, grad_fn, loops.by_worker)
        expected = expected_trace(params, num_workers, order, rule)
        # 14 events of float64 rounding; gradients next to 0 have strengths up to 3/sqrt(1e-7).
        assert largest_difference(trace, expected) < 1e-10


@CHECKED
@hypothesis.given(TREES, ORDERS, RULES, st.integers(0, 10**6))
def test_explicit_in_float64(tree, schedule, rule, seed):
    num_workers, order = schedule
    rule = {**rule, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    names = ("lambda0", "ms_decay", "eps", "max_pull")
    with jax.enable_x64(True):
        params = draw_params(tree, seed)
        compensate = compensations.explicit(
            **{name: rule[name] for name in names},
            learning_rate=RATE,
            num_workers=num_workers if rule["per_worker_mean_square"] else None,
        )
        tx = optax.chain(compensate, optax.sgd(RATE))
        told = loops.by_argument_and_worker
        trace, _ = loops.run_workers(tx, params, order, grad_fn, told)
        expected = expected_trace(params, num_workers, order, rule)
        assert largest_difference(trace, expected) < 1e-10  # as above


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # Weights of order 1, gradients rounded as well, λ g² up to 30 (adaptive, m = 0.95), 14
        # events: some 1e2 epsilons of float32 (1.2e-7) or bfloat16 (7.8e-3) or float16 (9.8e-4).
        (jnp.float32, 3e-5),
        (jnp.float16, 0.1),
        (jnp.bfloat16, 0.5),
    ],
)
def test_dcasgd_in_fewer_bits(dtype, tolerance):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        params = {"a": rng.normal(size=(2, 3)), "b": (rng.normal(), rng.normal())}
        order = rng.integers(0, 4, size=14).tolist()
        rule = {
            "lambda0": 2.0,
            "ms_decay": (None, 0.95)[seed % 2],
            "max_pull": (None, 1.0)[seed // 2 % 2],
            "momentum": 0.5,
        }
        narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        trace, state = loops.run_workers(dcasgd(4, rule), narrow, order, grad_fn, loops.by_worker)
        expected = expected_trace(params, 4, order, rule)
        assert largest_difference(trace, expected) < tolerance
        assert {leaf.dtype for leaf in jax.tree.leaves(trace)} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(state.backups)} == {jnp.dtype(dtype)}


@CHECKED
@hypothesis.given(TREES, st.integers(0, 4), RULES, st.integers(0, 10**6))
def test_fixed_delay_in_float64(tree, delay, rule, seed):
    rule = {**rule, "per_worker_mean_square": False, "momentum": 0.0, "weight_decay": 0.0}
    order = [event % (delay + 1) for event in range(10)]
    names = ("lambda0", "ms_decay", "eps", "max_pull")
    with jax.enable_x64(True):
        params = draw_params(tree, seed)
        compensate = compensations.fixed_delay(
            delay=delay, learning_rate=RATE, **{name: rule[name] for name in names}
        )
        tx = optax.chain(compensate, optax.sgd(RATE))
        trace, _ = loops.run_workers(tx, params, order, grad_fn, loops.by_age)
        expected = expected_trace(params, delay + 1, order, {**rule, "nesterov": False})
        assert largest_difference(trace, expected) < 1e-10  # as above
