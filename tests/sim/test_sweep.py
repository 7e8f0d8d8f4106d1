"""sweep: every member equals its own simulate, however the members are spread."""

import threading

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from dcasgd_jax import sim

NUM_EVENTS = 24
NUMBERS = sim.grid(learning_rate=[0.1, 0.3], lambda0=[0.0, 2.0])
# Other groups are other programs to XLA, which contracts multiply-adds as it likes: at most two
# dozen roundings of numbers near 1.
FLOAT32 = dict(rtol=1e-6, atol=2e-6)
FLOAT64 = dict(rtol=1e-12, atol=1e-13)


@optax.inject_hyperparams
def injected(learning_rate, lambda0):
    return problems.make_adaptive(learning_rate, lambda0)


TX = injected(learning_rate=0.3, lambda0=2.0)


def schedule_for(protocol=None, num_updates=NUM_EVENTS, seed=0):
    return problems.schedule_for(protocol, num_updates=num_updates, seed=seed)


def alone(values, index):
    return values.values[index] if isinstance(values, sim.PerMember) else values


def assert_close(actual, expected, tolerance):
    """Compares leaf by leaf: metrics are float32 whatever the parameters are."""
    single = FLOAT32 if tolerance is FLOAT64 else tolerance

    def compare(mine, other):
        assert np.asarray(mine).dtype == np.asarray(other).dtype
        double = np.asarray(mine).dtype == np.float64
        np.testing.assert_allclose(mine, other, **(tolerance if double else single))

    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(compare, actual, expected)


def check(tolerance=FLOAT32, *, dtype=np.float32, numbers=NUMBERS, tx=TX, **given):
    """Every member against its own call of simulate; returns the sweep."""
    options = {name: given.pop(name) for name in ("devices", "at_once") if name in given}
    engine = given.pop("engine", None)
    inputs = dict(
        loss_fn=problems.softmax_loss,
        params=problems.softmax_params(dtype),
        schedule=schedule_for(),
        batches=problems.softmax_batches(NUM_EVENTS, dtype),
        eval_fn=problems_sum,
        eval_versions=5,
        metrics=["gap", "compensation_ratio"],
    )
    inputs |= given
    result = calls.sweep(
        tx=tx, hyperparams=numbers, chunk_size=10, engine=engine, **inputs, **options
    )
    for i in range(len(result)):
        mine = {name: alone(value, i) for name, value in inputs.items()}
        opt_state = tx.init(mine["params"])
        for name, values in numbers.items():
            opt_state.hyperparams[name] = jnp.asarray(values[i], dtype)
        expected = calls.simulate(tx=tx, opt_state=opt_state, engine=engine, **mine)
        assert_close(result.member(i), expected, tolerance)
        names = ("params", "opt_state", "model_state", "losses", "trace", "evaluations")
        stacked = [getattr(result, name) for name in names]
        assert_close(
            jax.tree.map(lambda leaf: leaf[i], stacked),  # noqa: B023
            [getattr(expected, name) for name in names],
            tolerance,
        )
    return result


def problems_sum(params, *model_state):
    return jax.tree.map(jnp.sum, (params, model_state))


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_hyperparameters_on_devices(num_devices):
    result = check(devices=jax.local_devices()[:num_devices])
    assert len(result) == 4
    assert result.losses.shape == result.trace.gap.shape == (4, NUM_EVENTS)
    assert result.evaluations.version.shape == (4, 5)
    assert np.ptp(result.losses[:, -1]) > 1e-3


@pytest.mark.parametrize("at_once", [1, 2, 4, None])
def test_groups_and_threads_in_float64(at_once, x64):
    check(FLOAT64, dtype=np.float64, at_once=at_once, devices=jax.local_devices()[:1])


