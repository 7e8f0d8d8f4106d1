"""simulate: equal to the NumPy oracle, measured, and what its protocols and traces mean."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ENGINES, NUM_EVENTS, run, schedule_for

import dcasgd_jax as dc
from dcasgd_jax import sim


def numpy_loop(schedule, params, batches, loss_fn, **server_options):
    """The oracle's server fed by an event loop that follows the schedule literally."""
    grad_fn = problems.gradient_of(loss_fn)
    server = oracle.Server(params, schedule.num_workers, **server_options)
    versions = [server.params]
    for k in range(len(schedule)):
        stale = versions[schedule.read_version[k]]
        worker = int(schedule.worker[k])
        server.backups[worker] = stale
        grads = grad_fn(stale, jax.tree.map(lambda rows: rows[k], batches))  # noqa: B023
        server.push(worker, {name: np.asarray(grad) for name, grad in grads.items()})
        versions.append(server.params)
    return versions[-1]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    law=st.sampled_from([sim.RoundRobin(), sim.ExponentialTime(), sim.ParetoTime(1.5)]),
    num_workers=st.integers(1, 6),
    seed=st.integers(0, 100),
    lambda0=st.sampled_from([0.0, 0.5, 2.0]),
    ms_decay=st.sampled_from([None, 0.0, 0.95]),
    max_pull=st.sampled_from([None, 0.5]),
)
def test_float64_run_equals_the_numpy_oracle(law, num_workers, seed, lambda0, ms_decay, max_pull):
    with jax.enable_x64(True):
        schedule = sim.make_schedule(law, num_workers, 24, seed=seed)
        params = problems.softmax_params(np.float64)
        batches = problems.softmax_batches(24, np.float64)
        options = dict(ms_decay=ms_decay, max_pull=max_pull)
        curvature, sgd = compensations.curvature(ms_decay), optax.sgd(0.3, momentum=0.5)
        if max_pull is None:
            tx = optax.chain(dc.compensate_delay(lambda0, curvature=curvature), sgd)
        else:  # as in dcasgd, outside of the momentum
            tx = dc.compensate_updates(
                sgd, lambda0, curvature=curvature, max_pull=max_pull, learning_rate=0.6
            )
        result = calls.simulate(problems.softmax_loss, params, tx, schedule, batches)
        expected = numpy_loop(
            schedule, params, batches, problems.softmax_loss, lr=0.3, lambda0=lambda0,
            momentum=0.5, **options,
        )  # fmt: skip
        chex.assert_trees_all_close(result.params, expected, rtol=1e-10, atol=1e-12)


def test_synchronous_is_sgd_on_the_mean_of_the_workers_batches():
    schedule = schedule_for(sim.Synchronous(), num_updates=10)
    batches = problems.softmax_batches(40)
    result = run(schedule, optax.sgd(0.3))
    params = problems.softmax_params()
    for update in range(10):
        rows = slice(4 * update, 4 * update + 4)
        joined = jax.tree.map(lambda b: b[rows].reshape(-1, *b.shape[2:]), batches)  # noqa: B023
        grads = jax.grad(problems.softmax_loss)(params, joined)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    chex.assert_trees_all_close(result.params, params, rtol=1e-5, atol=1e-6)
    assert len(result.losses) == 40


