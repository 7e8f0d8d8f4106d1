"""What optax and JAX ask of every transformation."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import assert_same

from rivals import table
from rivals.table import STEPS, every, those

# float32; XLA fuses a multiply and an add into one rounding.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@functools.cache
def reference(name):
    case = next(case for case in table.CASES if case.name == name)
    return table.train(case, case.make())


@every
def test_ignores_unknown_extra_args(case):
    more = lambda step: {**table.told(step), "value": jnp.ones(()), "unknown": (1, 2)}
    actual, _ = table.train(case, case.make(), told=more)
    assert_same(actual, reference(case.name)[0])


@every
def test_ignores_the_stale_params_that_a_simulator_offers(case):
    more = lambda step: {**case.told(step), "stale_params": case.params()}
    actual, _ = table.train(case, case.make(), told=more)
    assert_same(actual, reference(case.name)[0])


@every
def test_traces_once_and_equals_eager(case):
    chex.clear_trace_counter()  # it counts by name
    tx, params = case.make(), case.params()
    jitted = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(params)
    for step in STEPS:
        args = (case.grads(step), state, params)
        updates, new_state = jitted(*args, **case.told(step))
        if step in (0, 4):
            expected, _ = tx.update(*args, **case.told(step))
            assert_same(updates, expected, **CLOSE)
        params, state = table.move(params, updates), new_state


@every
def test_in_a_scan(case):
    tx, params = case.make(), case.params()
    stack = lambda make: jax.tree.map(lambda *leaf: jnp.stack(leaf), *map(make, STEPS))

    def step(carry, row):
        params, state = carry
        grads, told = row
        updates, state = tx.update(grads, state, params, **told)
        return (table.move(params, updates), state), updates

    rows = (stack(case.grads), stack(case.told))
    (_, state), updates = jax.jit(lambda carry: jax.lax.scan(step, carry, rows))(
        (params, tx.init(params))
    )
    expected, expected_state = reference(case.name)
    assert_same(updates, jax.tree.map(lambda *leaf: jnp.stack(leaf), *expected), **CLOSE)
    assert_same(state, expected_state, **CLOSE)


@every
def test_under_vmap_members_do_not_mix(case):
    """Two members, one of which sees the steps in reverse order."""
    tx, params = case.make(), case.params()
    both = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)
    pair = lambda make, step: jax.tree.map(
        lambda a, b: jnp.stack([a, b]), make(step), make(len(STEPS) - 1 - step)
    )
    update = jax.jit(jax.vmap(lambda g, s, p, told: tx.update(g, s, p, **told)))
    state, many = jax.vmap(tx.init)(both(params)), both(params)
    reverse = table.train(
        case,
        tx,
        told=lambda step: case.told(len(STEPS) - 1 - step),
        grads=lambda step, dtype: case.grads(len(STEPS) - 1 - step),
    )[0]
    for step in STEPS:
        updates, state = update(pair(case.grads, step), state, many, pair(case.told, step))
        many = table.move(many, updates)
        for member, expected in enumerate((reference(case.name)[0], reverse)):
            one = jax.tree.map(lambda leaf, m=member: leaf[m], updates)
            assert_same(one, expected[step], **CLOSE)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@every
def test_keeps_dtypes_and_the_types_of_the_state(case, dtype):
    tx, params = case.make(), case.params(dtype)
    state = tx.init(params)
    updates, new_state = jax.eval_shape(
        lambda: tx.update(case.grads(0, dtype), state, params, **case.told(0))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)


@those(lambda case: not case.wraps)  # an inner momentum has the dtype of the parameters
def test_bfloat16_is_float32_rounded(case):
    """Accumulators are float32: after six steps no rounding of theirs shows."""
    rounded = lambda step, dtype: case.grads(step, jnp.bfloat16)
    wide = lambda step, dtype: optax.tree.cast(rounded(step, dtype), jnp.float32)
    actual, _ = table.train(case, case.make(), jnp.bfloat16, grads=rounded)
    expected, _ = table.train(case, case.make(), grads=wide)
    # One rounding to 8 bits, and for a product of two rounded numbers a second.
    assert_same(optax.tree.cast(actual, jnp.float32), expected, rtol=2**-7, atol=1e-6)


@every
def test_float64(case, x64):
    tx, params = case.make(), case.params(jnp.float64)
    state = tx.init(params)
    updates, state = tx.update(case.grads(0, jnp.float64), state, params, **case.told(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float64)}


@every
def test_gradients_of_none_stay_none(case):
    def without_scale(step, dtype):
        return {**case.grads(step, dtype), "scale": None}

    outputs, state = table.train(case, case.make(), grads=without_scale)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, reference(case.name)[1])
    for updates, expected in zip(outputs, reference(case.name)[0], strict=True):
        assert updates["scale"] is None
        if case.name != "dc_s3gd":  # there one strength, from all leaves, is for all
            assert_same(updates["dense"], expected["dense"], **CLOSE)


@every
def test_params_of_none_stay_none(case):
    tx, params = case.make(), case.params()
    params["dense"]["static"] = None
    grads = case.grads(0)
    grads["dense"]["static"] = None
    updates, _ = tx.update(grads, tx.init(params), params, **case.told(0))
    assert updates["dense"].pop("static") is None
    assert_same(updates, reference(case.name)[0][0], **CLOSE)


@every
def test_empty_tree(case):
    tx = case.make()
    state = tx.init({})
    for step in STEPS:
        updates, state = tx.update({}, state, {}, **case.told(step))
        assert updates == {}


@those(lambda case: not case.wraps and set(case.kwargs) - set(case.static_args) - {"rule"})
def test_inject_hyperparams(case):
    tx = optax.inject_hyperparams(case.factory, static_args=case.static_args)(**case.kwargs)
    assert_same(table.train(case, tx)[0], reference(case.name)[0], **CLOSE)


@every
def test_map_params_of_nothing_is_nothing(case):
    _, state = reference(case.name)
    assert_same(optax.tree.map_params(case.make(), lambda leaf: leaf, state), state)


@those(lambda case: case.stacked == "nothing")
def test_masked(case):
    mask = {"dense": True, "scale": False}
    tx = optax.masked(case.make(), mask, mask_compatible_extra_args=True)
    outputs, _ = table.train(case, tx)
    for step, (updates, expected) in enumerate(zip(outputs, reference(case.name)[0], strict=True)):
        assert_same(updates["dense"], expected["dense"], **CLOSE)
        assert_same(updates["scale"], case.grads(step)["scale"])


@every
def test_donation(case):
    """No two arrays of the fresh state share memory with each other or with the parameters."""
    tx, params = case.make(), case.params()
    state = tx.init(params)
    step = jax.jit(
        lambda params, state: tx.update(case.grads(0), state, params, **case.told(0)),
        donate_argnums=(0, 1),
    )
    expected, _ = tx.update(case.grads(0), state, params, **case.told(0))
    updates, _ = step(params, state)
    assert_same(updates, expected, **CLOSE)
