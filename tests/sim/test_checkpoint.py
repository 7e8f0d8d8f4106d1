"""Checkpoints: killed runs end as if never interrupted; other runs and damage are refused."""

import functools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
import zipfile

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import NUM_EVENTS, schedule_for

from dcasgd_jax import sim
from dcasgd_jax.sim import leaves

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import killed_run

EVERY = 20
PROTOCOLS = {
    "asynchronous": sim.Asynchronous(),
    "overlapping": sim.Asynchronous(overlap=True),
    "buffered": sim.Buffered(3),
    "dropping": sim.DropStale(3),
    "grace": sim.Grace(0.2),
    "quorum": sim.Quorum(3, grace=0.2),
    "sampled": sim.Sampled(3, seed=0),
    "sequential": sim.Sequential(),
    "stale synchronous": sim.StaleSynchronous(2),
    "synchronous": sim.Synchronous(),
}
TX = problems.adaptive()


def train(directory, schedule=None, loss_fn=problems.softmax_loss, tx=TX, **options):
    schedule = schedule_for() if schedule is None else schedule
    batches = options.pop("batches", None)
    params = options.pop("params", None)
    keep = options.pop("keep", 2)
    if directory is not None:
        options["checkpoint"] = sim.Checkpoint(directory, every=EVERY, keep=keep)
    return calls.simulate(
        loss_fn,
        problems.softmax_params() if params is None else params,
        tx,
        schedule,
        problems.softmax_batches(len(schedule)) if batches is None else batches,
        engine=options.pop("engine", sim.ScanEngine(chunk_size=EVERY)),
        **options,
    )


def assert_same(result, expected):
    chex.assert_trees_all_equal(bits(result), bits(expected))


def bits(tree):
    return jax.tree.map(lambda x: leaves.to_host(jnp.asarray(x)), tree)


def events(directory):
    return sorted(int(path.stem) for path in directory.glob("[0-9]*.npz"))


@pytest.mark.parametrize("engine", ["scan", "host"])
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(engine, tmp_path):
    directory, path = tmp_path / "checkpoints", tmp_path / "result.npz"
    rng = random.Random(engine)
    command = [sys.executable, killed_run.__file__, engine, str(directory), str(path)]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = functools.partial(
        subprocess.Popen, command, stdout=subprocess.PIPE, text=True, env=os.environ | compiled
    )
    kills_left, landed = {"scan": 2, "host": 1}[engine], 0
    while not path.exists():
        with start() as child:
            assert child.stdout is not None
            if kills_left:
                # At its third report, a process has waited for its first checkpoint to be saved.
                for _ in range(rng.randint(3, 4)):
                    child.stdout.readline()
                time.sleep(rng.uniform(0, 0.1))
                child.kill()
                kills_left -= 1
            lines = child.stdout.read().split()
        landed += child.returncode == -9 and 0 < max(events(directory), default=0) < 240
        assert child.returncode in (0, -9)
    assert landed, "no kill came between the first checkpoint and the end"
    assert int(lines[-1]) < killed_run.NUM_EVENTS, "the last process did not resume"
    assert not list(directory.glob(".*.npz.*")), "half-written checkpoints are left"
    expected = killed_run.arrays(killed_run.train(engine, tmp_path / "uninterrupted"))
    with np.load(path) as stored:
        assert set(stored) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(stored[name], array, strict=True, err_msg=name)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_resumes_bit_for_bit(name, tmp_path):
    schedule = schedule_for(PROTOCOLS[name])
    options = {}
    if name in ("buffered", "quorum"):
        options = dict(tx=optax.sgd(0.1), per_push=compensations.explicit(2.0, ms_decay=0.95))
    uninterrupted = train(None, schedule, **options)
    for stop in (20, 40, None):
        result = train(tmp_path, schedule, stop=stop, **options)
    assert_same(result, uninterrupted)


def test_every_protocol_is_tried():
    types = {value for value in vars(sim).values() if isinstance(value, type)}
    protocols = {t for t in types if issubclass(t, sim.Protocol)} - {sim.Protocol}
    assert protocols == {type(protocol) for protocol in PROTOCOLS.values()}


def indexed(num_events):
    examples = problems.softmax_batches(1)
    examples = jax.tree.map(lambda leaf: leaf[0], examples)
    rows = np.random.default_rng(0).integers(0, 8, (num_events, 4))
    return sim.Indexed(examples, rows)