@pytest.mark.parametrize(
    "protocol",
    [sim.Synchronous(), sim.Buffered(3), sim.DropStale(3), sim.StaleSynchronous(1), None],
    ids=repr,
)
@pytest.mark.parametrize("at_once", [1, 3])
def test_schedules_of_every_protocol(protocol, at_once):
    # DropStale makes schedules of different lengths of different seeds: it has one here.
    seeds = (0, 0, 0) if isinstance(protocol, sim.DropStale) else (0, 1, 2)
    schedules = [schedule_for(protocol, num_updates=6, seed=seed) for seed in seeds]
    per_push = None
    tx, metrics = TX, ["gap", "compensation_ratio"]
    if isinstance(protocol, sim.Buffered):
        per_push = compensations.explicit(2.0)
        tx, metrics = optax.inject_hyperparams(optax.sgd)(learning_rate=0.3), ["gap"]
    check(
        dict(rtol=1e-5, atol=2e-6),  # of gradients that are averaged
        numbers=dict(learning_rate=np.array([0.1, 0.2, 0.3])),
        tx=tx,
        per_push=per_push,
        metrics=metrics,
        schedule=sim.PerMember(schedules),
        batches=problems.softmax_batches(len(schedules[0])),
        devices=jax.local_devices()[:1],
        at_once=at_once,
    )


@pytest.mark.parametrize("devices", [1, 3])
def test_params_keys_batches_and_schedules_of_their_own(devices, x64):
    examples = jax.tree.map(lambda b: b[:, 0], problems.softmax_batches(40, np.float64))
    rows = np.random.default_rng(0).integers(0, 40, (4, NUM_EVENTS, 8))
    common = dict(
        loss_fn=problems.noisy_loss,
        params=sim.PerMember(problems.softmax_params(np.float64, seed) for seed in range(4)),
        schedule=sim.PerMember(schedule_for(seed=seed) for seed in (0, 1, 2, 2)),
        key=sim.PerMember(jax.random.split(jax.random.key(0), 4)),
        devices=jax.local_devices()[:devices],
    )
    batches = [problems.softmax_batches(NUM_EVENTS, np.float64, seed) for seed in range(4)]
    indexed = [sim.Indexed(examples, of_member) for of_member in rows]
    check(FLOAT64, dtype=np.float64, numbers={}, batches=sim.PerMember(batches), **common)
    check(FLOAT64, dtype=np.float64, batches=sim.PerMember(indexed), **common)


def counting_loss(params, model_state, batch):
    """Batch normalisation in small: subtracts a running mean that it keeps."""
    images, labels = batch
    running = 0.9 * model_state["mean"] + 0.1 * images.mean(axis=0)
    loss = problems.softmax_loss(params, (images - running[None], labels))
    return loss, {"mean": running, "count": model_state["count"] + 1}


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_model_state(policy):
    state = {"mean": jnp.zeros(6), "count": jnp.int32(0)}
    other = {"mean": jnp.ones(6), "count": jnp.int32(5)}
    result = check(
        loss_fn=counting_loss,
        model_state=sim.PerMember([state, other, state, other]),
        model_state_policy=policy,
    )
    assert result.model_state["mean"].shape == (4, 6)


def test_hyperparameters_of_the_per_push_transformation():
    schedule = schedule_for(sim.Buffered(2), num_updates=8)
    batches = problems.softmax_batches(len(schedule))
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    options = dict(eval_fn=None)
    result = calls.sweep(
        problems.softmax_loss, problems.softmax_params(), tx, schedule, batches, **options,
        per_push=optax.inject_hyperparams(compensations.explicit)(lambda0=0.0),
        hyperparams=dict(learning_rate=[0.3, 0.3], lambda0=[0.0, 2.0]),
    )  # fmt: skip
    for i, lambda0 in enumerate([0.0, 2.0]):
        expected = calls.simulate(
            problems.softmax_loss, problems.softmax_params(), optax.sgd(0.3), schedule, batches,
            per_push=compensations.explicit(lambda0),
        )  # fmt: skip
        chex.assert_trees_all_close(result.member(i).params, expected.params, **FLOAT32)


