"""simulate: equal to the NumPy oracle, equal between engines, resumable, measured, traced once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dcasgd_jax as dc
from dcasgd_jax import sim

ENGINES = [
    sim.ScanEngine(),
    sim.ScanEngine(chunk_size=7),
    sim.HostEngine(),
    sim.HostEngine(chunk_size=5),
    sim.HostEngine(jit=False),
]
NUM_EVENTS = 60


def schedule_for(protocol=None, law=None, num_updates=NUM_EVENTS, seed=0):
    return sim.make_schedule(
        law or sim.ExponentialTime(), 4, num_updates, seed=seed, protocol=protocol
    )


def run(schedule, tx=None, **options):
    dtype = options.pop("dtype", np.float32)
    return sim.simulate(
        options.pop("loss_fn", problems.softmax_loss),
        problems.softmax_params(dtype),
        problems.adaptive() if tx is None else tx,
        schedule,
        problems.softmax_batches(len(schedule), dtype),
        **options,
    )


def numpy_loop(schedule, params, batches, loss_fn, **server_options):
    """The oracle's server fed by an event loop that follows the schedule literally."""
    grad_fn = jax.jit(jax.grad(loss_fn))
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
        tx = optax.chain(
            dc.compensate_delay(lambda0, **options, learning_rate=0.3), optax.sgd(0.3, momentum=0.5)
        )
        result = sim.simulate(problems.softmax_loss, params, tx, schedule, batches)
        expected = numpy_loop(
            schedule, params, batches, problems.softmax_loss, lr=0.3, lambda0=lambda0,
            momentum=0.5, **options,
        )  # fmt: skip
        chex.assert_trees_all_close(result.params, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize(
    "protocol", [sim.Asynchronous(), sim.Synchronous(), sim.Sequential()], ids=repr
)
def test_engines_agree(engine, protocol, x64):
    schedule = schedule_for(protocol, num_updates=8)
    expected = run(schedule, dtype=np.float64, engine=sim.HostEngine(jit=False))
    result = run(schedule, dtype=np.float64, engine=engine, measure_compensation=True)
    # Compiled code contracts multiply-adds and so rounds differently: a few units of 2^-53.
    chex.assert_trees_all_close(result.params, expected.params, rtol=1e-12, atol=1e-13)
    chex.assert_trees_all_close(result.opt_state[1], expected.opt_state[1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-12)
    assert result.trace.loss.shape == result.trace.compensation_ratio.shape == (len(schedule),)


@pytest.mark.parametrize("engine", ENGINES[:4], ids=repr)
def test_engines_draw_the_same_random_numbers(engine):
    options = dict(loss_fn=problems.noisy_loss, key=jax.random.key(3))
    schedule = schedule_for()
    expected = run(schedule, **options, engine=sim.HostEngine(jit=False))
    result = run(schedule, **options, engine=engine)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)
    other = run(schedule, loss_fn=problems.noisy_loss, key=jax.random.key(4), engine=engine)
    assert np.abs(other.losses - result.losses).max() > 1e-3


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
            run(stale).params, run(stale, problems.adaptive(lambda0=0.0)).params, rtol=1e-3
        )