def random_batch(event, worker):
    images = jax.random.normal(jax.random.fold_in(jax.random.key(3), event), (8, 6))
    return images, jnp.full(8, worker % 3)


@pytest.mark.parametrize(
    "batches",
    [
        lambda schedule: iter(list(zip(*problems.softmax_batches(len(schedule)), strict=True))),
        lambda schedule: indexed(len(schedule)),
        lambda schedule: random_batch,
    ],
    ids=["iterator", "indexed", "function"],
)
def test_batches_go_on_where_they_were(batches, tmp_path):
    schedule = repeating_schedule()
    uninterrupted = train(None, schedule, batches=batches(schedule))
    train(tmp_path, schedule, batches=batches(schedule), stop=40)
    assert_same(train(tmp_path, schedule, batches=batches(schedule)), uninterrupted)


def repeating_schedule():
    """Events 5, 39 and 41 repeat the batches of 4, 38 and 38; 41 across a checkpoint at 40."""
    batch = np.arange(NUM_EVENTS)
    batch[[5, 39, 41]] = 4, 38, 38
    worker = np.zeros(NUM_EVENTS, int)
    read = np.arange(NUM_EVENTS)
    read[[5, 39, 41]] = 4, 38, 38
    return sim.Schedule(worker=worker, read_version=read, batch=batch, num_workers=2)


class CountingEngine:
    """Counts the events that it really runs."""

    def __init__(self, engine=None):
        self.engine, self.done = engine or sim.ScanEngine(), []

    def run(self, run, state, progress):
        self.done += run.events.event.tolist()
        return self.engine.run(run, state, progress)


def test_what_is_done_is_not_done_again(tmp_path):
    reported = []
    engine = CountingEngine()
    train(tmp_path, stop=30, engine=engine, progress=reported.append)
    assert events(tmp_path) == [20, 30]
    assert reported == [20, 30]
    result = train(tmp_path, engine=engine, progress=reported.append)
    assert events(tmp_path) == [40, 60]
    assert reported == [20, 30, 10, 30]
    assert engine.done == list(range(NUM_EVENTS))
    finished = train(tmp_path, engine=engine, progress=reported.append)
    assert len(engine.done) == NUM_EVENTS
    assert len(reported) == 4
    assert_same(finished, result)
    with pytest.raises(ValueError, match="at event 60 already, past stop=30"):
        train(tmp_path, stop=30)


def test_the_lanes_engine_resumes_bit_for_bit(tmp_path):
    mesh = jax.make_mesh((8,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    engine = sim.LanesEngine(mesh)
    expected = train(tmp_path / "uninterrupted", engine=engine)
    train(tmp_path / "run", engine=engine, stop=40)
    assert_same(train(tmp_path / "run", engine=engine), expected)


def test_a_state_is_where_the_run_begins(tmp_path):
    state = train(None, stop=20).state
    expected = train(None, state=state)
    train(tmp_path, state=state, stop=40)
    result = train(tmp_path, state=state)
    assert_same(result, expected)
    assert result.trace.event[0] == 20
    with pytest.raises(ValueError, match="another beginning: the first event was 20 and is 0 now"):
        train(tmp_path)
    other = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    with pytest.raises(ValueError, match="other initial values: params differs"):
        train(tmp_path, state=other)


def test_a_lost_run_stays_lost(tmp_path):
    images, labels = problems.softmax_batches(NUM_EVENTS)
    images[25] = np.nan
    engine = CountingEngine()
    lost = train(tmp_path, batches=(images, labels), engine=engine)
    again = train(tmp_path, batches=(images, labels), engine=engine)
    assert lost.non_finite is not None
    assert lost.non_finite.event == 25
    assert again.non_finite == lost.non_finite
    assert len(engine.done) == 40
    assert_same(again._replace(non_finite=None), lost._replace(non_finite=None))


def scaled_loss(params, batch):
    return 2 * problems.softmax_loss(params, batch)


def captured_loss(values):
    constant = np.asarray(values, np.float32)
    return lambda params, batch: (
        jnp.sum(params["b"] * constant) + problems.softmax_loss(params, batch)
    )


def grown_params():
    return {**problems.softmax_params(), "b": jnp.zeros(3, jnp.bfloat16)}


def double_batches():
    return jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=1), problems.softmax_batches(60))


def first_logit(params):
    return params["b"][0]