def test_one_by_one_with_an_engine_is_the_same():
    together, apart = check(), check(engine=sim.HostEngine())
    for name in ("params", "opt_state", "losses", "trace", "evaluations", "non_finite"):
        mine, other = getattr(together, name), getattr(apart, name)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            jax.tree.map(jnp.asarray, mine), jax.tree.map(jnp.asarray, other)
        )
        chex.assert_trees_all_close(mine, other, **FLOAT32)


CONVOLVING = dict(
    loss_fn=lambda kernel, image: jnp.mean(
        (jax.lax.conv(image, kernel, (1, 1), "SAME") - image[::-1]) ** 2
    ),
    params=np.full((1, 1, 3, 3), 0.1),
    batches=np.random.default_rng(0).normal(size=(24, 2, 1, 4, 4)),
)


def sweep_of_convolutions(num_members=4, **options):
    arguments = CONVOLVING | dict(
        schedule=sim.PerMember([schedule_for(seed=i) for i in range(num_members)]),
        tx=optax.inject_hyperparams(optax.sgd)(learning_rate=0.0),
        hyperparams=dict(learning_rate=np.linspace(0.0, 0.3, num_members)),
    )
    return calls.sweep(**(arguments | options))


@pytest.mark.parametrize("num_cores", [1, 3])
def test_convolutions_on_the_cpu_go_one_on_each_core(monkeypatch, num_cores):
    from dcasgd_jax.sim.sweeps import layout, vectorized

    monkeypatch.setattr(vectorized, "run", None)
    monkeypatch.setattr(layout, "num_cores", lambda: num_cores)
    evaluation = dict(eval_fn=lambda kernel: kernel.sum(), eval_versions=5)
    done, callers = [], set()

    def progress(events):
        done.append(events)
        callers.add(threading.current_thread())

    together = sweep_of_convolutions(progress=progress, **evaluation)
    assert sorted(done) == done == [24, 48, 72, 96]
    assert callers == {threading.current_thread()}
    for i, rate in enumerate(np.linspace(0.0, 0.3, 4)):
        alone = calls.simulate(
            CONVOLVING["loss_fn"], CONVOLVING["params"],
            optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
            schedule_for(seed=i), CONVOLVING["batches"], engine=sim.HostEngine(), **evaluation,
        )  # fmt: skip
        member = together.member(i)
        assert (member.params != CONVOLVING["params"]).any() == bool(rate)
        chex.assert_trees_all_equal(
            (member.params, member.trace, member.evaluations, member.state.snapshots),
            (alone.params, alone.trace, alone.evaluations, alone.state.snapshots),
        )


def test_members_in_threads_have_the_callers_settings():
    assert sweep_of_convolutions().params.dtype == np.float32
    with jax.enable_x64(True):
        wide = sweep_of_convolutions()
        alone = sweep_of_convolutions(engine=sim.HostEngine())
    assert wide.params.dtype == np.float64
    chex.assert_trees_all_equal(wide.params, alone.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batches=[np.ones((24, 2, 1, 4, 4)), np.ones((24, 3, 1, 4, 4))]), "batches .* shape"),
        (dict(batches=[np.ones((24, 1, 1, 4, 4), t) for t in "fe"]), "batches .* one dtype"),
        (dict(params=[np.ones((1, 1, 3, 3)), np.ones((1, 1, 5, 5))]), "params and .* one shape"),
    ],
)
def test_convolving_members_are_alike(change, message):
    different = {name: sim.PerMember(values) for name, values in change.items()}
    with pytest.raises(ValueError, match=message):
        sweep_of_convolutions(num_members=2, **different)


def test_a_sweep_that_is_given_up_in_the_middle_ends_its_threads():
    def give_up(events):
        raise KeyboardInterrupt

    before = threading.active_count()
    many = dict(batches=np.ones((2000, 1, 1, 4, 4), np.float32), num_members=2)
    many["schedule"] = schedule_for(num_updates=2000)
    with pytest.raises(KeyboardInterrupt):
        sweep_of_convolutions(progress=give_up, **many)
    assert threading.active_count() == before


