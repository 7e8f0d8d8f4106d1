"""Each rival by hand, at its borders, and against what it must reduce to."""

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_same

from dcasgd_jax import rivals


def feed(tx, told, grads=None, params=1.0):
    """The updates and states of a sequence of pushes of a scalar gradient (1, if none is given)."""
    update = jax.jit(tx.update)
    params = jnp.asarray(params)
    state, updates, states = tx.init(params), [], []
    for k, kwargs in enumerate(told):
        grad = jnp.asarray(1.0 if grads is None else grads[k])
        update_k, state = update(grad, state, params, **jax.tree.map(np.int32, kwargs))
        updates.append(float(update_k))
        states.append(state)
    return updates, states


def staleness(*values):
    return [{"staleness": value} for value in values]


def workers(*values):
    return [{"worker": value} for value in values]


def test_staleness_scales_the_history_only_after_the_momentum():
    scale, trace = rivals.scale_by_staleness(rivals.inverse_staleness), optax.trace(0.5)
    after, _ = feed(optax.chain(trace, scale), staleness(0, 4))
    before, _ = feed(optax.chain(scale, trace), staleness(0, 4))
    assert after == [1.0, 1.5 / 4]
    assert before == [1.0, 0.5 + 1 / 4]


def test_any_function_of_the_staleness_is_a_rule():
    tx = rivals.scale_by_staleness(lambda tau: jnp.where(tau > 2, 0.0, 1.0))
    assert feed(tx, staleness(0, 2, 3))[0] == [1.0, 1.0, 0.0]


def test_wu_adaptive2_by_hand():
    tx = rivals.adaptive_step_sizes(1.0, 5, alpha=None, flip_sign=False)
    # A fresh one fills the window, for the next that reaches back to it; zeros make room again.
    assert feed(tx, staleness(0, 1, 1, 3, 0, 2))[0] == [1.0, 0.0, 0.5, 0.0, 1.0, 0.0]


