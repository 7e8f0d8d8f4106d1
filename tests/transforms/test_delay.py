"""`delay_gradients`: an ordinary loop that behaves like an asynchronous one."""

from typing import NamedTuple

import chex
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
ATOL = 1e-10  # float64, 24 events; see test_oracles


def compensating_sgd(lambda0=2.0, momentum=0.5):
    return optax.chain(
        compensations.explicit(lambda0, ms_decay=0.9), optax.sgd(0.3, momentum=momentum)
    )


def round_robin(tx, num_workers, num_events):
    """Params after each push of workers that take turns; batches are bound to the pull."""
    order = [event % num_workers for event in range(num_events)]
    return loops.run_workers(tx, PROBLEM.params, order, loops.softmax_grad_fn(), loops.by_argument)[
        0
    ]


@pytest.mark.parametrize("delay", [0, 1, 3, 6])
def test_plain_loop_is_a_round_robin_of_delay_plus_one_workers(delay, x64):
    """Worker t mod (τ+1) pulls version t with batch t: what call t + τ delivers.

    A simulated worker's first gradient is at version 0. The plain loop makes its first τ + 1
    gradients there too, because nothing is applied for τ calls: with batches 0 to τ.
    """
    num_calls = 20
    tx = dc.delay_gradients(compensating_sgd(), delay)
    trace, _ = loops.run_plain(tx, PROBLEM.params, num_calls, loops.softmax_grad_fn())
    assert_same(trace[: delay + 1], [trace[0]] * (delay + 1))
    expected = round_robin(compensating_sgd(), delay + 1, num_calls - delay)
    # Jitted against not jitted, float64.
    np.testing.assert_allclose(
        oracle.flatten(trace[delay:]), oracle.flatten(expected), rtol=0, atol=ATOL
    )


def test_equals_the_numpy_oracle(x64):
    tx = dc.delay_gradients(compensating_sgd(), delay=4)
    trace, _ = loops.run_plain(tx, PROBLEM.params, 24, loops.softmax_grad_fn())
    server = oracle.Server(PROBLEM.params, 5, lr=0.3, lambda0=2.0, ms_decay=0.9, momentum=0.5)
    expected = oracle.run(server, [event % 5 for event in range(20)], PROBLEM.grad)
    np.testing.assert_allclose(
        oracle.flatten(trace[4:]), oracle.flatten(expected), rtol=0, atol=ATOL
    )


class RecorderState(NamedTuple):
    calls: chex.Array


def recorder(seen):
    """A transformation that appends the arguments of every call that is really made."""

    def update(updates, state, params=None, **extra_args):
        jax.debug.callback(lambda **kw: seen.append(kw), grads=updates, params=params, **extra_args)
        return jax.tree.map(lambda u: -u, updates), RecorderState(state.calls + 1)

    return optax.GradientTransformationExtraArgs(
        lambda params: RecorderState(jnp.zeros((), jnp.int32)), update
    )


def record(delay, num_calls, **extra_args):
    """Calls t = 0, 1, ... with gradient 10 + t and params t; what the inner transformation saw."""
    seen = []
    tx = dc.delay_gradients(recorder(seen), delay)
    update = jax.jit(tx.update)
    fill = lambda value: {"a": jnp.full(2, value, jnp.float32), "b": jnp.float32(value)}
    state, all_updates = tx.init(fill(0)), []
    for t in range(num_calls):
        updates, state = update(fill(10 + t), state, fill(t), **extra_args)
        jax.effects_barrier()
        all_updates.append(updates)
    return seen, all_updates, state


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_inner_gets_the_gradient_of_delay_calls_ago_and_where_it_was_taken(delay):
    seen, all_updates, state = record(delay, 7)
    assert len(seen) == 7 - delay
    assert int(state.inner_state.calls) == 7 - delay
    for applied, call in enumerate(seen):
        t = applied + delay
        np.testing.assert_array_equal(call["grads"]["a"], np.full(2, 10.0 + t - delay))
        assert call["stale_params"]["b"] == t - delay
        assert call["params"]["b"] == t
        assert call["staleness"] == min(applied, delay)  # in updates, and the first is fresh
        assert all_updates[t]["b"] == -(10.0 + t - delay)
    for updates in all_updates[:delay]:
        assert_same(updates, {"a": np.zeros(2, np.float32), "b": np.float32(0)})


