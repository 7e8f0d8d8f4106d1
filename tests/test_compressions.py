"""Compressed pushes: what arrives, in how many bytes, and that nothing is lost with a memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dcasgd_jax as dc
from dcasgd_jax import compressions as c
from dcasgd_jax import sim

ALL = {"top_k": c.top_k(0.25), "int8": c.int8(), "bfloat16": c.bfloat16()}
TREE = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32),
    "scale": jnp.float32(-0.3),
    "empty": jnp.zeros((0, 3)),
    "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
}
each = pytest.mark.parametrize("name", ALL)
numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(numbers)
@settings(max_examples=50, deadline=None)
def test_the_largest_entries_arrive(values):
    leaf = np.array(values, np.float32)
    found = np.asarray(c.top_k(0.3).of_leaf(leaf))
    kept = int(np.ceil(0.3 * len(leaf)))
    assert (found != 0).sum() <= kept
    np.testing.assert_array_equal(found[found != 0], leaf[found != 0])
    assert np.sort(np.abs(found))[-kept:].tolist() == np.sort(np.abs(leaf))[-kept:].tolist()


@given(numbers)
@settings(max_examples=50, deadline=None)
def test_int8_is_off_by_half_a_step(values):
    leaf = np.array(values, np.float32)
    found = np.asarray(c.int8().of_leaf(leaf))
    step = np.abs(leaf).max() / 127
    if step < np.finfo(np.float32).tiny:
        assert not found.any()
        return
    assert np.all(np.abs(found - leaf) <= 0.5001 * step + 1e-38)
    assert len(np.unique(np.round(found / step))) <= 255


@pytest.mark.parametrize(("largest", "arrives"), [(1.4e-36, False), (1.6e-36, True), (0.0, False)])
def test_int8_of_almost_nothing_is_nothing(largest, arrives):
    leaf = np.array([largest, -largest / 3], np.float32)
    found = np.asarray(c.int8().of_leaf(leaf))
    assert found.any() == arrives
    if arrives:
        np.testing.assert_allclose(found, leaf, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_int8_of_16_bits_has_a_scale_of_32(dtype):
    generator = np.random.default_rng(0)
    for largest in (65504, 1000, 1):
        leaf = jnp.asarray(largest * generator.uniform(-1, 1, 50), dtype).at[0].set(largest)
        found = c.int8().of_leaf(leaf)
        wanted = c.int8().of_leaf(leaf.astype(jnp.float32)).astype(dtype)
        np.testing.assert_array_equal(found, wanted)
        assert jnp.isfinite(found).all()


def test_bfloat16_is_what_a_cast_makes():
    leaf = np.random.default_rng(1).normal(size=100).astype(np.float32)
    found = jax.jit(c.bfloat16().of_leaf)(leaf)
    np.testing.assert_array_equal(found, jnp.asarray(leaf, jnp.bfloat16).astype(jnp.float32))


def test_bfloat16_of_float16_is_rounded_where_float16_has_few_digits():
    tiny = [11 * 2.0**-24, 3 * 2.0**-24, 37 * 2.0**-24]  # all of them numbers of bfloat16, too
    found = jax.jit(c.bfloat16().of_leaf)(jnp.asarray([*tiny, 1.0, 65504.0], jnp.float16))
    np.testing.assert_array_equal(found, np.asarray([*tiny, 1.0, np.inf], np.float16))


@pytest.mark.parametrize(("fraction", "size", "sent"), [(0.07, 100, 7), (0.14, 50, 7), (0.1, 5, 1)])
def test_a_fraction_is_what_is_written(fraction, size, sent):
    """The double that is nearest to 0.07 is larger: a hundred times that is above 7."""
    top = c.top_k(fraction)
    assert np.count_nonzero(top.of_leaf(jnp.arange(1.0, size + 1))) == sent
    assert top.num_bytes(np.zeros(size, np.float32)) == 8 * sent


@each
def test_all_kinds_of_leaves_jitted_scanned_and_vectorised(name):
    tx = c.error_feedback(ALL[name])
    state = tx.init(TREE)
    sent, after = jax.jit(tx.update)(TREE, state)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(sent) == shapes(TREE)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype(np.float32)}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[TREE] * 3)
    step = lambda state, push: tx.update(push, state)[::-1]
    _, scanned = jax.lax.scan(step, state, stacked)
    for leaf, one in zip(jax.tree.leaves(scanned), jax.tree.leaves(sent), strict=True):
        np.testing.assert_array_equal(leaf[0], one)
    many = jax.vmap(tx.update)(stacked, jax.vmap(tx.init)(stacked))[0]
    for leaf, one in zip(jax.tree.leaves(many), jax.tree.leaves(sent), strict=True):
        np.testing.assert_array_equal(leaf[1], one)
    missing = {**TREE, "scale": None}
    sent, kept = tx.update(missing, after)
    assert sent["scale"] is None
    np.testing.assert_array_equal(kept.left["scale"], after.left["scale"])


@each
def test_what_was_left_out_is_sent_later(name, x64):
    """All that was sent, and what is left, is all that was pushed."""
    rng = np.random.default_rng(2)
    tx, pushed, arrived = c.error_feedback(ALL[name]), 0.0, 0.0
    state = tx.init(jnp.zeros(12))
    for _ in range(30):
        push = rng.normal(size=12)
        sent, state = tx.update(jnp.asarray(push), state)
        pushed, arrived = pushed + push, arrived + np.asarray(sent)
    np.testing.assert_allclose(arrived + state.left, pushed, rtol=0, atol=1e-12)
    assert np.abs(state.left).max() < 10  # and it stays small


@each
def test_what_is_not_finite_arrives_and_is_forgotten(name):
    tx = c.error_feedback(ALL[name])
    push = jnp.arange(8.0).at[3].set(jnp.nan).at[5].set(jnp.inf)
    sent, state = tx.update(push, tx.init(jnp.zeros(8)))
    assert not jnp.isfinite(sent[3])
    assert not jnp.isfinite(sent[5])
    assert jnp.isfinite(state.left).all()
    sent, state = tx.update(jnp.ones(8), state)
    assert jnp.isfinite(sent).all()


def test_bytes():
    params = {"w": jnp.zeros((100, 10)), "b": jnp.zeros(3, jnp.bfloat16), "none": None, "x": 1.0}
    assert c.push_bytes(params) == 4000 + 6 + 4
    assert c.push_bytes(params, c.bfloat16()) == 2000 + 6 + 2
    assert c.push_bytes(params, c.int8()) == 1004 + 7 + 5
    assert c.push_bytes(params, c.top_k(0.01)) == 10 * 8 + 6 + 8
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((100, 10))})
    assert c.push_bytes(shapes) == 4000


# Beznosikov et al., On Biased Compression for Distributed Learning (2020), example 1: the largest
# entry of each worker's gradient leads away, all of them together would not.
DIRECTIONS = jnp.array([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])


def distance(transform, num_updates=400):
    schedule = sim.make_schedule(
        sim.ConstantTime(), 3, num_updates, seed=0, protocol=sim.Synchronous()
    )
    loss = lambda w, a: jnp.dot(a, w) ** 2 + 0.25 * jnp.sum(w**2)
    result = sim.simulate(
        sim.Problem(loss, jnp.ones(3)),
        optax.sgd(0.02),
        schedule,
        lambda event, worker: DIRECTIONS[worker],
        worker=sim.OneGradient(transform=transform),
    )
    if result.non_finite is not None:
        return np.inf
    return float(jnp.linalg.norm(result.params))


def test_a_memory_for_each_worker_keeps_top_k_from_going_astray():
    assert distance(None) < 1e-3
    assert distance(c.compress(c.top_k(0.3))) > 10
    assert distance(c.error_feedback(c.top_k(0.3))) < 1e-2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: c.top_k(0.0), ValueError, "fraction must be a finite number > 0 and <= 1"),
        (lambda: c.top_k(1.5), ValueError, "fraction must be a finite number > 0 and <= 1"),
        (lambda: c.top_k("all"), TypeError, "fraction must be a number"),
        (lambda: c.error_feedback(0.1), TypeError, "compression must be a compression, such as"),
        (lambda: c.compress(c.int8), TypeError, r"the function int8 itself: call it, int8\("),
        (lambda: c.push_bytes({}, optax.sgd(0.1)), TypeError, "compression must be a compression"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_it_is_found_where_the_page_says():
    assert dc.compressions.top_k is c.top_k