def test_wu_adaptive1_by_hand():
    tx = rivals.adaptive_step_sizes(2.0, 5, alpha=0.5)
    updates, states = feed(tx, staleness(0, 1, 2, 0))
    assert updates == [-1.0, -0.5, -0.25, -1.0]
    np.testing.assert_array_equal(states[-1].step_sizes, [1.0, 0.25, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("delay", [1, 2, 5, 6, 9, 15])
def test_wu_adaptive2_with_a_constant_delay_fills_its_window_despite_rounding(delay):
    tx = rivals.adaptive_step_sizes(1.0, max_delay=delay, alpha=None, flip_sign=False)
    updates, _ = feed(tx, staleness(*[delay] * 40))
    np.testing.assert_allclose(updates, 1 / (delay + 1), rtol=1e-6)


@pytest.mark.parametrize("alpha", [None, 0.3, 0.9, 1.0])
def test_wu_adaptive_never_moves_further_than_its_bound_in_a_window(alpha):
    late = np.random.default_rng(0).integers(0, 9, size=200)
    late = np.minimum(late, np.arange(200))
    tx = rivals.adaptive_step_sizes(0.7, max_delay=8, alpha=alpha, flip_sign=False)
    gamma, _ = feed(tx, staleness(*late.tolist()))
    for k, tau in enumerate(late):
        assert gamma[k] == 0 or sum(gamma[k - tau : k + 1]) <= 0.7 * (1 + 1e-6)
    assert np.count_nonzero(gamma) > 20


def test_wu_adaptive_without_delays():
    tx = rivals.adaptive_step_sizes(1.0, max_delay=0, alpha=None, flip_sign=False)
    assert feed(tx, staleness(0, 0, 1, 0))[0] == [1.0, 1.0, 0.0, 1.0]


def drop(bound, **options):
    schedule = lambda count: 1.0 / (1 + count)
    inner = optax.chain(optax.trace(0.5), optax.scale_by_schedule(schedule))
    return rivals.drop_stale(inner, bound, **options)


def test_a_dropped_gradient_advances_neither_momentum_nor_schedule():
    with_drops, states = feed(drop(2), staleness(0, 2, 1, 7, 0))
    without, expected = feed(drop(2), staleness(0, 1, 0))
    assert [with_drops[k] for k in (0, 2, 4)] == without
    assert with_drops[1] == with_drops[3] == 0.0
    assert_same(states[-1].inner_state, expected[-1].inner_state)
    assert [bool(state.applied) for state in states] == [True, False, True, False, True]
    assert int(states[-1].versions.version) == 3


def test_a_bound_of_one_keeps_only_fresh_gradients():
    updates, _ = feed(drop(1), staleness(0, 1, 0, 2))
    assert [u != 0 for u in updates] == [True, False, True, False]


def test_ringmaster_counts_applied_updates_and_lets_the_dropped_worker_pull():
    # Worker 1 read version 0 and comes at version 2: dropped, pulls version 2, then is fresh.
    updates, states = feed(drop(2, num_workers=3), workers(0, 0, 1, 1, 2, 2))
    assert [u != 0 for u in updates] == [True, True, False, True, False, True]
    np.testing.assert_array_equal(states[-1].versions.read_versions.rows, [2, 3, 4])


def test_ringmaster_tells_its_own_count_to_the_inner_optimizer():
    inner = rivals.scale_by_staleness(rivals.inverse_one_plus_staleness)
    tx = rivals.drop_stale(inner, 3, num_workers=2)
    told = [{"worker": w, "staleness": 100} for w in (0, 0, 1)]
    assert feed(tx, told)[0] == pytest.approx([1.0, 1.0, 1 / 3])


def test_fedbuff_by_hand():
    tx = rivals.fedbuff(optax.sgd(2.0), 2, rule=rivals.inverse_one_plus_staleness)
    updates, states = feed(tx, staleness(0, 1, 3, 0), grads=[1.0, 4.0, 8.0, 1.0])
    assert updates == [0.0, -(1 + 4 / 2), 0.0, -(8 / 4 + 1)]
    assert [int(state.versions.version) for state in states] == [0, 1, 1, 2]


def test_fedbuff_of_one_push_is_a_scaled_push():
    chained = optax.chain(rivals.scale_by_staleness(rivals.polynomial_staleness()), optax.sgd(0.5))
    told = staleness(0, 3, 8)
    assert feed(rivals.fedbuff(optax.sgd(0.5), 1), told)[0] == feed(chained, told)[0]


def test_fedbuff_has_no_stale_point_for_its_inner_optimizer():
    tx, params = rivals.fedbuff(compensations.explicit(2.0), 2), jnp.ones(2)
    with pytest.raises(TypeError, match="needs stale_params="):
        tx.update(params, tx.init(params), params, stale_params=params, staleness=0)


def test_delayed_nesterov_of_one_step_is_sgd_with_nesterov():
    grads = [1.0, -2.0, 0.5, 3.0]
    ours, _ = feed(rivals.delayed_nesterov(0.1, 1, 0.9), [{}] * 4, grads)
    theirs, _ = feed(optax.sgd(0.1, momentum=0.9, nesterov=True), [{}] * 4, grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_delayed_nesterov_spreads_the_momentum():
    """c = 1/N: every push applies β m / N, of the momentum that is there when it comes."""
    tx = rivals.delayed_nesterov(1.0, 2, 0.5, smoothing=0.5)
    updates, states = feed(tx, [{}] * 4, grads=[2.0, 4.0, 2.0, 4.0])
    assert [float(state[0].velocity) for state in states] == [0.0, 3.0, 3.0, 4.5]
    assert updates == [-1.0, -(0.75 + 2), -(0.75 + 1), -(0.5 * 0.5 * 4.5 + 2)]


@pytest.mark.parametrize(("delay", "nesterov"), [(0, False), (1, True)])
def test_spike_compensation_reduces_to_known_momenta(delay, nesterov):
    grads = [1.0, -2.0, 0.5, 3.0]
    ours, _ = feed(rivals.spike_compensation(0.9, delay), [{}] * 4, grads)
    theirs, _ = feed(optax.trace(0.9, nesterov), [{}] * 4, grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_spike_compensation_pays_a_whole_impulse():
    """A single gradient moves by 1/(1 - μ) in all, whatever its delay: what momentum promises."""
    for delay in (0, 1, 4):
        updates, _ = feed(rivals.spike_compensation(0.5, delay), [{}] * 40, [1.0] + [0.0] * 39)
        assert sum(updates) == pytest.approx(2.0)
        assert updates[0] == pytest.approx(2 - 0.5**delay)


def test_spike_compensation_per_leaf():
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    tx = rivals.spike_compensation(0.5, {"a": 0, "b": 2})
    updates, _ = tx.update(params, tx.init(params), params)
    assert {name: float(u) for name, u in updates.items()} == {"a": 1.0, "b": 1.75}


def test_ordered_momentum_of_one_worker_is_heavy_ball():
    grads = [1.0, -2.0, 0.5, 3.0]
    ours, _ = feed(rivals.ordered_momentum(0.9, 1), workers(0, 0, 0, 0), grads)
    theirs, _ = feed(optax.trace(0.9), [{}] * 4, grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bucket_size", [None, 1, 5])
def test_ordered_momentum_does_not_depend_on_the_order_of_arrival(seed, bucket_size, x64):
    """Fixed gradients of numbers 0 to 29, by workers in turn or at random, all of them used."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=30)

    def train(choose):
        tx = rivals.ordered_momentum(0.8, 3, bucket_size=bucket_size)
        update, state, w = jax.jit(tx.update), tx.init(jnp.zeros(())), 0.0
        for _ in range(30):
            busy = [m for m in range(3) if int(state.numbers.rows[m]) < 30]
            worker = choose(busy, state.numbers.rows)
            grad = jnp.asarray(G[int(state.numbers.rows[worker])])
            direction, state = update(grad, state, worker=np.int32(worker))
            w -= float(direction)
        return w, float(state.velocity)

    in_order = train(lambda busy, numbers: min(busy, key=lambda m: int(numbers[m])))
    at_random = train(lambda busy, numbers: int(rng.choice(busy)))
    np.testing.assert_allclose(at_random, in_order, rtol=0, atol=1e-12)


def test_ordered_momentum_opens_several_buckets_at_once():
    """Worker 0 alone: numbers 0, 2, 3, ...; the last of many buckets of one gradient each."""
    tx = rivals.ordered_momentum(0.5, 2, bucket_size=1)
    updates, states = feed(tx, workers(0, 0))
    assert int(states[-1].bucket) == 2
    assert updates[1] == 0.5 + 0.25 + 1  # two decaying repetitions of the first, and the second
    assert float(states[-1].velocity) == 0.25 + 1


def test_pipemare_rescale_by_hand():
    updates, _ = feed(rivals.pipemare_rescale(4, num_steps=2), [{}] * 4)
    np.testing.assert_allclose(updates, [0.25, 0.5, 1.0, 1.0], rtol=1e-6)
    assert feed(rivals.pipemare_rescale(0, num_steps=2), [{}] * 3)[0] == [1.0, 1.0, 1.0]


def stacked(seed=0, num_workers=4):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.normal(size=(num_workers, 3)), jnp.float32)}


def test_dc_ssgd_is_a_sequence_of_compensated_pushes():
    params, grads = {"w": jnp.ones(3)}, stacked()
    tx = rivals.dc_ssgd(0.1, 3.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    push = optax.chain(compensations.explicit(3.0), optax.sgd(0.1))
    state, moved = push.init(params), params
    for m in range(4):
        one = {"w": grads["w"][m]}
        step, state = push.update(one, state, moved, stale_params=params)
        moved = optax.apply_updates(moved, step)
    assert_same(optax.apply_updates(params, updates), moved, rtol=1e-5, atol=1e-6)


def test_dc_ssgd_reads_schedules_at_rounds():
    rate, lambda0 = lambda count: 0.1 / (1 + count), lambda count: 2.0 * count
    scheduled, grads, params = rivals.dc_ssgd(rate, lambda0), stacked(), {"w": jnp.ones(3)}
    state = scheduled.init(params)
    for count in range(3):
        fixed = rivals.dc_ssgd(rate(count), lambda0(count))
        expected, _ = fixed.update(grads, fixed.init(params), params)
        updates, state = scheduled.update(grads, state, params)
        assert_same(updates, expected, rtol=1e-6, atol=1e-7)


def test_dc_ssgd_of_one_worker_is_sgd():
    params, grads = {"w": jnp.ones(3)}, stacked(num_workers=1)
    tx = rivals.dc_ssgd(0.1, 5.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_same(updates, {"w": -0.1 * grads["w"][0]})


def test_dc_s3gd_corrects_by_a_fixed_share_of_the_gradient_however_small_the_delay():
    for size in (1e-6, 1e-2):
        tx = rivals.dc_s3gd(optax.sgd(1.0), lambda0=0.2)
        params, grads = stacked(1), stacked(2)
        last_steps = {"w": size * stacked(3)["w"]}
        _, state = tx.update(grads, tx.init(params)._replace(last_steps=last_steps), params)
        correction = -state.last_steps["w"] - grads["w"]
        share = jnp.linalg.norm(correction, axis=1) / jnp.linalg.norm(grads["w"], axis=1)
        # float32: the correction is what is left of a difference five times as long.
        np.testing.assert_allclose(share, 0.2, rtol=1e-5)


def test_dc_s3gd_of_equal_workers_is_the_inner_optimizer():
    params = jnp.ones((3, 2))
    grads = jnp.broadcast_to(jnp.asarray([0.3, -0.1]), (3, 2))
    tx, inner = rivals.dc_s3gd(optax.sgd(0.1, momentum=0.9)), optax.sgd(0.1, momentum=0.9)
    state, inner_state = tx.init(params), inner.init(params)
    for _ in range(4):
        updates, state = tx.update(grads, state, params)
        expected, inner_state = inner.update(grads, inner_state, params)
        assert_same(updates, expected, rtol=1e-6, atol=1e-8)
        assert (np.asarray(state.strengths) == 0).all()
