"""The lanes engine: equal to the scan engine, whatever the waves, the mesh and the server."""

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from dcasgd_jax import sim
from dcasgd_jax.sim.lanes import engine as lanes_module
from dcasgd_jax.sim.lanes import exchange, wave_program

NUM_EVENTS = 40
METRICS = ["gap", "compensation_ratio", "cosine", "below_eps"]


def mesh(num_devices, kind=AxisType.Auto):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("workers",), axis_types=(kind,), devices=devices)


def lanes(num_devices=8, server="sharded", lanes_per_device=None, **options):
    return sim.LanesEngine(mesh(num_devices), server, lanes_per_device, **options)


ENGINES = {
    "8 sharded": lanes(),
    "8 replicated": lanes(server="replicated"),
    "8 sharded, 2 lanes each": lanes(lanes_per_device=2, chunk_size=3),
    "3 sharded": lanes(3, chunk_size=5),
    "3 replicated, 2 lanes each": lanes(3, "replicated", 2),
    "1 sharded, 4 lanes": lanes(1, lanes_per_device=4),
}


def make_params(dtype):
    """Leaves that 8 devices, 3 devices or neither can cut."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 3, dtype)
    return {"w1": draw(6, 16), "w2": draw(16, 3), "s": draw()}


def make_batches(num_events, dtype):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(num_events, 4, 6)).astype(dtype)
    return images, images[..., :3].argmax(axis=-1).astype(np.int32)


def loss_fn(params, batch):
    images, labels = batch
    logits = params["s"] * jnp.tanh(images @ params["w1"]) @ params["w2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def noisy_loss(params, batch, key):
    images, labels = batch
    keep = jax.random.bernoulli(key, 0.8, images.shape).astype(images.dtype)
    return loss_fn(params, (images * keep, labels))


def normalised_loss(params, model_state, batch):
    images, labels = batch
    mean = 0.8 * model_state["mean"] + 0.2 * images.mean(axis=0)
    new = {"mean": mean, "count": model_state["count"] + 1}
    return loss_fn(params, (images - model_state["mean"][None], labels)), new


def norms(params):
    return {"norm": optax.tree.norm(params), "w1": params["w1"]}


TX = optax.chain(compensations.explicit(2.0), optax.sgd(0.1, momentum=0.5))
EVERYTHING = optax.chain(
    optax.clip_by_global_norm(0.5),
    compensations.explicit(2.0, ms_decay=0.95),
    optax.sgd(0.1, momentum=0.5),
)


def schedule_for(law=None, num_workers=5, num_updates=NUM_EVENTS, seed=0, **options):
    return sim.make_schedule(
        law or sim.ExponentialTime(), num_workers, num_updates, seed=seed, **options
    )


def run(schedule, engine, tx=TX, dtype=np.float64, **options):
    batches = options.pop("batches", None)
    return calls.simulate(
        options.pop("loss_fn", loss_fn),
        make_params(dtype),
        tx,
        schedule,
        make_batches(len(schedule), dtype) if batches is None else batches,
        engine=engine,
        **options,
    )


def assert_close(result, expected, rtol, atol):
    if np.asarray(expected).dtype == np.float32:  # such as the sums of metrics, in any run
        rtol, atol = max(rtol, 1e-5), max(atol, 1e-6)
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def assert_same(result, expected, rtol=1e-12, atol=1e-13):
    """Everything that a run returns."""
    chex.assert_trees_all_equal_shapes_and_dtypes(result.state, expected.state)
    jax.tree.map(lambda a, b: assert_close(a, b, rtol, atol), result.state, expected.state)
    for name, column in expected.trace.columns().items():
        assert_close(result.trace.columns()[name], column, rtol, atol)
    assert result.non_finite == expected.non_finite
    assert (result.evaluations is None) == (expected.evaluations is None)
    if expected.evaluations is not None:
        chex.assert_trees_all_close(result.evaluations, expected.evaluations, rtol=rtol, atol=atol)
    chex.assert_trees_all_close(result.model_state, expected.model_state, rtol=rtol, atol=atol)


SCHEDULES = {
    "round-robin": dict(law=sim.RoundRobin(), num_workers=8),
    "exponential": dict(seed=3),
    "more workers than lanes": dict(law=sim.GammaTime(), num_workers=20, seed=1),
    "one worker": dict(num_workers=1, num_updates=9),
    "overlap": dict(protocol=sim.Asynchronous(overlap=True), upload=sim.ExponentialTime(0.7)),
    "stale-synchronous": dict(law=sim.ParetoTime(1.5), protocol=sim.StaleSynchronous(1)),
    "synchronous": dict(protocol=sim.Synchronous(), num_updates=8, num_workers=7),
    "backup workers": dict(protocol=sim.Synchronous(backup_workers=1), num_updates=8),
    "dropping": dict(protocol=sim.DropStale(3), num_workers=7),
    "buffered": dict(protocol=sim.Buffered(3), num_updates=12, num_workers=7),
    "faults": dict(
        faults=[
            *(sim.Crash(1, 2.0), sim.Restart(1, 4.0), sim.LateJoin(3, 1.5)),
            *(sim.LostPush(0, 2), sim.DuplicatedPush(2, 3), sim.SlowDown(0, 1.0, 3.0, 4.0)),
        ]
    ),
    "lognormal": dict(law=sim.LognormalTime(1.0, 1.0), num_workers=11, seed=5),
}
# Every engine with two schedules.
PAIRS = [(name, list(ENGINES)[(k + 2 * (k // 6)) % 6]) for k, name in enumerate(SCHEDULES)]


@pytest.mark.parametrize(("schedule", "engine"), PAIRS)
def test_equal_to_the_scan_engine(schedule, engine, x64):
    schedule, buffered = schedule_for(**SCHEDULES[schedule]), schedule == "buffered"
    options = {}
    if buffered:  # each push is compensated before the mean is taken
        options = dict(tx=optax.sgd(0.1), per_push=compensations.explicit(2.0, ms_decay=0.9))
    expected = run(schedule, sim.ScanEngine(), **options)
    assert_same(run(schedule, ENGINES[engine], **options), expected)


@pytest.mark.parametrize("engine", ["8 sharded", "3 replicated, 2 lanes each"])
def test_equal_in_float32_with_all_metrics(engine):
    schedule = schedule_for(num_workers=8)
    options = dict(tx=EVERYTHING, dtype=np.float32, metrics=METRICS)
    expected = run(schedule, sim.ScanEngine(), **options)
    assert_same(run(schedule, ENGINES[engine], **options), expected, rtol=1e-5, atol=1e-6)


OPTIMIZERS = {
    "clipped": EVERYTHING,
    "adam": optax.adam(0.01),
    "backups of each worker": compensations.dcasgd(
        0.1, num_workers=5, momentum=0.5, weight_decay=0.01
    ),
    "mean square of each worker": optax.chain(
        compensations.explicit(2.0, ms_decay=0.9, num_workers=5), optax.sgd(0.1)
    ),
    "factored": optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale(-0.01)
    ),
    "random": optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(3)), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, x64):
    tx, schedule = OPTIMIZERS[name], schedule_for()
    expected = run(schedule, sim.ScanEngine(), tx)
    result = run(schedule, lanes(), tx)
    if name == "random":  # chex compares no keys
        assert optax.tree.norm(result.opt_state[0].count) == NUM_EVENTS
        chex.assert_trees_all_close(result.params, expected.params, rtol=1e-12)
    else:
        assert_same(result, expected)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
@pytest.mark.parametrize("protocol", [sim.Synchronous(), sim.DropStale(2)], ids=repr)
def test_model_state(protocol, policy, x64):
    schedule = schedule_for(protocol=protocol, num_updates=16)
    options = dict(
        loss_fn=normalised_loss,
        model_state={"mean": jnp.ones(6), "count": jnp.int32(0)},
        model_state_policy=policy,
        eval_fn=lambda params, state: optax.tree.norm(params) + state["mean"].sum(),
        eval_versions=5,
    )
    expected = run(schedule, sim.ScanEngine(), **options)
    assert_same(run(schedule, lanes(3), **options), expected)


def test_random_keys_and_every_source_of_batches():
    faults = [sim.DuplicatedPush(2, 1)]  # its batch and its key come twice
    schedule = schedule_for(faults=faults, num_updates=20)
    arrays = make_batches(len(schedule), np.float32)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), arrays)
    index = np.arange(4 * len(schedule)).reshape(-1, 4)
    new = np.unique(schedule.batch)
    constants = jax.tree.map(jnp.asarray, arrays)
    options = dict(loss_fn=noisy_loss, key=jax.random.key(3), dtype=np.float32)
    expected = run(schedule, sim.ScanEngine(), **options)
    for batches in (
        constants,
        sim.Indexed(flat, index),
        lambda event, worker: jax.tree.map(lambda leaf: leaf[event], constants),
        (jax.tree.map(lambda leaf: leaf[k], arrays) for k in new),  # noqa: B023
    ):
        engine = lanes(chunk_size=4)
        result = run(schedule, engine, batches=batches, **options)
        assert_same(result, expected, rtol=1e-5, atol=1e-6)


def test_evaluations_and_thinned_traces(x64):
    schedule = schedule_for(num_updates=31)
    options = dict(eval_fn=norms, eval_versions=4, trace_every=3, metrics=["gap"])
    expected = run(schedule, sim.ScanEngine(), **options)
    assert_same(run(schedule, lanes(chunk_size=4), **options), expected)


def test_runs_go_on_on_other_engines(x64):
    schedule = schedule_for(protocol=sim.Buffered(4), num_updates=5)  # stops within an average
    tx = optax.sgd(0.1, momentum=0.5)
    expected = run(schedule, sim.ScanEngine(), tx)
    engines = [sim.ScanEngine(), lanes(8), sim.HostEngine(), lanes(3, "replicated")]
    stops = [3, 11, 13, len(schedule)]
    state, losses = None, []
    for engine, stop in zip(engines, stops, strict=True):
        result = run(schedule, engine, tx, state=state, stop=stop)
        state = result.state
        losses.append(result.losses)
        # Arrays of the default device, bound to none.
        assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(state))
        _ = jax.device_put(1.0, jax.devices()[1]) + result.params["s"]
    np.testing.assert_allclose(np.concatenate(losses), expected.losses, rtol=1e-12)
    chex.assert_trees_all_close(state, expected.state, rtol=1e-12, atol=1e-13)


def test_the_callers_state_survives(x64):
    schedule = schedule_for()
    first = run(schedule, lanes(), stop=20)
    second = run(schedule, lanes(), state=first.state)
    again = run(schedule, lanes(), state=first.state)
    chex.assert_trees_all_equal(second.state, again.state)


def test_a_lost_run_is_given_up_alike(x64):
    schedule = schedule_for(faults=[sim.NaNGradient(2, 1)])
    expected = run(schedule, sim.ScanEngine())
    result = run(schedule, lanes())
    assert result.non_finite == expected.non_finite is not None
    np.testing.assert_array_equal(result.trace.event, expected.trace.event)
    assert np.isnan(result.params["w1"]).all()


def test_a_nan_push_that_is_skipped(x64):
    schedule = schedule_for(faults=[sim.NaNGradient(2, 1)])
    tx = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=3)
    assert_same(run(schedule, lanes(), tx), run(schedule, sim.ScanEngine(), tx))


def test_idle_lanes_compute_nothing_new():
    """A batch that no event uses yet would show up as NaN under `jax_debug_nans`."""
    schedule = schedule_for(num_workers=2)
    with jax.debug_nans(True):
        result = run(schedule, lanes(), optax.sgd(0.1), dtype=np.float32)
    assert np.isfinite(result.losses).all()


def test_a_second_call_neither_traces_nor_compiles():
    traces = []

    def counting(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    options = dict(dtype=np.float32, loss_fn=counting)
    engine = lanes(chunk_size=8)  # several chunks, the last one shorter
    run(schedule_for(seed=0), engine, **options)
    after_first = len(traces)
    compiled = wave_program.run_waves._cache_size()
    for seed in range(1, 4):
        run(schedule_for(seed=seed), lanes(chunk_size=8), **options)
    assert len(traces) == after_first
    assert wave_program.run_waves._cache_size() == compiled


def test_progress_reaches_the_end():
    done = []
    schedule = schedule_for(num_workers=8, law=sim.RoundRobin())
    run(schedule, lanes(chunk_size=2), dtype=np.float32, progress=done.append)
    assert done == [16, 32, 40]


def test_meshes_with_explicit_or_several_axes():
    kind, schedule = AxisType.Explicit, schedule_for()
    expected = run(schedule, sim.ScanEngine(), dtype=np.float32)
    given = mesh(4, kind)
    engine = sim.LanesEngine(given)
    assert engine == lanes(4)
    close = dict(rtol=1e-5, atol=1e-6)
    with jax.set_mesh(given):
        chex.assert_trees_all_close(
            run(schedule, engine, dtype=np.float32).params, expected.params, **close
        )
    wide = jax.make_mesh((2, 4), ("model", "workers"), axis_types=(kind, kind))
    result = run(schedule, sim.LanesEngine(wide, axis="workers"), dtype=np.float32)
    chex.assert_trees_all_close(result.params, expected.params, **close)


def test_bad_input():
    wide = jax.make_mesh((2, 4), ("model", "workers"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"axes \['model', 'workers'\]"):
        sim.LanesEngine(wide)
    with pytest.raises(ValueError, match=r"no axis 'lanes'; its axes are \['model', 'workers'\]"):
        sim.LanesEngine(wide, axis="lanes")
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh"):
        sim.LanesEngine(jax.devices())
    with pytest.raises(
        ValueError,
        match=r'server must be "sharded" or "replicated", got "cut"'.replace('"cut"', "'cut'"),
    ):
        lanes(server="cut")
    for bad, kind in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match=r"lanes_per_device must be an integer >= 1"):
            lanes(lanes_per_device=bad)
        with pytest.raises(kind, match=r"chunk_size must be an integer >= 1"):
            lanes(chunk_size=bad)


def wide_problem(num_workers, law, **options):
    """A problem whose every leaf 8 devices can cut; its arguments, and its parameters' bytes."""
    params = {"w": jnp.ones((24, 16)), "v": jnp.ones((40, 3))}
    schedule = schedule_for(law, num_workers, 48, **options)
    loss = lambda params, batch: sum(
        jnp.sum((leaf - batch) ** 2) for leaf in jax.tree.leaves(params)
    )
    batches = np.ones(len(schedule), np.float32)
    return (sim.Problem(loss, params), EVERYTHING, schedule, batches), 4 * (24 * 16 + 40 * 3)


