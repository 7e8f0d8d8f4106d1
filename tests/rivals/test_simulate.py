"""Every elementwise rival as the optimizer of a simulated run, 50 pushes."""

import functools

import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from problems import run, schedule_for, softmax_loss, softmax_params

from dcasgd_jax import rivals, sim

LR = optax.scale_by_learning_rate(0.3)
SGD = optax.sgd(0.3, momentum=0.5)
ELEMENTWISE = {
    "scale_by_staleness": optax.chain(SGD, rivals.scale_by_staleness(rivals.inverse_staleness)),
    "delay_adaptive": optax.chain(SGD, rivals.scale_by_staleness(rivals.delay_adaptive(4))),
    "wu_adaptive1": rivals.adaptive_step_sizes(1.0, max_delay=20),
    "wu_adaptive2": rivals.adaptive_step_sizes(1.0, max_delay=20, alpha=None),
    "drop_stale": rivals.drop_stale(SGD, bound=4),
    "drop_stale_by_worker": rivals.drop_stale(SGD, bound=4, num_workers=4),
    "fedbuff_by_worker": rivals.fedbuff(SGD, buffer_size=3, num_workers=4),
    "delayed_nesterov": rivals.delayed_nesterov(0.3, num_steps=4),
    "spike_compensation": optax.chain(rivals.spike_compensation(0.5, delay=3), LR),
    "ordered_momentum": optax.chain(rivals.ordered_momentum(0.5, num_workers=4), LR),
    "pipemare_rescale": optax.chain(SGD, rivals.pipemare_rescale(3, num_steps=20)),
}


@functools.cache
def lanes():
    mesh = jax.make_mesh((2,), ("workers",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    return sim.LanesEngine(mesh)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_learns_and_engines_agree(name):
    schedule = schedule_for(num_updates=50)
    first = run(schedule, ELEMENTWISE[name], engine=sim.ScanEngine())
    assert first.losses.shape == (50,)
    assert first.losses[-10:].mean() < 0.9 * first.losses[:5].mean()
    for engine in (sim.HostEngine(), lanes()):
        other = run(schedule, ELEMENTWISE[name], engine=engine)
        # float32, fused differently; 50 steps of an order of 0.1.
        chex.assert_trees_all_close(other.params, first.params, rtol=1e-4, atol=1e-5)


def test_ringmaster_is_the_protocol_that_drops(x64):
    """Counted by worker, in a schedule where every push is a version: the same training."""
    tx = rivals.drop_stale(SGD, bound=4, num_workers=4)
    dropping = schedule_for(sim.DropStale(4), num_updates=30)
    assert (~dropping.applied).sum() > 3
    every_push = schedule_for(num_updates=len(dropping))
    np.testing.assert_array_equal(every_push.worker, dropping.worker)
    ours = run(every_push, tx, dtype=np.float64)
    protocols = run(dropping, SGD, dtype=np.float64)
    chex.assert_trees_all_close(ours.params, protocols.params, rtol=0, atol=1e-12)
    assert int(ours.opt_state.versions.version) == 30
    other = run(every_push, rivals.drop_stale(SGD, bound=4), dtype=np.float64)
    assert np.abs(other.params["w"] - ours.params["w"]).max() > 1e-3


def test_fedbuff_is_the_protocol_that_buffers(x64):
    scaled = rivals.scale_by_staleness(rivals.polynomial_staleness(0.5))
    buffered = schedule_for(sim.Buffered(3), num_updates=16)
    every_push = schedule_for(num_updates=len(buffered))
    np.testing.assert_array_equal(every_push.worker, buffered.worker)
    tx = rivals.fedbuff(SGD, buffer_size=3, num_workers=4)
    ours = run(every_push, tx, dtype=np.float64)
    protocols = run(buffered, SGD, per_push=scaled, dtype=np.float64)
    chex.assert_trees_all_close(ours.params, protocols.params, rtol=0, atol=1e-12)


def test_a_mean_of_several_versions_has_no_staleness():
    tx = optax.chain(SGD, rivals.scale_by_staleness(rivals.inverse_staleness))
    with pytest.raises(ValueError, match=r"pass it as per_push=.*update\(\) needs staleness="):
        run(schedule_for(sim.Buffered(3), num_updates=4), tx)


def test_stale_params_reach_the_inner_optimizer_of_drop_stale(x64):
    """Compensation inside of the gate: what is dropped leaves its state alone."""
    inner = optax.chain(compensations.explicit(2.0, ms_decay=0.9), SGD)
    dropping = schedule_for(sim.DropStale(3), num_updates=25)
    every_push = schedule_for(num_updates=len(dropping))
    ours = run(every_push, rivals.drop_stale(inner, 3, num_workers=4), dtype=np.float64)
    protocols = run(dropping, inner, dtype=np.float64)
    chex.assert_trees_all_close(ours.params, protocols.params, rtol=0, atol=1e-10)
    assert int(ours.opt_state.inner_state[0].num_updates) == 25


def test_dc_s3gd_on_vmapped_workers():
    """Each worker has parameters of its own: no server to simulate, a loop and a `vmap`."""
    tx = rivals.dc_s3gd(optax.sgd(0.2, momentum=0.5))
    params = jax.tree.map(lambda p: jnp.stack([p] * 4), softmax_params())
    rng = np.random.default_rng(0)
    state, losses, update = tx.init(params), [], jax.jit(tx.update)
    step = jax.jit(jax.vmap(jax.value_and_grad(softmax_loss)))
    for _ in range(50):
        images = rng.normal(size=(4, 8, 6)).astype(np.float32)
        labels = images[..., :3].argmax(axis=-1)
        loss, grads = step(params, (images, labels))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss.mean()))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.sgd(optax.linear_schedule(0.1, 0.0, 9))])
def test_every_worker_of_dc_s3gd_has_a_whole_state_of_inner(inner):
    """Counters too, which do not have the shape of a parameter."""
    params = jnp.stack([jnp.arange(3.0)] * 4)
    tx = rivals.dc_s3gd(inner)
    state = tx.init(params)
    chex.assert_tree_shape_prefix(state.inner_state, (4,))
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        chex.assert_trees_all_close(updates, jnp.stack([updates[0]] * 4))
        assert float(jnp.abs(updates[0, 1:]).min()) > 0.01
    counts = [leaf for leaf in jax.tree.leaves(state.inner_state) if leaf.ndim == 1]
    assert counts
    for count in counts:
        np.testing.assert_array_equal(count, [2, 2, 2, 2])
