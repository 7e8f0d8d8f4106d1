"""`remember_pulls`: what each worker is thought to hold, and `record_pull`."""

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
from dcasgd_jax import rivals

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
ATOL = 1e-10  # float64, 24 events; see test_oracles
clip = lambda leaf: leaf.clip(-0.3, 0.3)


def train(tx, told=loops.by_worker, **kwargs):
    grad_fn = loops.softmax_grad_fn()
    return loops.run_workers(tx, PROBLEM.params, IRREGULAR, grad_fn, told, **kwargs)


def expected_trace(**settings):
    server = oracle.Server(PROBLEM.params, 4, **settings)
    return oracle.flatten(oracle.run(server, IRREGULAR, PROBLEM.grad))


@pytest.mark.parametrize("ms_decay", [None, 0.95])
def test_projection_after_the_update_is_part_of_what_is_pulled(ms_decay, x64):
    tx = compensations.dcasgd(0.5, num_workers=4, ms_decay=ms_decay)
    trace, _ = train(tx, project=lambda params: jax.tree.map(clip, params))
    expected = expected_trace(lr=0.5, lambda0=2.0, ms_decay=ms_decay, project=clip)
    assert np.abs(expected[1:]).max() == 0.3  # it binds
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


def test_anywhere_in_a_chain_and_nested(x64):
    """The rate before, decay and momentum after, and a chain inside the chain."""
    halve = optax.scale(0.5)
    compensate = compensations.per_worker(8.0, num_workers=4)
    inner = optax.chain(optax.identity(), optax.chain(halve, compensate), optax.trace(0.5))
    tx = optax.chain(inner, optax.add_decayed_weights(0.0), optax.sgd(1.0))
    trace, _ = train(tx)
    # Halving g and multiplying λ by 4 leaves λ g² unchanged and the term linear in g halved:
    # g/2 + 8 (g/2)² Δ = (g + 4 g² Δ) / 2, so that is λ0 = 4 at half the rate.
    expected = expected_trace(lr=0.5, lambda0=4.0, momentum=0.5)
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


def test_backups_are_what_each_worker_holds(x64):
    """After every event, and before the pushing worker's own, which is still pending."""
    tx = compensations.per_worker(2.0, num_workers=4)
    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    state, held, grad_fn = tx.init(params), [params] * 4, loops.softmax_grad_fn()
    for event, worker in enumerate(IRREGULAR):
        grads = grad_fn(held[worker], event)
        updates, state = tx.update(grads, state, params, worker=worker)
        for other in range(4):
            backup = jax.tree.map(lambda rows, row=other: rows[row], state.backups.rows)
            assert_same(backup, held[other])
        assert int(state.pending_worker) == worker
        params = jax.tree.map(lambda p, u: p - 0.5 * u, params, updates)
        held[worker] = params


def test_backups_start_as_the_params_whoever_is_first():
    """Pending worker 0 at the start is harmless: it rewrites the row with what it holds."""
    tx = compensations.per_worker(1e6, num_workers=3, ms_decay=0.9)
    params, grads = {"w": jnp.arange(3.0)}, {"w": jnp.ones(3)}
    state = tx.init(params)
    np.testing.assert_array_equal(state.backups.rows["w"], np.tile(params["w"], (3, 1)))
    for worker in range(3):
        updates, after = tx.update(grads, state, params, worker=worker)
        assert_same(updates, grads)  # the run's first push is fresh
        np.testing.assert_array_equal(after.backups.rows["w"], state.backups.rows["w"])


def test_every_workers_first_push_is_compensated_against_the_initial_params(x64):
    """Not against zeros, as in the 2018 TensorFlow variant; by hand."""
    tx = optax.chain(compensations.per_worker(2.0, num_workers=2), optax.sgd(0.1))
    params, state = jnp.asarray(1.0), tx.init(jnp.asarray(1.0))
    for worker in (0, 1):
        updates, state = tx.update(jnp.asarray(0.5), state, params, worker=worker)
        params = params + updates
    expected = 0.95 - 0.1 * (0.5 + 2 * 0.5**2 * (0.95 - 1.0))
    np.testing.assert_allclose(params, expected, rtol=1e-15)  # a few float64 operations