@pytest.mark.usefixtures("compiled_afresh")
@pytest.mark.parametrize("lanes_per_device", [1, 2])
def test_a_wave_exchanges_its_snapshots_and_its_gradients(lanes_per_device):
    """In float32, twice the parameters per event; the rest are scalars."""
    problem, size = wide_problem(16, sim.RoundRobin())
    measured = lanes(lanes_per_device=lanes_per_device).exchange(*problem)
    assert measured.wave_size == 8 * lanes_per_device
    assert measured.all_to_all == 2 * measured.wave_size * size
    # The norm for clipping takes an all-reduce of one scalar on every device for each event (a few
    # scalars, if DC-ASGD's sums come along), the losses an all-gather.
    assert measured.all_reduce <= 16 * 8 * measured.wave_size
    assert measured.all_gather <= 4 * 8 * measured.wave_size
    assert measured.reduce_scatter == measured.collective_permute == 0
    assert measured.total <= 2.1 * measured.wave_size * size


@pytest.mark.usefixtures("compiled_afresh")
def test_idle_lanes_count_in_the_exchange():
    problem, size = wide_problem(5, sim.ExponentialTime())
    measured = lanes().exchange(*problem)
    assert measured.wave_size == len(problem[2]) / len(problem[2].waves) < 4
    assert measured.all_to_all == 2 * 8 * size