def test_convolving_members_with_loggers_are_heard_in_the_calling_thread(monkeypatch):
    from dcasgd_jax.sim.sweeps import host_threads

    class Logger:
        def __init__(self):
            self.callers = set()

        def log(self, step, values):
            self.callers.add(threading.current_thread())

        def close(self):
            pass

    monkeypatch.setattr(host_threads, "run", None)
    loggers = [Logger(), Logger()]
    sweep_of_convolutions(num_members=2, logger=sim.PerMember(loggers))
    assert [logger.callers for logger in loggers] == [{threading.current_thread()}] * 2


@pytest.mark.parametrize("engine", [None, sim.ScanEngine(chunk_size=8)], ids=repr)
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_member_that_diverges_disturbs_no_other(engine, at_once):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    rates = np.array([0.1, 1e30, 0.2])
    result = calls.sweep(
        lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3), tx, schedule_for(),
        np.ones((NUM_EVENTS, 3), np.float32), hyperparams=dict(learning_rate=rates),
        engine=engine, at_once=at_once, devices=jax.local_devices()[:1],
        eval_fn=lambda w: jnp.isfinite(w).all().astype(jnp.int32), eval_versions=4,
    )  # fmt: skip
    assert [where is None for where in result.non_finite] == [True, False, True]
    assert np.isfinite(result.losses[[0, 2]]).all()
    assert not np.isfinite(result.losses[1, -1])
    assert result.member(1).trace.event[-1] < NUM_EVENTS - 1
    assert result.evaluations.values[:, -1].tolist() == [1, 0, 1]
    for i in (0, 2):
        expected = 1 - (1 - result.params[i])
        np.testing.assert_allclose(result.params[i], expected)
        assert 0.9 < float(result.params[i][0]) < 1.1


def test_progress_and_length_and_repr():
    done = []
    result = calls.sweep(
        problems.softmax_loss, problems.softmax_params(), TX, schedule_for(),
        problems.softmax_batches(NUM_EVENTS), hyperparams=NUMBERS, chunk_size=10,
        progress=done.append,
    )  # fmt: skip
    assert done == [40, 80, 96]
    assert "4 members of 24 events, 0 with" in repr(result)
    chex.assert_trees_all_equal(result.member(-1).params, result.member(3).params)
    with pytest.raises(IndexError, match="no member 4"):
        result.member(4)


def test_a_member_goes_on_from_its_state():
    first, second = schedule_for(num_updates=24), schedule_for(num_updates=24, seed=1)
    arguments = problems.softmax_loss, problems.softmax_params(), TX
    batches = problems.softmax_batches(24)
    numbers = dict(learning_rate=[0.1, 0.2])
    both = sim.PerMember([first, second])
    whole = calls.sweep(*arguments, both, batches, hyperparams=numbers)
    # A run on the state of a member that is at the end has nothing to do, but knows the schedule.
    for i, schedule in enumerate([first, second]):
        with pytest.raises(ValueError, match="the state is at event 24"):
            calls.simulate(*arguments, schedule, batches, state=whole.member(i).state)


