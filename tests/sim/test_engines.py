"""Engines: equal to each other, resumable, compiled once, frugal."""

import functools

import calls
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import ENGINES, NUM_EVENTS, run, schedule_for

from dcasgd_jax import sim


# Operation by operation, which takes long: once for all engines.
@functools.cache
def eagerly(protocol):
    schedule = schedule_for(protocol, num_updates=8)
    return schedule, run(schedule, dtype=np.float64, engine=sim.HostEngine(jit=False))


@functools.cache
def noisy_eagerly():
    schedule, options = schedule_for(), dict(loss_fn=problems.noisy_loss, key=jax.random.key(3))
    return schedule, options, run(schedule, **options, engine=sim.HostEngine(jit=False))


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize(
    "protocol", [sim.Asynchronous(), sim.Synchronous(), sim.Sequential()], ids=repr
)
def test_engines_agree(engine, protocol, x64):
    schedule, expected = eagerly(protocol)
    result = run(schedule, dtype=np.float64, engine=engine, metrics=["compensation_ratio"])
    # Compiled code contracts multiply-adds and so rounds differently: a few units of 2^-53.
    chex.assert_trees_all_close(result.params, expected.params, rtol=1e-12, atol=1e-13)
    chex.assert_trees_all_close(result.opt_state[1], expected.opt_state[1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-12)
    assert result.trace.loss.shape == result.trace.compensation_ratio.shape == (len(schedule),)


@pytest.mark.parametrize("engine", ENGINES[:4], ids=repr)
def test_engines_draw_the_same_random_numbers(engine):
    schedule, options, expected = noisy_eagerly()
    result = run(schedule, **options, engine=engine)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)
    other = run(schedule, loss_fn=problems.noisy_loss, key=jax.random.key(4), engine=engine)
    assert np.abs(other.losses - result.losses).max() > 1e-3


@pytest.mark.parametrize("engine", ENGINES[:4], ids=repr)
@pytest.mark.parametrize("protocol", [sim.Asynchronous(), sim.Synchronous()], ids=repr)
def test_stopping_and_going_on_changes_no_bit(engine, protocol):
    schedule = schedule_for(protocol, num_updates=12)
    options = dict(engine=engine, loss_fn=problems.noisy_loss, key=jax.random.key(0))
    tx = problems.adaptive()
    whole = run(schedule, tx, **options)
    first = run(schedule, tx, **options, stop=7)
    second = run(schedule, tx, **options, state=first.state)
    again = run(schedule, tx, **options, state=first.state)  # the state is still there
    # Chunks of other lengths are other programs to XLA on the scan engine, hence no exact test.
    close = dict(rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(second.params, whole.params, **close)
    chex.assert_trees_all_equal(second.params, again.params)
    np.testing.assert_allclose(np.concatenate([first.losses, second.losses]), whole.losses, **close)
    assert first.trace.event.tolist() == list(range(7))
    assert second.trace.event.tolist() == list(range(7, len(schedule)))


@pytest.mark.parametrize("engine", [sim.ScanEngine(chunk_size=16), sim.HostEngine()], ids=repr)
def test_a_second_call_neither_traces_nor_compiles(engine):
    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return problems.softmax_loss(params, batch)

    tx = optax.sgd(0.1)  # a plain GradientTransformation, wrapped inside
    options = dict(loss_fn=loss_fn, engine=engine)
    run(schedule_for(seed=0), tx, **options)
    after_first = len(traces)
    for seed in range(1, 4):
        run(schedule_for(seed=seed), tx, **options)
    assert len(traces) == after_first


def test_long_runs_compile_one_chunk_and_one_rest():
    def traces_of(num_events):
        traces = []

        def loss_fn(w, target):
            traces.append(1)
            return (w - target) ** 2

        schedule = schedule_for(num_updates=num_events)
        engine = sim.ScanEngine(chunk_size=50)
        calls.simulate(
            loss_fn, 0.0, optax.sgd(0.1), schedule, np.ones(num_events, np.float32), engine=engine
        )
        return len(traces)

    assert traces_of(5_030) == traces_of(80)


def test_choosing_the_engine_does_not_trace_again_either():
    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return problems.softmax_loss(params, batch)

    tx = problems.adaptive()
    run(schedule_for(seed=0), tx, loss_fn=loss_fn)
    after_first = len(traces)
    run(schedule_for(seed=5), tx, loss_fn=loss_fn)
    assert len(traces) == after_first


def test_a_gradient_is_evaluated_once_per_event():
    calls = []

    def loss_fn(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return problems.softmax_loss(params, batch)

    run(schedule_for(), loss_fn=loss_fn, engine=sim.ScanEngine())
    jax.effects_barrier()
    assert len(calls) == NUM_EVENTS


def test_the_callers_arrays_survive_donation():
    params = problems.softmax_params()
    tx = problems.adaptive()
    opt_state = tx.init(params)
    schedule = schedule_for()
    batches = problems.softmax_batches(NUM_EVENTS)
    first = calls.simulate(
        problems.softmax_loss, params, tx, schedule, batches, opt_state=opt_state, stop=30
    )
    calls.simulate(problems.softmax_loss, params, tx, schedule, batches, state=first.state)
    for tree in (params, opt_state, first.params, first.state):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


def test_snapshots_take_the_memory_that_the_schedule_reports():
    schedule = schedule_for(law=sim.ParetoTime(1.2))
    result = run(schedule)
    shapes = {leaf.shape[0] for leaf in jax.tree.leaves(result.state.snapshots)}
    assert shapes == {schedule.num_slots}
    assert schedule.num_slots <= 4


def test_progress_reaches_the_end():
    done = []
    run(schedule_for(), engine=sim.ScanEngine(chunk_size=25), progress=done.append)
    assert done == [25, 50, 60]


def test_engine_choice(monkeypatch):
    from dcasgd_jax.sim import engines

    chosen = []

    def choose(loss_fn, params, batch):
        original = engines.choose_engine
        with monkeypatch.context() as patch:
            spy = lambda c: chosen.append(original(c)) or chosen[-1]
            patch.setattr(engines, "choose_engine", spy)
            batches = jnp.stack([batch] * 2)
            calls.simulate(loss_fn, params, optax.sgd(0.1), sim.Schedule([0, 0], [0, 1]), batches)
        return chosen[-1]

    def convolving(params, batch):
        return jnp.sum(jax.lax.conv(batch, params, (1, 1), "SAME"))

    image, kernel = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3))
    assert choose(jax.jit(convolving), kernel, image) == sim.HostEngine()
    assert choose(lambda p, b: jnp.sum(p * b), kernel, kernel) == sim.ScanEngine()