@pytest.mark.usefixtures("compiled_afresh")
def test_a_replicated_server_gathers_the_gradients_everywhere():
    problem, size = wide_problem(8, sim.RoundRobin())
    measured = lanes(server="replicated").exchange(*problem)
    assert 8 * 8 * size <= measured.all_gather == measured.total <= 8 * 8 * size * 1.01


def compiled(engine, problem):
    probe = lanes_module._Probe(engine)
    sim.simulate(*problem, engine=probe)
    return probe.compiled


def hlo_of_server(engine, problem):
    """The text of all that runs once per event."""
    text = compiled(engine, problem).as_text()
    found = exchange.computations(text)
    in_server = {name for name, depth in exchange.loop_depths(text) if depth == 2}
    assert in_server
    return "\n".join("\n".join(found[name]) for name in in_server)


@pytest.mark.usefixtures("compiled_afresh")
def test_a_sharded_server_works_on_slices():
    """Every device updates an eighth of each leaf: no operation has a whole leaf's shape."""
    problem, _ = wide_problem(8, sim.RoundRobin())
    whole, slices = ("f32[24,16]", "f32[40,3]"), ("f32[3,16]", "f32[5,3]")
    text = hlo_of_server(lanes(), problem)
    assert not any(shape in text for shape in whole)
    assert all(shape in text for shape in slices)
    assert "all-reduce" in text  # one norm of all slices, not one of each
    text = hlo_of_server(lanes(server="replicated"), problem)
    assert all(shape in text for shape in whole)
    assert "all-" not in text