@pytest.mark.usefixtures("compiled_afresh")
def test_there_is_no_communication_and_one_compilation():
    from dcasgd_jax.sim.sweeps import vectorized

    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return problems.softmax_loss(params, batch)

    def call(rates):
        return calls.sweep(
            loss_fn, problems.softmax_params(), TX, schedule_for(),
            problems.softmax_batches(NUM_EVENTS), hyperparams=dict(learning_rate=rates),
            at_once=1, devices=jax.local_devices()[:2],
        )  # fmt: skip

    compiled = []
    advance = vectorized._Group.advance

    def spy(group, program, inputs):
        compiled.append(program)
        return advance(group, program, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectorized._Group, "advance", spy)
        call(np.linspace(0.1, 0.2, 6))
        after_first = len(traces)
        call(np.linspace(0.3, 0.4, 6))
    assert len(traces) == after_first
    text = compiled[0].as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "permute"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hyperparams=dict(rate=[0.1])), "no hyperparameter 'rate'; there are .'lambda0', 'l"),
        (dict(hyperparams=dict(learning_rate=[])), "no members"),
        (dict(hyperparams=dict(learning_rate=0.1)), "is a scalar"),
        (dict(hyperparams={}), "A sweep of what"),
        (dict(hyperparams=dict(learning_rate=[0.1], lambda0=[1, 2])), "one value per member"),
        (dict(params=sim.PerMember([1, 2, 3])), "one value per member"),
        (dict(hyperparams=dict(learning_rate=np.ones((2, 3)))), "must have shape"),
        (dict(schedule=sim.PerMember([schedule_for(), schedule_for(num_updates=9)])), "9: sweep"),
        (dict(batches=sim.PerMember([problems.softmax_batches(5)] * 2)), "has 5 rows"),
        (dict(devices=[]), "devices is empty"),
        (dict(at_once=0), "at_once must be"),
        (dict(chunk_size=0), "chunk_size must be"),
        (dict(params=sim.PerMember([problems.softmax_params(), {"w": 0.0}])), "one structure"),
    ],
)
def test_bad_input(change, message):
    arguments = dict(
        loss_fn=problems.softmax_loss,
        params=problems.softmax_params(),
        tx=TX,
        schedule=schedule_for(),
        batches=problems.softmax_batches(NUM_EVENTS),
        hyperparams=dict(learning_rate=[0.1, 0.2]),
    )
    with pytest.raises((ValueError, TypeError), match=message):
        calls.sweep(**(arguments | change))


@pytest.mark.parametrize(("metrics", "message"), [("gap", "collection"), (["gapp"], "'gapp'")])
def test_metrics_that_do_not_exist(metrics, message):
    with pytest.raises(ValueError, match=message):
        check(metrics=metrics)


def test_members_keep_their_signs_of_zero():
    batches = sim.PerMember([np.full((1, 2), zero, np.float32) for zero in (0.0, -0.0)])
    result = calls.sweep(
        lambda w, batch: jnp.sum(w / batch), jnp.ones(2), optax.sgd(1.0), sim.Schedule([0], [0]),
        batches,
    )  # fmt: skip
    assert result.losses[:, 0].tolist() == [np.inf, -np.inf]


def test_members_of_several_dtypes_are_refused():
    batches = sim.PerMember([np.ones((1, 2), dtype) for dtype in (np.float16, np.float32)])
    with pytest.raises(ValueError, match="batches of all members must have one dtype, got float16"):
        calls.sweep(
            lambda w, batch: jnp.sum(w * batch), jnp.ones(2), optax.sgd(1.0),
            sim.Schedule([0], [0]), batches,
        )  # fmt: skip


def test_iterators_and_several_batch_functions_are_refused():
    arguments = problems.softmax_loss, problems.softmax_params(), TX, schedule_for()
    numbers = dict(hyperparams=dict(learning_rate=[0.1, 0.2]))
    with pytest.raises(TypeError, match="cannot share an iterator"):
        calls.sweep(*arguments, iter([1]), **numbers)
    with pytest.raises(TypeError, match="one batch_fn for all"):
        calls.sweep(*arguments, sim.PerMember([lambda e, w: 0, lambda e, w: 1]), **numbers)


def test_a_scheduled_hyperparameter_cannot_be_set():
    tx = injected(learning_rate=optax.constant_schedule(0.1), lambda0=2.0)
    with pytest.raises(ValueError, match="'learning_rate' follows a schedule"):
        calls.sweep(
            problems.softmax_loss, problems.softmax_params(), tx, schedule_for(),
            problems.softmax_batches(NUM_EVENTS), hyperparams=dict(learning_rate=[0.1]),
        )  # fmt: skip


def test_an_empty_axis_of_a_grid():
    with pytest.raises(ValueError, match="no values for lambda0"):
        sim.grid(learning_rate=[0.1], lambda0=[])