def test_per_leaf_delays():
    """Nothing happens before the slowest leaf is due; then each leaf has its own age."""
    seen, all_updates, _ = record({"a": 3, "b": 1}, 7)
    assert len(seen) == 4
    for applied, call in enumerate(seen):
        t = applied + 3
        np.testing.assert_array_equal(call["grads"]["a"], np.full(2, 10.0 + t - 3))
        assert call["grads"]["b"] == 10.0 + t - 1
        assert call["stale_params"]["a"][0] == t - 3
        assert call["stale_params"]["b"] == t - 1
        staleness = {name: int(value) for name, value in call["staleness"].items()}
        assert staleness == {"a": min(applied, 3), "b": min(applied, 1)}
    assert all(float(updates["b"]) == 0.0 for updates in all_updates[:3])


def test_equal_delays_per_leaf_are_one_delay():
    one, per_leaf = record(2, 5), record({"a": 2, "b": 2}, 5)
    assert_same(per_leaf, one)


def test_per_leaf_delays_with_a_callable():
    by_rank = lambda params: jax.tree.map(lambda p: 3 if p.ndim else 1, params)
    assert_same(record(by_rank, 6), record({"a": 3, "b": 1}, 6))


def test_extra_arguments_go_on_to_inner_at_the_time_of_the_call():
    seen, _, _ = record(2, 4, value=jnp.float32(7.0))
    assert [float(call["value"]) for call in seen] == [7.0, 7.0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_delay_zero_is_bitwise_the_inner_optimizer(dtype):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    grad_fn = lambda params, step: jax.tree.map(jnp.sin, params)
    inner = optax.adam(0.1)
    actual, state = loops.run_plain(dc.delay_gradients(inner, 0), params, 6, grad_fn)
    expected, inner_state = loops.run_plain(inner, params, 6, grad_fn)
    assert_same(actual, expected)
    assert_same(state.inner_state, inner_state)


def test_inner_adam_neither_counts_nor_decays_while_waiting():
    """With a decoupled decay and a schedule, which zero gradients would have set in motion."""
    inner = optax.adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.1)
    tx = dc.delay_gradients(inner, 3)
    params = jax.tree.map(jnp.asarray, {"w": np.arange(3, dtype=np.float32)})
    grad_fn = lambda params, step: jax.tree.map(jnp.cos, params)
    trace, state = loops.run_plain(tx, params, 3, grad_fn)
    assert_same(state.inner_state, inner.init(params))
    assert_same(trace, [params] * 4)
    trace, state = loops.run_plain(tx, params, 8, grad_fn)
    order = [event % 4 for event in range(5)]
    expected, inner_state = loops.run_workers(inner, params, order, grad_fn, loops.by_age)
    # float32, jitted against not jitted.
    assert_same(trace[3:], expected, rtol=1e-5, atol=1e-6)
    assert_same(state.inner_state, inner_state, rtol=1e-5, atol=1e-6)


def test_fixed_delay_compensation_inside_sees_the_same_versions(x64):
    """Its own ring turns only when an update is made, and then holds w_{t - τ} too."""
    explicit = dc.delay_gradients(compensating_sgd(), 2)
    fixed = optax.chain(
        compensations.fixed_delay(2.0, 2, ms_decay=0.9), optax.sgd(0.3, momentum=0.5)
    )
    grad_fn = loops.softmax_grad_fn()
    one, _ = loops.run_plain(explicit, PROBLEM.params, 10, grad_fn)
    two, _ = loops.run_plain(dc.delay_gradients(fixed, 2), PROBLEM.params, 10, grad_fn)
    # Float64 rounding, two ways of compiling.
    np.testing.assert_allclose(oracle.flatten(one), oracle.flatten(two), rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["stale_params", "staleness"])
def test_somebody_elses_staleness_is_an_error(name):
    tx = dc.delay_gradients(optax.sgd(0.1), 2)
    params = jnp.ones(2)
    with pytest.raises(TypeError, match=r"makes the gradients stale itself.*stale_params="):
        tx.update(params, tx.init(params), params, **{name: params})


def test_plain_transformation_inside_takes_no_extra_args():
    """One whose `update` knows only three arguments."""
    plain = optax.GradientTransformation(
        optax.sgd(0.5).init, lambda updates, state, params=None: (updates, state)
    )
    tx = dc.delay_gradients(plain, 1)
    params = jnp.ones(2)
    _, state = tx.update(params * 3, tx.init(params), params)
    updates, _ = tx.update(params * 5, state, params)
    np.testing.assert_array_equal(updates, [3.0, 3.0])


