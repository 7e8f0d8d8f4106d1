"""What the server does with pushes: averages, drops, duplicates, NaN; against a literal loop."""

import functools

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import problems
import pytest
from problems import run, schedule_for

from dcasgd_jax import sim

LR, MOMENTUM, LAMBDA0, MS_DECAY = 0.3, 0.5, 2.0, 0.9
ENGINES = [sim.ScanEngine(chunk_size=7), sim.HostEngine()]


def literal_loop(schedule, *, compensates="push", dtype=np.float64):
    """A NumPy server that follows the schedule word by word; returns all versions."""
    params = problems.softmax_params(dtype)
    batches = problems.softmax_batches(len(schedule), dtype)
    grad_fn = problems.gradient_of(problems.softmax_loss)
    server = oracle.Server(
        params, schedule.num_workers, lr=LR, lambda0=LAMBDA0, ms_decay=MS_DECAY, momentum=MOMENTUM
    )
    versions, waiting = [server.params], []
    for k in range(len(schedule)):
        if not schedule.applied[k]:
            continue
        worker, batch = int(schedule.worker[k]), int(schedule.batch[k])
        stale = versions[schedule.read_version[k]]
        server.backups[worker] = stale
        grads = grad_fn(stale, jax.tree.map(lambda rows: rows[batch], batches))  # noqa: B023
        grads = {name: np.asarray(grad) for name, grad in grads.items()}
        if compensates == "push":
            grads = {name: server.compensate(worker, name, grad) for name, grad in grads.items()}
        waiting.append(grads)
        if k + 1 == len(schedule) or schedule.version[k + 1] > schedule.version[k]:
            mean = {name: np.mean([grads[name] for grads in waiting], axis=0) for name in grads}
            if compensates == "mean":
                mean = {name: server.compensate(worker, name, grad) for name, grad in mean.items()}
            server.params = {
                name: leaf - LR * server.accelerate(name, mean[name])
                for name, leaf in server.params.items()
            }
            versions.append(server.params)
            waiting = []
    return versions


@functools.cache
def compensation():
    return compensations.explicit(LAMBDA0, ms_decay=MS_DECAY)


@functools.cache
def momentum():
    return optax.sgd(LR, momentum=MOMENTUM)


LINKS = sim.Links([0, 0, 1, 1], latency=0.1, bandwidth=2.0, push_bytes=1.0, pull_bytes=1.0)
PROTOCOLS = {
    "buffered": dict(protocol=sim.Buffered(3)),
    "buffered, more pushes than workers": dict(protocol=sim.Buffered(6)),
    "dropping": dict(protocol=sim.DropStale(3)),
    "backup workers": dict(protocol=sim.Synchronous(backup_workers=1)),
    "stopped": dict(protocol=sim.Synchronous(backup_workers=1, cancel=True)),
    "quorum": dict(protocol=sim.Quorum(3, grace=0.5), links=LINKS),
    "stale-synchronous": dict(protocol=sim.StaleSynchronous(1)),
    "overlap": dict(protocol=sim.Asynchronous(overlap=True), upload=sim.ExponentialTime(0.7)),
    "faults": dict(
        faults=[
            sim.Crash(1, 2.0),
            sim.Restart(1, 4.0),
            sim.LateJoin(3, 1.5),
            sim.LostPush(0, 2),
            sim.DuplicatedPush(2, 3),
            sim.SlowDown(0, 1.0, 3.0, 4.0),
        ]
    ),
    "buffered with faults": dict(
        protocol=sim.Buffered(3), faults=[sim.DuplicatedPush(2, 1), sim.LostPush(0, 1)]
    ),
}