@pytest.mark.usefixtures("compiled_afresh")
def test_no_device_copies_the_snapshots():
    """Each has slices of them, in place; besides, what its lane computes and its slices of that."""
    schedule = schedule_for(num_workers=30, num_updates=60)
    params = {"w": jnp.ones((256, 512))}
    size = 4 * 256 * 512
    loss = lambda params, batch: jnp.mean(jnp.tanh(batch @ params["w"]) ** 2)
    batches = np.ones((60, 4, 256), np.float32)
    problem = (sim.Problem(loss, params), optax.sgd(0.1), schedule, batches)
    memory = compiled(lanes(lanes_per_device=1), problem).memory_analysis()
    state = (schedule.num_slots + 1) * size / 8
    assert schedule.num_slots > 10
    assert state <= memory.alias_size_in_bytes <= 1.01 * state
    assert memory.temp_size_in_bytes <= 3.1 * size


def test_exchange_counts_what_a_text_says():
    text = """
ENTRY %main.1 (p: f32[4]) -> f32[4] {
  %once = f32[100]{0} all-gather(%p), dimensions={0}
  ROOT %while.1 = (s32[], f32[4]{0}) while(%t), condition=%c.1, body=%wave.1
}

%wave.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (f32[2,4]{1,0}, /*index=1*/bf16[3]{0}) all-to-all(%x, %y), dimensions={0}
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %b = f32[] conditional(%q, %x, %y), branch_computations={%yes, %no}
  ROOT %while.2 = (s32[], f32[4]{0}) while(%t), condition=%c.1, body=%push.1
}

%yes (p: f32[]) -> f32[] {
  ROOT %r = (f8e4m3fn[5]{0}, pred[3]{0}) collective-permute(%p)
}

%no (p: f32[]) -> f32[] {
  ROOT %r = f32[] copy(%p)
}

%push.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %r = f64[2]{0} all-reduce(%p), to_apply=%no
}

%c.1 (p: (s32[], f32[4])) -> pred[] {
  ROOT %r = pred[] compare(%p, %p)
}
"""
    measured = exchange.measure(text, num_devices=2, wave_size=3.0)
    assert measured == exchange.Exchange(
        all_to_all=2 * (32 + 6),
        all_gather=2 * 64,
        all_reduce=2 * 16 * 3,
        reduce_scatter=0,
        collective_permute=2 * 8,
        wave_size=3.0,
    )


def test_leaves_are_cut_along_their_largest_axis_that_can_be():
    from dcasgd_jax.sim.lanes.placement import Layout

    cut = lambda shape, leading=0, devices=4: tuple(
        Layout(mesh(devices), "workers", 1, "sharded").slice_of(np.zeros(shape), leading).spec
    )
    assert cut((8, 16)) == (None, "workers")
    assert cut((16, 16)) == ("workers",)
    assert cut((3, 8, 9)) == (None, "workers")
    assert cut((8, 4), leading=1) == (None, "workers")
    assert cut((8, 3), leading=1) == cut((5, 7)) == cut(()) == cut((0, 3)) == ()