@pytest.mark.parametrize("ms_decay", [None, 0.95])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_worker_is_bitwise_sgd_for_any_lambda(dtype, ms_decay):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    grad_fn = lambda params, event: jax.tree.map(jnp.sin, params)
    for lambda0 in (1.0, 1e6):
        compensate = compensations.per_worker(lambda0, 1, ms_decay=ms_decay)
        tx = optax.chain(compensate, optax.sgd(0.5))
        actual, _ = loops.run_workers(tx, params, [0] * 6, grad_fn, loops.by_worker)
        expected, _ = loops.run_workers(optax.sgd(0.5), params, [0] * 6, grad_fn, loops.by_age)
        assert_same(actual, expected)


def test_equals_explicit_bitwise_for_random_orders():
    """Both forms run the same arithmetic on the same stale weights, in float32 too."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PROBLEM.params)
    grad_fn = loops.softmax_grad_fn()
    for seed in range(3):
        order = np.random.default_rng(seed).integers(0, 5, size=15).tolist()
        explicit = optax.chain(compensations.explicit(2.0, ms_decay=0.9), optax.sgd(0.5))
        compensate = compensations.per_worker(2.0, 5, ms_decay=0.9)
        per_worker = optax.chain(compensate, optax.sgd(0.5))
        expected, _ = loops.run_workers(explicit, params, order, grad_fn, loops.by_argument)
        actual, _ = loops.run_workers(per_worker, params, order, grad_fn, loops.by_worker)
        assert_same(actual, expected)


def test_what_is_offered_wins_over_what_is_remembered(x64):
    """Two mutants in one: an offer that is ignored, and a guess that is used with it."""
    tx = optax.chain(compensations.per_worker(2.0, num_workers=4), optax.sgd(0.5))
    explicit = optax.chain(compensations.explicit(2.0), optax.sgd(0.5))
    shifted = lambda worker, stale: jax.tree.map(lambda leaf: leaf + 0.1, stale)
    told = lambda worker, stale: {"stale_params": shifted(worker, stale), "worker": worker}
    only = lambda worker, stale: {"stale_params": shifted(worker, stale)}
    offered, state = train(tx, told)
    expected, _ = train(explicit, only)
    assert_same(offered, expected)
    assert_same(train(tx, only)[0], expected)  # of nobody in particular
    alone, remembered = train(tx)
    assert np.abs(oracle.flatten(alone) - oracle.flatten(expected)).max() > 1e-3
    assert int(state[0].num_pushes) == int(remembered[0].num_pushes)


def test_inner_is_told_the_staleness(x64):
    """The same numbers as a count by hand, also after a pull that follows no push."""
    told = []

    def update(updates, state, params=None, *, stale_params, staleness, worker, **extra_args):
        told.append((int(staleness), int(worker), float(stale_params)))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = dc.remember_pulls(inner, 3)
    state = tx.init(jnp.asarray(0.0))
    for step, worker in enumerate([1, 1, 0, 2, 1]):
        if step == 3:
            state = dc.record_pull(state, 2, jnp.asarray(2.5))
        _, state = tx.update(jnp.asarray(1.0), state, jnp.asarray(float(step)), worker=worker)
    assert told == [(0, 1, 0.0), (0, 1, 1.0), (2, 0, 0.0), (0, 2, 2.5), (2, 1, 2.0)]
    tx.update(jnp.asarray(1.0), state, jnp.asarray(5.0), worker=2, staleness=jnp.int32(7))
    assert told[-1] == (7, 2, 4.0)


@pytest.mark.parametrize(
    "worker", [2, np.int64(2), np.asarray(2), jnp.asarray(2), jnp.asarray(2, jnp.uint8)]
)
def test_worker_may_be_any_integer(worker):
    tx = compensations.per_worker(2.0, num_workers=3)
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, worker=worker)
    assert state.pending_worker.dtype == jnp.int32
    assert not state.pending_worker.weak_type
    assert int(state.pending_worker) == 2


# What record_pull must see through, and how to build it around a compensation.
WRAPPED = {
    "bare": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.identity(), optax.chain(tx, optax.trace(0.9))),
    "multi_steps": lambda tx: optax.MultiSteps(tx, every_k_schedule=1),
    "injected": lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.sgd(rate)))(
        rate=0.1
    ),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": True}),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_record_pull_replaces_one_backup_at_any_depth(name, jit):
    tx = WRAPPED[name](compensations.per_worker(2.0, num_workers=3, ms_decay=0.9))
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(())}
    pulled = jax.tree.map(lambda p: 3 * p, params)
    state = tx.init(params)
    record = jax.jit(dc.record_pull) if jit else dc.record_pull
    recorded = record(state, jnp.asarray(1, jnp.int32), pulled)
    assert jax.tree.map(jax.typeof, recorded) == jax.tree.map(jax.typeof, state)
    (backups,) = [
        node.backups.rows
        for node in jax.tree.leaves(recorded, is_leaf=is_backup_state)
        if is_backup_state(node)
    ]
    np.testing.assert_array_equal(backups["b"], [1.0, 3.0, 1.0])
    np.testing.assert_array_equal(backups["a"][1], np.full((2, 2), 3.0))
    # Nothing else has changed: recording the old params again undoes it.
    assert_same(record(recorded, jnp.asarray(1, jnp.int32), params), state)


def is_backup_state(node):
    return isinstance(node, dc.RememberPullsState)


def test_record_pull_in_a_partly_masked_state():
    tx = optax.masked(compensations.per_worker(2.0, 2), {"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = dc.record_pull(tx.init(params), 1, {"a": jnp.zeros(2), "b": jnp.zeros(3)})
    np.testing.assert_array_equal(state.inner_state.backups.rows["a"], [[1.0, 1.0], [0.0, 0.0]])
    assert isinstance(state.inner_state.backups.rows["b"], optax.MaskedNode)


def test_restarted_worker(x64):
    """Worker 1 dies, restarts at event 8 and pulls: the oracle pulls without a push too."""
    order, restart = IRREGULAR[:16], 8

    class Restarting(oracle.Server):
        num_pushes = 0

        def push(self, worker, grads):
            if self.num_pushes == restart:
                self.pull(1)
            super().push(worker, grads)
            self.num_pushes += 1

    # Both sides take gradients that depend on the event only: the restart moves just the backup.
    grad_fn = lambda params, event: PROBLEM.grad(PROBLEM.params, event)
    server = Restarting(PROBLEM.params, 4, lr=0.5, lambda0=2.0)
    expected = oracle.flatten(oracle.run(server, order, grad_fn))

    def train(restart):
        tx = compensations.dcasgd(0.5, num_workers=4, ms_decay=None)
        params = jax.tree.map(jnp.asarray, PROBLEM.params)
        state, trace = tx.init(params), [params]
        for event, worker in enumerate(order):
            if event == restart:
                state = dc.record_pull(state, 1, params)
            updates, state = tx.update(grad_fn(params, event), state, params, worker=worker)
            params = optax.apply_updates(params, updates)
            trace.append(params)
        return oracle.flatten(trace)

    np.testing.assert_allclose(train(restart), expected, rtol=0, atol=ATOL)
    assert np.abs(train(None) - expected).max() > 1e-3  # it matters


def test_record_pull_of_the_pending_worker_is_overwritten_by_its_own_pull(x64):
    """Its pull after its push is still to be noted, and comes later."""
    tx = compensations.per_worker(2.0, num_workers=2)
    params = jnp.asarray(1.0)
    _, state = tx.update(params, tx.init(params), params, worker=1)
    state = dc.record_pull(state, 1, jnp.asarray(7.0))
    _, state = tx.update(params, state, jnp.asarray(2.0), worker=0)
    np.testing.assert_array_equal(state.backups.rows, [1.0, 2.0])


@pytest.mark.parametrize("worker", [3, -1])
def test_record_pull_out_of_range(worker):
    state = compensations.dcasgd(0.1, num_workers=3).init(jnp.ones(2))
    with pytest.raises(ValueError, match=rf"worker {worker} is out of range: num_workers is 3"):
        dc.record_pull(state, worker, jnp.ones(2))


def test_record_pull_without_backups():
    for tx in (optax.adam(0.1), compensations.explicit(2.0), compensations.fixed_delay(2.0, 3)):
        with pytest.raises(ValueError, match=r"remembers no pulls.*dc\.remember_pulls"):
            dc.record_pull(tx.init(jnp.ones(2)), 0, jnp.ones(2))


def test_a_skipped_push_inside_still_is_a_pull(x64):
    """`apply_if_finite` inside: the worker whose NaN was refused has pulled what it saw then."""
    inner = optax.apply_if_finite(optax.chain(compensations.explicit(2.0), optax.sgd(0.1)), 5)
    tx = dc.remember_pulls(inner, 2)
    params = jnp.asarray(1.0)
    state = tx.init(params)
    held, server = [1.0, 1.0], 1.0
    for worker, grad in [(0, 0.5), (1, 0.4), (0, np.nan), (1, 0.3), (0, 0.2), (0, 0.1)]:
        updates, state = tx.update(jnp.asarray(grad), state, params, worker=worker)
        params = optax.apply_updates(params, updates)
        if np.isfinite(grad):
            server -= 0.1 * (grad + 2.0 * grad**2 * (server - held[worker]))
        held[worker] = server
        np.testing.assert_allclose(params, server, rtol=1e-14)


def test_multi_steps_inside_averages_what_was_compensated(x64):
    """Each push with the stale point of its own, and every worker's backup renewed."""
    multi = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx = dc.remember_pulls(optax.chain(compensations.explicit(2.0), multi), 3)
    params = jnp.asarray(1.0)
    state, update = tx.init(params), jax.jit(tx.update)
    held, server, waiting = [1.0] * 3, 1.0, []
    for worker, grad in [(0, 0.5), (1, 0.4), (2, 0.7), (0, -0.3), (1, 0.2), (1, 0.9)]:
        updates, state = update(jnp.asarray(grad), state, params, worker=jnp.int32(worker))
        params = optax.apply_updates(params, updates)
        waiting.append(grad + 2.0 * grad**2 * (server - held[worker]))
        if len(waiting) == 2:
            server, waiting = server - 0.1 * np.mean(waiting), []
        held[worker] = server
        np.testing.assert_allclose(params, server, rtol=1e-8)  # MultiSteps sums in float32
    np.testing.assert_allclose(state.backups.rows[0], held[0], rtol=1e-8)


