"""What optax asks of every transformation: to combine with the wrappers and arguments of others."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import STEPS, assert_same, every


def is_copy_of_params(path):
    return any(name in jax.tree_util.keystr(path) for name in ("kernel", "scale"))


@every
def test_accepts_unknown_extra_args(case):
    tree = cases.params()
    actual = cases.train(case, case.make(), STEPS, tree, value=jnp.ones(()), unknown=(1, 2))
    assert_same(actual, cases.reference(case.name))


@every
def test_jitted_equals_eager_and_traces_once_for_all_workers_and_steps(case):
    tx = case.make()
    num_traces = 0

    @jax.jit
    def jitted(grads, state, params, kwargs):
        nonlocal num_traces
        num_traces += 1
        return tx.update(grads, state, params, **kwargs)

    tree, eager_state = cases.params(), tx.init(cases.params())
    state = eager_state
    expected, _, _ = cases.reference(case.name)
    for step in STEPS:
        kwargs, grads = case.update_kwargs(step, tree), cases.grads(step, tree)
        updates, state = jitted(grads, state, tree, kwargs)
        # float32; XLA fuses a multiply and an add into one rounding; λ g² amplifies by up to 50.
        assert_same(updates, expected[step][0], rtol=1e-5, atol=1e-5)
        if step == 0:  # where the reference loop may be jitted too
            updates, _ = tx.update(grads, eager_state, tree, **kwargs)
            assert_same(updates, expected[step][0], rtol=1e-5, atol=1e-5)
        tree = expected[step][1]
    assert num_traces == 1


def inject(case):
    return optax.inject_hyperparams(case.factory, static_args=case.static_args)(**case.kwargs)


@every
def test_inject_hyperparams_equals_plain_and_can_be_changed_in_the_state(case):
    plain, tree, plain_state = cases.reference(case.name)
    tx = inject(case)
    injected, _, state = cases.train(case, tx, STEPS, cases.params())
    # Hyperparameters are float32 instead of Python floats: a few half roundings, and the result
    # of 1 - ms_decay, which loses a digit.
    assert_same(injected, plain, rtol=1e-5, atol=1e-5)

    step = [len(STEPS)]
    expected, _, _ = cases.train(case, case.make(lambda0=0.5), step, tree, plain_state)
    changed = optax.tree.set(state, lambda0=jnp.asarray(0.5))
    actual, _, _ = cases.train(case, tx, step, tree, changed)
    unchanged, _, _ = cases.train(case, tx, step, tree, state)
    assert_same(actual[0][0], expected[0][0], rtol=1e-4, atol=1e-4)  # as above, five steps later
    kernel = lambda outputs: np.asarray(outputs[0][0]["dense"]["kernel"])
    assert np.abs(kernel(actual) - kernel(unchanged)).max() > 1e-3


@every
def test_map_params_of_nothing_is_nothing(case):
    _, _, state = cases.reference(case.name)
    assert_same(optax.tree.map_params(case.make(), lambda leaf: leaf, state), state)


@every
def test_map_params_reaches_every_copy_of_params_and_nothing_else(case):
    _, _, state = cases.reference(case.name)
    marked = optax.tree.map_params(
        case.make(), lambda leaf: True, state, transform_non_params=lambda leaf: False
    )
    for path, mark in jax.tree_util.tree_leaves_with_path(marked):
        assert mark == is_copy_of_params(path), path
    cleared = optax.tree.map_params(case.make(), jnp.zeros_like, state)
    expected = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if is_copy_of_params(path) else leaf, state
    )
    assert_same(cleared, expected)


@every
def test_masked(case):
    full, _, _ = cases.reference(case.name)
    tree, mask = cases.params(), {"dense": True, "scale": False}
    tx = optax.masked(case.make(), mask, mask_compatible_extra_args=True)
    masked, _, state = cases.train(case, tx, STEPS, tree)
    for step in STEPS:
        assert_same(masked[step][0]["dense"], full[step][0]["dense"])
        assert_same(masked[step][0]["scale"], cases.grads(step, tree)["scale"])
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("scale" in path for path in paths)  # it is not even stored


@every
def test_partition(case):
    full, _, _ = cases.reference(case.name)
    tx = optax.partition(
        {"compensated": case.make(), "frozen": optax.set_to_zero()},
        {"dense": "compensated", "scale": "frozen"},
        mask_compatible_extra_args=True,
    )
    parted, _, _ = cases.train(case, tx, STEPS, cases.params())
    for step in STEPS:
        assert_same(parted[step][0]["dense"], full[step][0]["dense"])
        assert float(parted[step][0]["scale"]) == 0.0


def test_masked_without_compatible_extra_args_explains_itself():
    case = cases.BY_NAME["explicit"]
    tree = cases.params()
    tx = optax.masked(case.make(), {"dense": True, "scale": False})
    with pytest.raises(ValueError, match="mask_compatible_extra_args=True"):
        tx.update(cases.grads(0, tree), tx.init(tree), tree, stale_params=tree)


@every
def test_works_inside_multi_steps(case):
    """Two equal gradients make one update of that gradient; the first one makes none."""
    expected, _, _ = cases.reference(case.name)
    tree, tx = cases.params(), optax.MultiSteps(case.make(), every_k_schedule=2)
    update, state = jax.jit(tx.update), tx.init(tree)
    for step in STEPS:
        kwargs, grads = case.update_kwargs(step, tree), cases.grads(step, tree)
        nothing, state = update(grads, state, tree, **kwargs)
        actual, state = update(grads, state, tree, **kwargs)
        assert_same(nothing, jax.tree.map(jnp.zeros_like, grads))
        # float32; fused differently, and amplified by λ g² of up to 50.
        assert_same(actual, expected[step][0], rtol=1e-5, atol=1e-5)
        tree = expected[step][1]


def test_multi_steps_around_compensation_is_another_rule():
    """It compensates the mean gradient with the last stale point; push accumulated ones instead."""
    tx = cases.BY_NAME["explicit"].make(lambda0=1.0)
    around = optax.MultiSteps(tx, every_k_schedule=2)
    params, pushes = jnp.asarray(1.0), [(1.0, 0.5), (3.0, 0.75)]  # (gradient, stale params)
    state, around_state = tx.init(params), around.init(params)
    per_push = []
    for grad, stale_params in pushes:
        kwargs = {"stale_params": jnp.asarray(stale_params)}
        compensated, state = tx.update(jnp.asarray(grad), state, params, **kwargs)
        per_push.append(float(compensated))
        wrapped, around_state = around.update(jnp.asarray(grad), around_state, params, **kwargs)
    assert per_push == [1 + 1 * 0.5, 3 + 9 * 0.25]
    assert np.mean(per_push) == 3.375
    assert float(wrapped) == 2 + 4 * 0.25  # 3.0


@every
def test_float32_schedules_do_not_promote_bfloat16(case):
    overrides = {"lambda0": lambda count: jnp.asarray(2.0, jnp.float32) / (1 + count)}
    if "learning_rate" in case.kwargs:
        overrides["learning_rate"] = lambda count: jnp.asarray(0.1, jnp.float32)
    tx, tree = case.make(**overrides), cases.params(jnp.bfloat16)
    state = tx.init(tree)
    updates, new_state = jax.eval_shape(
        lambda: tx.update(tree, state, tree, **case.update_kwargs(0, tree))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)


@every
def test_params_without_a_value_stay_none(case):
    """As in a model that was split into trainable and static leaves."""
    tree = cases.params()
    tree["dense"]["static"] = None
    with_none, _, _ = cases.train(case, case.make(), STEPS, tree)
    without, _, _ = cases.reference(case.name)
    for (updates, _), (expected, _) in zip(with_none, without, strict=True):
        assert updates["dense"].pop("static") is None
        assert_same(updates, expected)


@every
def test_gradients_of_none_stay_none(case):
    tx, tree = case.make(), cases.params()
    state = tx.init(tree)
    grads = {**cases.grads(0, tree), "scale": None}
    updates, _ = tx.update(grads, state, tree, **case.update_kwargs(0, tree))
    assert updates["scale"] is None
    expected = cases.reference(case.name)[0][0][0]["dense"]
    # The reference may be jitted: float32, one rounding more or less.
    assert_same(updates["dense"], expected, rtol=1e-6, atol=1e-6)


@every
def test_empty_tree(case):
    tx = case.make()
    state = tx.init({})
    for step in STEPS:
        updates, state = tx.update({}, state, {}, **case.update_kwargs(step, {}))
        assert updates == {}