OTHERS = {
    r"another schedule: worker differs": dict(schedule=schedule_for(seed=1)),
    r"another schedule: num_events was 60 and is 61": dict(schedule=schedule_for(num_updates=61)),
    r"another model: params\['b'\] was float32\[3\] and is bfloat16\[3\]": dict(
        params=grown_params()
    ),
    r"another model: params\['w'\] was .* and is not there": dict(
        params={"b": jnp.zeros(3)}, loss_fn=lambda p, batch: jnp.sum(p["b"])
    ),
    r"another optimizer: opt_state.* and is not there": dict(tx=optax.sgd(0.3)),
    r"another optimizer: the structure of opt_state": dict(
        tx=optax.GradientTransformationExtraArgs(lambda p: list(TX.init(p)), TX.update),
    ),
    r"other code or settings: tx differs": dict(tx=problems.adaptive(learning_rate=0.2)),
    r"other code or settings: loss_fn differs": dict(loss_fn=scaled_loss),
    r"other initial values: params differs": dict(params=problems.softmax_params(seed=9)),
    r"another random key: its kind was not there": dict(
        loss_fn=problems.noisy_loss, key=jax.random.key(0)
    ),
    r"other options: metrics": dict(metrics=("gap",)),
    r"other options: Recording.every was 1 and is 2": dict(trace_every=2),
    r"other options: Recording.eval_versions was none": dict(eval_fn=first_logit),
    r"other batches: batch\[0\] was float32\[8, 6\] and is float32\[16, 6\]": dict(
        batches=double_batches()
    ),
}


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    directory = tmp_path_factory.mktemp("half") / "run"
    train(directory, stop=40)
    return directory


@pytest.mark.parametrize("difference", OTHERS)
def test_another_run_is_refused(difference, half_done):
    with pytest.raises(ValueError, match=f"holds a checkpoint of another run. .*{difference}"):
        train(half_done, **OTHERS[difference])
    assert events(half_done) == [20, 40]


def test_keys_constants_and_evaluations_are_compared(tmp_path):
    options = dict(loss_fn=problems.noisy_loss, stop=20)
    train(tmp_path / "key", key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match="another random key: key differs"):
        train(tmp_path / "key", key=jax.random.key(1), **options)
    train(tmp_path / "constant", loss_fn=captured_loss([1, 2, 3]), stop=20)
    train(tmp_path / "constant", loss_fn=captured_loss([1, 2, 3]), stop=20)  # another lambda
    with pytest.raises(ValueError, match="loss_fn differs"):
        train(tmp_path / "constant", loss_fn=captured_loss([1, 2, 4]), stop=20)
    train(tmp_path / "eval", eval_fn=first_logit, eval_versions=10, stop=20)
    with pytest.raises(ValueError, match="eval_versions differs"):
        train(tmp_path / "eval", eval_fn=first_logit, eval_versions=5, stop=20)
    with pytest.raises(ValueError, match="eval_fn differs"):
        train(tmp_path / "eval", eval_fn=lambda p: p["b"][1], eval_versions=10, stop=20)


def test_code_is_compared_within_one_version_of_jax_only(half_done, tmp_path, monkeypatch):
    shutil.copytree(half_done, tmp_path / "run")
    monkeypatch.setattr(jax, "__version__", "0.11.0")
    train(tmp_path / "run", tx=problems.adaptive(learning_rate=0.2))