def test_sequential_is_plain_sgd():
    schedule = schedule_for(sim.Sequential())
    params, batches = problems.softmax_params(), problems.softmax_batches(NUM_EVENTS)
    result = run(schedule, optax.sgd(0.3))
    for k in range(NUM_EVENTS):
        grads = jax.grad(problems.softmax_loss)(params, jax.tree.map(lambda b: b[k], batches))  # noqa: B023
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    chex.assert_trees_all_close(result.params, params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", [sim.Sequential(), sim.Synchronous()], ids=repr)
def test_without_staleness_compensation_changes_no_bit(protocol):
    schedule = schedule_for(protocol, num_updates=15)
    compensated, plain = (
        run(schedule, problems.adaptive()),
        run(schedule, problems.adaptive(lambda0=0.0)),
    )
    chex.assert_trees_all_equal(compensated.params, plain.params)
    stale = schedule_for()
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(
            run(stale).params,
            run(stale, problems.adaptive(lambda0=0.0)).params,
            rtol=1e-3,
        )


def plain_loop(inner, delay, compile_step, num_events=NUM_EVENTS):
    """An ordinary training loop around `delay_gradients`, long enough for every push to land."""
    batches = problems.softmax_batches(num_events)
    tx = dc.delay_gradients(inner, delay)

    def train_step(params, state, batch):
        grads = jax.grad(problems.softmax_loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = compile_step(train_step)
    params = problems.softmax_params()
    state = tx.init(params)
    for k in range(num_events + delay):
        batch = jax.tree.map(lambda b: b[min(k, num_events - 1)], batches)  # noqa: B023
        params, state = step(params, state, batch)
    return params


def test_delay_gradients_in_a_plain_loop_is_round_robin_operation_by_operation():
    schedule = schedule_for(law=sim.RoundRobin(), num_updates=20)
    result = run(schedule, problems.adaptive(), engine=sim.HostEngine(jit=False))
    with jax.disable_jit():
        expected = plain_loop(problems.adaptive(), 3, lambda step: step, num_events=20)
    chex.assert_trees_all_equal(result.params, expected)


@pytest.mark.parametrize("engine", ENGINES[:4], ids=repr)
@pytest.mark.parametrize(
    "inner",
    [optax.sgd(0.25), optax.chain(compensations.explicit(2.0), optax.sgd(0.25))],
    ids=["asgd", "dcasgd-c"],
)
def test_compiled_too_where_products_are_exact(inner, engine):
    """XLA contracts multiply-adds as it likes; with powers of two that rounds nothing."""
    result = run(schedule_for(law=sim.RoundRobin()), inner, engine=engine)
    chex.assert_trees_all_equal(result.params, plain_loop(inner, delay=3, compile_step=jax.jit))


def test_compiled_to_a_rounding_where_they_are_not():
    result = run(schedule_for(law=sim.RoundRobin()), problems.adaptive())
    expected = plain_loop(problems.adaptive(), delay=3, compile_step=jax.jit)
    # 60 updates of parameters near 1, each within one rounding of 2^-24: seen 2.4e-7.
    chex.assert_trees_all_close(result.params, expected, rtol=0, atol=60 * 2.0**-24)


def test_ready_made_optimizer_equals_the_explicit_one():
    schedule = schedule_for()
    explicit = run(schedule, problems.adaptive(0.3, momentum=None))
    per_worker = run(schedule, compensations.dcasgd(0.3, num_workers=4))
    chex.assert_trees_all_close(explicit.params, per_worker.params, rtol=1e-5, atol=1e-6)


def test_fixed_delay_equals_the_explicit_one_on_round_robin():
    schedule = schedule_for(law=sim.RoundRobin())
    fixed = optax.chain(
        compensations.fixed_delay(2.0, 3, ms_decay=0.95), optax.sgd(0.3, momentum=0.5)
    )
    chex.assert_trees_all_close(
        run(schedule, fixed).params, run(schedule).params, rtol=1e-5, atol=1e-6
    )


def test_the_same_schedule_replays_over_algorithms_with_their_own_extra_args():
    seen = []

    def update(updates, state, params=None, *, stale_params, staleness, worker, **extra_args):
        del extra_args
        seen.append((int(staleness), int(worker), stale_params))
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    schedule = schedule_for()
    run(schedule, optax.chain(recorder, optax.sgd(0.1)), engine=sim.HostEngine(jit=False))
    assert [s for s, _, _ in seen] == schedule.staleness.tolist()
    assert [w for _, w, _ in seen] == schedule.worker.tolist()
    chex.assert_trees_all_equal(seen[0][2], problems.softmax_params())


def test_trace_says_what_happened():
    schedule = schedule_for()
    trace = run(schedule).trace
    np.testing.assert_array_equal(trace.staleness, schedule.staleness)
    np.testing.assert_array_equal(trace.time, schedule.time)
    np.testing.assert_array_equal(trace.worker, schedule.worker)
    np.testing.assert_array_equal(trace.version, schedule.version)
    assert trace.compensation_ratio is None
    first_loss = problems.softmax_loss(
        problems.softmax_params(), jax.tree.map(lambda b: b[0], problems.softmax_batches(1))
    )
    assert trace.loss[0] == pytest.approx(float(first_loss), rel=1e-6)


def test_compensation_ratio_by_hand():
    """loss 0.5 h w^2, so g = h w_stale: ratio = lambda |g| |w - w_stale|."""
    schedule = sim.Schedule([0, 1], [0, 0])
    tx = optax.chain(compensations.explicit(2.0), optax.sgd(0.1))
    result = calls.simulate(
        lambda w, h: 0.5 * h * w**2, jnp.float32(1.0), tx, schedule, np.float32([0.5, 0.5]),
        metrics=["compensation_ratio"],
    )  # fmt: skip
    assert result.trace.compensation_ratio[0] == 0
    # Event 0 moves w to 0.95; event 1 compensates by 2 * 0.5^2 * (-0.05) against g = 0.5.
    assert result.trace.compensation_ratio[1] == pytest.approx(0.05, rel=1e-5)


def test_averaged_pushes_report_a_ratio_only_where_they_update():
    schedule = schedule_for(sim.Synchronous(), num_updates=3)
    ratio = run(schedule, metrics=["compensation_ratio"]).trace
    expected = [np.nan, np.nan, np.nan, 0.0] * 3
    np.testing.assert_array_equal(ratio.compensation_ratio, expected)


def test_batch_fn_equals_arrays():
    schedule = schedule_for()
    batches = jax.tree.map(jnp.asarray, problems.softmax_batches(NUM_EVENTS))
    workers = []

    def batch_fn(event, worker):
        workers.append(worker)
        return jax.tree.map(lambda b: b[event], batches)

    tx = problems.adaptive()
    result = calls.simulate(
        problems.softmax_loss, problems.softmax_params(), tx, schedule, batch_fn,
    )  # fmt: skip
    chex.assert_trees_all_close(result.params, run(schedule, tx).params, rtol=1e-6, atol=1e-7)
    assert workers


def test_initial_optimizer_state_can_be_given():
    schedule = schedule_for()
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    opt_state = tx.init(problems.softmax_params())
    opt_state.hyperparams["learning_rate"] = jnp.float32(0.3)
    chex.assert_trees_all_equal(run(schedule, tx).params, problems.softmax_params())
    chex.assert_trees_all_close(
        run(schedule, tx, opt_state=opt_state).params,
        run(schedule, optax.sgd(0.3)).params,
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_16_bit_parameters_stay_16_bit(dtype):
    result = run(schedule_for(), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(dtype)}
    assert result.losses[-10:].mean() < result.losses[:10].mean()


def test_compensation_widens_the_stable_range_on_a_quadratic():
    """h = 1, delay 3, eta = 1: plain ASGD diverges (limit 0.445), q = h does not (limit 2)."""
    schedule = sim.make_schedule(sim.RoundRobin(), 4, 400, seed=0)
    targets = np.zeros(400, np.float32)
    loss_fn = lambda w, target: 0.5 * (w - target) ** 2
    last = {}
    for name, tx in {
        "asgd": optax.sgd(1.0),
        "capped": optax.chain(
            compensations.explicit(1e30, max_pull=1.0, learning_rate=1.0), optax.sgd(1.0)
        ),
    }.items():
        last[name] = calls.simulate(loss_fn, jnp.float32(1.0), tx, schedule, targets).losses[-1]
    assert not last["asgd"] < 1e6
    assert last["capped"] < 1e-12