def test_the_readers_loop_with_worker_ids_from_one_is_found_out():
    """1..M instead of 0..M-1, as an array, outside of a jit of the reader's own."""
    tx, params = dc.dcasgd(0.1, 3), jnp.ones(2)
    state = tx.init(params)
    for worker in (1, 2):
        _, state = tx.update(params, state, params, worker=jnp.int32(worker))
    with pytest.raises(ValueError, match=r"worker 3 is out of range: .* workers are 0 to 2"):
        tx.update(params, state, params, worker=jnp.int32(3))


@pytest.mark.parametrize(("worker", "row"), [(-1, 0), (-5, 0), (3, 2), (100, 2)])
def test_a_traced_worker_out_of_range_is_clamped(worker, row):
    tx = dc.remember_pulls(optax.identity(), 3)
    state = dc.record_pull(tx.init(jnp.zeros(2)), row, jnp.ones(2))
    told = jax.jit(
        lambda state, worker: tx.update(jnp.zeros(2), state, jnp.zeros(2), worker=worker)
    )
    assert told(state, jnp.int32(worker))[1].pending_worker == row
    recorded = jax.jit(dc.record_pull)(state, jnp.int32(worker), jnp.full(2, 5.0))
    np.testing.assert_array_equal(recorded.backups.rows[row], jnp.full(2, 5.0))


