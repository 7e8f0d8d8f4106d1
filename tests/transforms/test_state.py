"""The states as JAX sees them: carried, donated, sharded and saved."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from cases import assert_same, every
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def types(tree):
    return jax.tree.map(jax.typeof, tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every
def test_types_of_state_and_updates_never_change(case, dtype):
    """`typeof` includes dtype, shape and weak type: what scan, cond and jit's cache look at."""
    with jax.enable_x64(dtype == "float64"):
        tx, tree = case.make(), cases.params(jnp.dtype(dtype))
        grads = cases.grads(0, tree)
        state = tx.init(tree)

        def step(carry, worker):
            state, params = carry
            kwargs = case.update_kwargs(0, params)
            if "worker" in kwargs:
                kwargs["worker"] = worker
            push = lambda state: tx.update(grads, state, params, **kwargs)
            skip = lambda state: (jax.tree.map(jnp.zeros_like, grads), state)
            updates, state = jax.lax.cond(worker > 0, push, skip, state)
            return (state, optax.apply_updates(params, updates)), updates

        scan = lambda carry: jax.lax.scan(step, carry, jnp.arange(3, dtype=jnp.int32))
        (after, _), updates = jax.eval_shape(scan, (state, tree))  # raises if a carry changes type
        assert types(after) == types(state)
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda g: g.dtype, grads)
        eager = jax.eval_shape(
            lambda s: tx.update(grads, s, tree, **case.update_kwargs(0, tree)), state
        )
        assert types(eager) == types((grads, state))


@every
def test_scan_equals_loop(case):
    tx, tree = case.make(), cases.params()
    looped, _, last_state = cases.reference(case.name)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    befores = [tree] + [after for _, after in looped[:-1]]
    inputs = stack(
        [
            (cases.grads(step, tree), before, case.update_kwargs(step, before))
            for step, before in zip(cases.STEPS, befores, strict=True)
        ]
    )

    def step(state, inputs):
        grads, params, kwargs = inputs
        updates, state = tx.update(grads, state, params, **kwargs)
        return state, updates

    state, updates = jax.jit(lambda state: jax.lax.scan(step, state, inputs))(tx.init(tree))
    # float32, the same operations fused differently, amplified by λ g² of up to 50.
    assert_same(updates, stack([updates for updates, _ in looped]), rtol=1e-5, atol=1e-5)
    assert_same(state, last_state, rtol=1e-5, atol=1e-5)


@every
def test_params_and_fresh_state_can_be_donated_together(case):
    tx, tree = case.make(), cases.params()

    def step(params, state, grads, kwargs):
        updates, state = tx.update(grads, state, params, **kwargs)
        return jax.tree.map(lambda p, u: p - 0.1 * u, params, updates), state

    params = jax.tree.map(jnp.copy, tree)
    state = tx.init(params)
    donating = jax.jit(step, donate_argnums=(0, 1))
    reference, expected, expected_state = cases.reference(case.name)
    before = [tree] + [after for _, after in reference]
    for k in cases.STEPS:
        given = jax.tree.leaves((params, state))
        kwargs = case.update_kwargs(k, before[k])
        params, state = donating(params, state, cases.grads(k, tree), kwargs)
        assert all(array.is_deleted() for array in given)  # else this test tests nothing
    # float32, fused differently over five steps, amplified by λ g² of up to 50.
    assert_same((params, state), (expected, expected_state), rtol=1e-4, atol=1e-4)


@every
def test_state_does_not_alias_params(case):
    tree = cases.params()
    addresses = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
    state_leaves = jax.tree.leaves(case.make().init(tree))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in state_leaves]
    assert not addresses & set(pointers)
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@every
def test_state_is_sharded_like_params(case, axis_type):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    specs = {"dense": {"kernel": PartitionSpec("x", None)}, "scale": PartitionSpec()}
    arrays = {"dense": {"kernel": np.ones((8, 3))}, "scale": np.ones(())}
    with jax.set_mesh(mesh):
        tree = jax.tree.map(
            lambda array, spec: jax.device_put(array.astype(np.float32), NamedSharding(mesh, spec)),
            arrays,
            specs,
        )
        tx = case.make()
        update = jax.jit(tx.update)
        kwargs = case.update_kwargs(0, tree)
        fresh = tx.init(tree)
        updates, once = update(tree, fresh, tree, **kwargs)
        _, twice = update(tree, once, tree, **kwargs)

    jax.tree.map(lambda u, p: assert_sharded_like(u, p), updates, tree)
    for state in (fresh, once, twice):
        assert types(state) == types(fresh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            kernel = tree["dense"]["kernel"]
            if "kernel" in jax.tree_util.keystr(path) and leaf.shape[-2:] == kernel.shape:
                assert_sharded_like(leaf, kernel)
            elif axis_type == AxisType.Explicit:  # else XLA chooses
                assert leaf.sharding.is_fully_replicated, path


def assert_sharded_like(leaf, param):
    """The same on the trailing axes; a leading axis of workers or ages is not sharded."""
    leading = (None,) * (leaf.ndim - param.ndim)
    expected = NamedSharding(param.sharding.mesh, PartitionSpec(*leading, *param.sharding.spec))
    assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (leaf.sharding, expected)


@every
def test_checkpoint_in_mid_flight(case, tmp_path):
    """A run restored after 3 of 5 steps, into a fresh template, goes on bit for bit."""
    tree = cases.params()
    uninterrupted, _, _ = cases.reference(case.name)
    _, params, state = cases.train(case, case.make(), range(3), tree)
    template = {"params": tree, "state": case.make().init(tree)}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step_3", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "step_3", template)
    assert_same(restored["state"], state)
    continued, _, _ = cases.train(
        case, case.make(), range(3, 5), restored["params"], restored["state"]
    )
    assert_same(continued, uninterrupted[3:])


def test_checkpoint_keeps_the_pending_pull(tmp_path):
    """Without `pending_worker` the last worker would be compensated against what it held before."""
    case = cases.BY_NAME["worker"]
    _, params, state = cases.train(case, case.make(), range(4), cases.params())
    assert int(state.pending_worker) == int(cases.worker(3)) == 2
    lost = state._replace(pending_worker=jnp.asarray(0, jnp.int32))
    right, _, _ = cases.train(case, case.make(), [4], params, state)  # worker 2 pushes again
    wrong, _, _ = cases.train(case, case.make(), [4], params, lost)
    assert int(cases.worker(4)) == 2
    assert_same(right[0][0], cases.grads(4, params))  # fresh, hence uncompensated
    assert np.abs(wrong[0][0]["dense"]["kernel"] - right[0][0]["dense"]["kernel"]).max() > 1e-3