def make_schedule(name, num_updates=16):
    return sim.make_schedule(sim.ExponentialTime(), 4, num_updates, seed=3, **PROTOCOLS[name])


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_equals_the_literal_loop(name, engine, x64):
    schedule = make_schedule(name)
    result = run(schedule, momentum(), per_push=compensation(), dtype=np.float64, engine=engine)
    chex.assert_trees_all_close(result.params, literal_loop(schedule)[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dropping", "backup workers", "stale-synchronous", "faults"])
def test_in_the_chain_where_no_versions_are_mixed(name, x64):
    schedule = make_schedule(name)
    result = run(schedule, optax.chain(compensation(), momentum()), dtype=np.float64)
    expected = literal_loop(schedule, compensates="mean")
    chex.assert_trees_all_close(result.params, expected[-1], rtol=1e-10, atol=1e-12)


def test_the_mean_of_compensated_pushes_is_not_the_compensated_mean(x64):
    schedule = make_schedule("buffered")
    per_push, on_mean = (literal_loop(schedule, compensates=c)[-1] for c in ("push", "mean"))
    assert np.abs(per_push["w"] - on_mean["w"]).max() > 1e-4


def test_a_compensation_of_a_mean_of_several_versions_is_refused():
    with pytest.raises(ValueError, match=r"pass it as per_push=, which transforms each push"):
        run(make_schedule("buffered"), problems.adaptive())


def test_one_push_per_update_needs_no_mean(x64):
    schedule = schedule_for(num_updates=20)
    tx = optax.chain(compensation(), momentum())
    buffered = schedule_for(sim.Buffered(1), num_updates=20)
    for field in ("worker", "read_version", "version", "time"):
        np.testing.assert_array_equal(getattr(buffered, field), getattr(schedule, field))
    chain = run(schedule, tx, dtype=np.float64)
    per_push = run(schedule, momentum(), per_push=compensation(), dtype=np.float64)
    chex.assert_trees_all_close(per_push.params, chain.params, rtol=1e-12, atol=1e-13)


def test_a_dropped_push_changes_nothing():
    schedule = make_schedule("dropping")
    dropped = np.flatnonzero(~schedule.applied)
    assert len(dropped) >= 2
    k = int(dropped[1])
    tx = problems.adaptive()
    before = run(schedule, tx, stop=k).state
    after = run(schedule, tx, state=before, stop=k + 1).state
    for name in ("params", "opt_state"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(before, name))
    assert int(after.event) == k + 1


def test_the_trace_says_what_was_applied_and_where_it_came_from():
    schedule = make_schedule("faults")
    trace = run(schedule).trace
    np.testing.assert_array_equal(trace.applied, schedule.applied)
    repeated = int(np.flatnonzero(schedule.batch != np.arange(len(schedule)))[0])
    assert trace.loss[repeated] == trace.loss[schedule.batch[repeated]]
    assert trace.samples[repeated] == trace.samples[repeated - 1]
    assert trace.samples[-1] == 8 * len(np.unique(schedule.batch))


def nan_schedule():
    return sim.make_schedule(
        sim.ExponentialTime(), 4, 40, seed=3, faults=[sim.NaNGradient(worker=1, push=2)]
    )


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_nan_push_with_apply_if_finite_changes_nothing(engine):
    schedule = nan_schedule()
    event = int(np.flatnonzero(schedule.corrupt)[0])
    tx = optax.apply_if_finite(problems.adaptive(), max_consecutive_errors=1)
    before = run(schedule, tx, stop=event, engine=engine).state
    after = run(schedule, tx, state=before, stop=event + 1, engine=engine).state
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.opt_state.inner_state, before.opt_state.inner_state)
    assert int(after.opt_state.total_notfinite) == 1
    result = run(schedule, tx, engine=engine)
    assert result.non_finite is None
    assert len(result.losses) == 40
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize("engine", [*ENGINES, sim.ScanEngine(), sim.HostEngine(chunk_size=3)])
def test_a_nan_push_without_it_is_reported_and_ends_the_run(engine):
    schedule = nan_schedule()
    event = int(np.flatnonzero(schedule.corrupt)[0])
    result = run(schedule, engine=engine)
    reads_nan = np.flatnonzero(schedule.read_version > schedule.version[event])
    first = int(reads_nan[0])
    assert result.non_finite == sim.NonFinite(
        event=first,
        worker=int(schedule.worker[first]),
        version=int(schedule.read_version[first]),
    )
    assert np.isfinite(result.losses[:first]).all()
    assert np.isnan(result.losses[first])
    assert result.trace.event.tolist() == list(range(first + 1))


def test_a_loss_that_recovers_is_reported_and_the_run_goes_on():
    images, labels = problems.softmax_batches(60)
    images[20] = np.nan
    tx = optax.apply_if_finite(problems.adaptive(), max_consecutive_errors=5)
    result = calls.simulate(
        problems.softmax_loss, problems.softmax_params(), tx, schedule_for(), (images, labels),
        engine=sim.ScanEngine(chunk_size=21),
    )  # fmt: skip
    assert result.non_finite.event == 20
    assert len(result.losses) == 60
    assert np.isfinite(result.losses[21:]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_mean_of_many_pushes_is_a_mean_also_in_16_bits(dtype):
    """A sum of bfloat16 numbers near 1 stays at 256."""
    schedule = sim.make_schedule(
        sim.ConstantTime(), 1024, num_updates=1, seed=0, protocol=sim.Synchronous()
    )
    pushes = np.random.default_rng(0).uniform(0.1, 0.9, (1024, 1)).astype(dtype)
    problem = sim.Problem(lambda w, push: jnp.sum(w * push), jnp.zeros(1, dtype))
    params = sim.simulate(problem, optax.sgd(1.0), schedule, pushes).params
    assert params.dtype == dtype
    mean = pushes.astype(np.float64).mean()
    np.testing.assert_allclose(-np.asarray(params, np.float64), mean, rtol=8 * jnp.finfo(dtype).eps)