def flip_a_bit(checkpoint):
    with zipfile.ZipFile(checkpoint) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.compress_size)
    content = bytearray(checkpoint.read_bytes())
    # The local header before an entry's content has fields that nobody reads.
    content[entry.header_offset + 100 + entry.compress_size // 2] ^= 1
    checkpoint.write_bytes(content)


DAMAGE = {
    "bit": flip_a_bit,
    "end": lambda checkpoint: checkpoint.write_bytes(checkpoint.read_bytes()[:-100]),
    "everything": lambda checkpoint: checkpoint.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_moved_aside_for_the_one_before(damage, half_done, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(half_done, directory)
    DAMAGE[damage](directory / "40.npz")
    engine = CountingEngine()
    with pytest.warns(
        RuntimeWarning, match=r"40\.npz cannot be read .* going on from event 20 instead"
    ):
        result = train(directory, engine=engine)
    assert engine.done == list(range(20, 60))
    assert_same(result, train(None))
    assert events(directory) == [40, 60]
    assert (directory / "40.npz.unreadable").is_file()


def test_if_all_are_damaged_the_run_is_refused(half_done, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(half_done, directory)
    for event in (20, 40):
        flip_a_bit(directory / f"{event}.npz")
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read; of event 40: \w+: "):
        train(directory)
    assert events(directory) == [20, 40]


def test_half_written_checkpoints_are_not_seen(half_done, tmp_path):
    """What a killed process left is removed; what is somebody else's stays."""
    left_over, others = (".60.npz.abc123_0", ".0.npz.x"), (".a.npz.x", "60.npz.x", "notes.npz")
    for name in (*left_over, *others):
        shutil.copy(half_done / "40.npz", tmp_path / name)
    engine = CountingEngine()
    assert_same(train(tmp_path, engine=engine), train(None))
    assert len(engine.done) == NUM_EVENTS
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"40.npz", "60.npz", *others}


def test_a_directory_must_be_one(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    unused = functools.partial(train, loss_fn=lambda params, batch: 1 / 0)
    for directory in (file, file / "below", "/proc/checkpoints"):
        with pytest.raises(OSError, match=r"Cannot save checkpoints in .* must be a dir"):
            unused(directory)
    read_only = tmp_path / "read only"
    read_only.mkdir()
    refuse = lambda *_, **__: (_ for _ in ()).throw(PermissionError("not allowed"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"Cannot save checkpoints in .*not allowed"):
        unused(read_only)
    for bad in (dict(directory=3), dict(directory="gs://a/b"), dict(every=0), dict(keep=True)):
        kind = TypeError if "keep" in bad else ValueError
        with pytest.raises(kind, match=r"Checkpoint\.(directory|every|keep) must be"):
            sim.Checkpoint(**{"directory": tmp_path, **bad})


def test_a_save_that_fails_is_an_error(tmp_path):
    directory = tmp_path / "run"

    def lose_the_disk(done):
        if done == 40:
            directory.rename(tmp_path / "lost")
            directory.write_text("")

    with pytest.raises(OSError, match="could not be saved in"):
        train(directory, progress=lose_the_disk)


def test_every_kind_of_leaf_survives(tmp_path):
    """bfloat16, small and unsigned integers, booleans, both kinds of keys, nothing, no elements."""

    def init(params):
        return {
            "key": jax.random.key(7, impl="rbg"),
            "keys": jax.random.split(jax.random.key(8), 3),
            "old key": jax.random.PRNGKey(9),
            "none": None,
            "empty": (),
            "state": optax.EmptyState(),
            "scalars": [jnp.int8(-3), jnp.uint32(2**32 - 1), jnp.bool_(True), 0.1, 5],
            "no elements": jnp.zeros((0, 4), jnp.bfloat16),
            "float8": jnp.arange(5, dtype=jnp.float8_e4m3fn),
            "int4": jnp.arange(-8, 8).astype(jnp.int4).reshape(2, 8),
            "complex": jnp.complex64(1 - 2j),
            "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
            "half": jax.tree.map(jnp.zeros_like, params),
        }

    def update(grads, state, params=None):
        key = jax.random.fold_in(state["key"], 1)
        noise = jax.random.normal(key, ()).astype(jnp.bfloat16)
        updates = jax.tree.map(lambda g: -0.1 * g + 0.01 * noise, grads)
        return updates, {**state, "key": key, "half": updates}

    tx = optax.GradientTransformation(init, update)
    params = {"w": jnp.ones(5, jnp.bfloat16), "nothing": {}, "none": None}
    loss = lambda params, batch: jnp.sum((params["w"] - batch) ** 2)
    batches = np.linspace(0, 1, NUM_EVENTS).astype(jnp.bfloat16)
    options = dict(loss_fn=loss, tx=tx, params=params, batches=batches)
    expected = train(None, **options)
    train(tmp_path, stop=40, **options)
    result = train(tmp_path, **options)
    assert_same(result, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.state, expected.state)
    finished = train(tmp_path, **options)
    assert_same(finished, expected)
    assert finished.opt_state["key"].dtype == jax.random.key(0, impl="rbg").dtype
    assert jax.tree.structure(finished.opt_state) == jax.tree.structure(expected.opt_state)


def test_a_trace_with_nothing_in_it_yet_is_saved(tmp_path):
    state = train(None, stop=1).state
    options = dict(state=state, trace_every=50, eval_fn=first_logit, eval_versions=[55])
    expected = train(None, **options)
    train(tmp_path, stop=20, **options)
    assert_same(train(tmp_path, **options), expected)


def test_results_stay_as_they_were_when_the_run_goes_on(tmp_path):
    half = train(tmp_path, stop=40)
    before = bits(half)
    train(tmp_path)
    train(None, state=half.state)
    assert_same(half, before)