def test_the_state_keeps_no_array_of_the_caller():
    tx = dc.dcasgd(0.1, 3)
    params, worker = jnp.ones(2), jnp.int32(1)
    _, state = tx.update(jnp.ones(2), tx.init(params), params, worker=worker)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert int(worker) == 1


def test_what_was_sent_is_remembered(x64):
    """DANA-DC in a loop of one's own, where the workers get the look-ahead."""
    tx, send = rivals.dana(0.1, decay=0.5, num_workers=3, lambda0=2.0)
    wrapped = dc.remember_pulls(tx, 3, send=send)
    target = jnp.asarray([1.0, -2.0])
    grad = lambda w: 2 * (w - target)
    params, told = jnp.zeros(2), jnp.zeros(2)
    state, told_state = wrapped.init(params), tx.init(params)
    held = [params] * 3
    for worker in [1, 1, 0, 2, 0, 1, 2, 2, 0]:
        grads = grad(held[worker])
        updates, state = wrapped.update(grads, state, params, worker=worker)
        params = optax.apply_updates(params, updates)
        updates, told_state = tx.update(
            grads, told_state, told, worker=worker, stale_params=held[worker]
        )
        told = optax.apply_updates(told, updates)
        held[worker] = send(params, state)
        np.testing.assert_array_equal(params, told)
    np.testing.assert_array_equal(state.backups.rows[2], held[2])
    assert float(jnp.abs(held[2] - params).max()) > 1e-3


def test_the_state_of_another_optimizer_is_named():
    params = jnp.ones(2)
    with pytest.raises(
        TypeError, match=r"remembers no pulls \(tuple\): start from this one's init"
    ):
        dc.dcasgd(0.1, 2).update(params, optax.sgd(0.1).init(params), params, worker=0)