def test_delay_gradients_in_a_plain_loop_is_round_robin():
    """Op by op bit for bit; compiled, XLA contracts multiply-adds differently in the two."""
    delay = 3
    schedule = schedule_for(law=sim.RoundRobin())
    batches = problems.softmax_batches(NUM_EVENTS)
    inner = problems.adaptive()
    tx = dc.delay_gradients(inner, delay)

    def train_step(params, state, batch):
        grads = jax.grad(problems.softmax_loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def loop(step):
        params = problems.softmax_params()
        state = tx.init(params)
        for k in range(NUM_EVENTS + delay):  # the last pushes are still on their way at the end
            batch = jax.tree.map(lambda b: b[min(k, NUM_EVENTS - 1)], batches)  # noqa: B023
            params, state = step(params, state, batch)
        return params

    with jax.disable_jit():
        exact = loop(train_step)
    result = run(schedule, inner, engine=sim.HostEngine(jit=False))
    chex.assert_trees_all_equal(result.params, exact)
    compiled = run(schedule, inner)
    chex.assert_trees_all_close(compiled.params, loop(jax.jit(train_step)), rtol=1e-4, atol=1e-5)


def test_ready_made_optimizer_equals_the_explicit_one():
    schedule = schedule_for()
    explicit = run(schedule, problems.adaptive(0.3, momentum=None))
    per_worker = run(schedule, dc.dcasgd(0.3, num_workers=4))
    chex.assert_trees_all_close(explicit.params, per_worker.params, rtol=1e-5, atol=1e-6)


def test_fixed_delay_equals_the_explicit_one_on_round_robin():
    schedule = schedule_for(law=sim.RoundRobin())
    fixed = optax.chain(
        dc.compensate_fixed_delay(2.0, 3, ms_decay=0.95), optax.sgd(0.3, momentum=0.5)
    )
    chex.assert_trees_all_close(
        run(schedule, fixed).params, run(schedule).params, rtol=1e-5, atol=1e-6
    )


def test_the_same_schedule_replays_over_algorithms_with_their_own_extra_args():
    seen = []

    def update(updates, state, params=None, *, stale_params, staleness, worker):
        seen.append((int(staleness), int(worker), stale_params))
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    schedule = schedule_for()
    run(schedule, optax.chain(recorder, optax.sgd(0.1)), engine=sim.HostEngine(jit=False))
    assert [s for s, _, _ in seen] == schedule.staleness.tolist()
    assert [w for _, w, _ in seen] == schedule.worker.tolist()
    chex.assert_trees_all_equal(seen[0][2], problems.softmax_params())


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
    tx = optax.chain(dc.compensate_delay(2.0), optax.sgd(0.1))
    result = sim.simulate(
        lambda w, h: 0.5 * h * w**2, jnp.float32(1.0), tx, schedule, np.float32([0.5, 0.5]),
        measure_compensation=True,
    )  # fmt: skip
    assert result.trace.compensation_ratio[0] == 0
    # Event 0 moves w to 0.95; event 1 compensates by 2 * 0.5^2 * (-0.05) against g = 0.5.
    assert result.trace.compensation_ratio[1] == pytest.approx(0.05, rel=1e-5)


def test_averaged_pushes_report_a_ratio_only_where_they_update():
    ratio = run(schedule_for(sim.Synchronous(), num_updates=3), measure_compensation=True).trace
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
    result = sim.simulate(
        problems.softmax_loss, problems.softmax_params(), tx, schedule, batch_fn,
    )  # fmt: skip
    chex.assert_trees_all_close(result.params, run(schedule, tx).params, rtol=1e-6, atol=1e-7)
    assert workers


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
        sim.simulate(
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
    first = sim.simulate(
        problems.softmax_loss, params, tx, schedule, batches, opt_state=opt_state, stop=30
    )
    sim.simulate(problems.softmax_loss, params, tx, schedule, batches, state=first.state)
    for tree in (params, opt_state, first.params, first.state):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


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


def test_engine_choice():
    from dcasgd_jax.sim import engines, step

    def convolving(params, batch):
        return jnp.sum(jax.lax.conv(batch, params, (1, 1), "SAME"))

    def choose(loss_fn, params, batch):
        program = step.Program(loss_fn, optax.sgd(0.1), None, False, False)
        return engines.choose_engine(program, params, batch, None)

    image, kernel = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3))
    assert choose(jax.jit(convolving), kernel, image) == sim.HostEngine()
    assert choose(lambda p, b: jnp.sum(p * b), kernel, kernel) == sim.ScanEngine()


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
            dc.compensate_delay(1e30, max_pull=1.0, learning_rate=1.0), optax.sgd(1.0)
        ),
    }.items():
        last[name] = sim.simulate(loss_fn, jnp.float32(1.0), tx, schedule, targets).losses[-1]
    assert not last["asgd"] < 1e6
    assert last["capped"] < 1e-12