@pytest.mark.parametrize("delay", [0, 2])
def test_the_worker_that_inner_gets_is_that_of_the_gradient(delay):
    """Not of the call: the gradient of two calls ago was somebody else's."""
    seen = []
    tx = dc.delay_gradients(recorder(seen), delay)
    update, state = jax.jit(tx.update), tx.init(jnp.float32(0))
    workers = [3, 1, 0, 2, 1]
    for call, worker in enumerate(workers):
        _, state = update(jnp.float32(call), state, jnp.float32(0), worker=jnp.int32(worker))
        jax.effects_barrier()
    told = [(int(call["worker"]), float(call["grads"])) for call in seen]
    assert told == [(worker, float(call)) for call, worker in enumerate(workers)][: 5 - delay]


def test_the_mean_squares_of_workers_follow_their_gradients(x64):
    """The same as a server of three workers that take turns, each with its own mean square."""
    compensate = compensations.explicit(2.0, ms_decay=0.9, num_workers=3)
    tx = optax.chain(compensate, optax.sgd(0.3))
    params = {"w": jnp.asarray([1.0, -2.0])}
    grad = lambda p, event: jax.tree.map(lambda w: jnp.sin(w + event), p)
    state, held, versions = tx.init(params), [params] * 3, [params]
    for event in range(9):
        worker = event % 3
        updates, state = tx.update(
            grad(held[worker], event), state, versions[-1],
            stale_params=held[worker], worker=worker,
        )  # fmt: skip
        held[worker] = optax.apply_updates(versions[-1], updates)
        versions.append(held[worker])
    delayed = dc.delay_gradients(tx, 2)
    update, state, now, made = jax.jit(delayed.update), delayed.init(params), params, [params]
    for event in range(11):  # call t takes a gradient at its params; t - 2 is delivered
        updates, state = update(grad(now, event), state, now, worker=jnp.int32(event % 3))
        now = optax.apply_updates(now, updates)
        made.append(now)
    np.testing.assert_allclose(made[11]["w"], versions[9]["w"], rtol=1e-12)


def test_a_worker_where_leaves_come_from_several_calls_is_refused():
    tx = dc.delay_gradients(optax.sgd(0.1), {"a": 1, "b": 2})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="from the gradients of several workers"):
        tx.update(params, tx.init(params), params, worker=0)
    tx.update(params, tx.init(params), params)


@jax.tree_util.register_pytree_node_class
class Model:
    """A tree of parameters that can be called, as modules of several libraries are."""

    def __init__(self, first, last):
        self.first, self.last = first, last

    def __call__(self, x):
        return self.first * x + self.last

    def tree_flatten(self):
        return (self.first, self.last), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize("make", [dc.delay_gradients, dc.assume_delay])
def test_a_tree_of_delays_that_can_be_called_is_a_tree(make):
    params = Model(jnp.asarray([1.0, 2.0]), jnp.asarray(3.0))
    loss = lambda model: jnp.sum(model(2.0) ** 2)
    inner = optax.chain(compensations.explicit(0.1), optax.sgd(0.01))
    results = []
    for delay in (Model(2, 0), lambda tree: Model(2, 0)):
        tx, model = make(inner, delay), params
        state, update = tx.init(model), jax.jit(tx.update)
        for _ in range(5):
            updates, state = update(jax.grad(loss)(model), state, model)
            model = optax.apply_updates(model, updates)
        results.append(model)
    chex.assert_trees_all_equal(*results)
    other = make(inner, 0)
    updates, _ = other.update(jax.grad(loss)(params), other.init(params), params)
    assert isinstance(updates, Model)
    assert float(jnp.abs(results[0].first - params.first).max()) > 0.01


def test_wide_gradients_of_narrow_params_are_not_rounded():
    params = jnp.asarray([1.0, 2.0], jnp.bfloat16)
    tx = dc.delay_gradients(optax.identity(), 1)
    grads = jnp.asarray([1.0000001, -3.1415927], jnp.float32)
    _, state = tx.update(grads, tx.init(params), params)
    updates, _ = tx.update(jnp.zeros(2), state, params)
    np.testing.assert_array_equal(updates, grads)
    assert updates.dtype == jnp.float32
