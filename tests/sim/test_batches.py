"""Where batches come from: iterators fetched ahead, rows into examples on the device."""

import threading
import time

import calls
import chex
import jax
import numpy as np
import optax
import problems
import pytest
from problems import NUM_EVENTS, run, schedule_for

from dcasgd_jax import sim

ENGINES = [sim.ScanEngine(chunk_size=7), sim.HostEngine()]


def simulate(schedule, batches, **options):
    options.setdefault("tx", problems.adaptive())
    return calls.simulate(
        problems.softmax_loss,
        problems.softmax_params(),
        options.pop("tx"),
        schedule,
        batches,
        **options,
    )


def one_by_one(count=NUM_EVENTS, start=0):
    images, labels = problems.softmax_batches(count)
    for k in range(start, count):
        yield images[k], labels[k]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_iterator_equals_arrays(engine):
    tx = problems.adaptive()
    expected = run(schedule_for(), tx, engine=engine)
    result = simulate(schedule_for(), one_by_one(), tx=tx, engine=engine)
    chex.assert_trees_all_equal(result.params, expected.params)
    chex.assert_trees_all_equal(result.trace, expected.trace)


class Loader:
    """Like a data loader of another library: iterable, but neither iterator nor array."""

    def __iter__(self):
        return one_by_one()


def test_a_data_loader_is_iterated_over():
    tx = problems.adaptive()
    chex.assert_trees_all_equal(
        simulate(schedule_for(), Loader(), tx=tx).params, run(schedule_for(), tx).params
    )


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_iterator_gives_the_batches_of_this_call(engine):
    schedule, tx = schedule_for(), problems.adaptive()
    batches = one_by_one()
    first = simulate(schedule, batches, tx=tx, engine=engine, stop=21)
    second = simulate(schedule, one_by_one(start=21), tx=tx, engine=engine, state=first.state)
    whole = run(schedule, tx, engine=engine)
    chex.assert_trees_all_close(second.params, whole.params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_iterator_that_ends_too_early_names_the_event(engine):
    with pytest.raises(ValueError, match="ended at event 40: it must give one batch per event"):
        simulate(schedule_for(), one_by_one(40), engine=engine)


def test_an_empty_iterator():
    with pytest.raises(ValueError, match="iterator of batches is empty"):
        simulate(schedule_for(), iter([]))


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_error_in_the_iterator_reaches_the_caller(engine):
    def broken():
        yield from one_by_one(10)
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        simulate(schedule_for(), broken(), engine=engine)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_whatever_ends_the_iterator_reaches_the_caller(engine, error):
    def ends():
        yield from one_by_one(10)
        raise error("over")

    with pytest.raises(error, match="over"):
        simulate(schedule_for(), ends(), engine=engine)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_incomplete_last_batch_names_the_event_and_both_shapes(engine):
    def ragged():
        yield from one_by_one(NUM_EVENTS - 1)
        images, labels = problems.softmax_batches(1)
        yield images[0, :3], labels[0, :3]

    with pytest.raises(ValueError, match=r"batch\[0\] for event 59 is float32 \[3, 6\], .* first"
                       r" event is float32 \[8, 6\].* drop the last or pad it"):  # fmt: skip
        simulate(schedule_for(), ragged(), engine=engine)


def test_an_iterator_that_changes_its_structure():
    batches = ({"x": b} if k == 5 else b for k, b in enumerate(one_by_one()))
    with pytest.raises(ValueError, match=r"batch for event 5 is \{'x': "):
        simulate(schedule_for(), batches)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_push_delivered_twice_takes_nothing_from_the_iterator(engine):
    schedule = sim.make_schedule(
        sim.ExponentialTime(), 4, 30, seed=0,
        faults=[sim.DuplicatedPush(1, 2), sim.DuplicatedPush(3, 4)],
    )  # fmt: skip
    own = np.flatnonzero(schedule.batch == np.arange(len(schedule)))
    assert len(own) == len(schedule) - 2
    arrays = problems.softmax_batches(len(schedule))
    given = ((arrays[0][k], arrays[1][k]) for k in own)
    tx = problems.adaptive()
    result = simulate(schedule, given, tx=tx, engine=engine)
    chex.assert_trees_all_equal(
        result.params, simulate(schedule, arrays, tx=tx, engine=engine).params
    )


def test_batches_are_fetched_ahead_but_not_without_bound():
    fetched = []

    def counting():
        for k, batch in enumerate(one_by_one()):
            fetched.append(k)
            yield batch

    seen = []

    def progress(done):
        time.sleep(0.2)  # time enough to fetch everything
        seen.append((done, len(fetched)))

    simulate(schedule_for(), counting(), engine=sim.HostEngine(chunk_size=10), progress=progress)
    done, ahead = seen[0]
    # When the first chunk is reported, the second has been dispatched: 20 taken, a few waiting.
    assert done == 10
    assert 20 < ahead <= 30


def test_no_thread_outlives_the_call():
    before = threading.active_count()
    simulate(schedule_for(), one_by_one(), stop=20)
    with pytest.raises(ValueError, match="ended at event"):
        simulate(schedule_for(), one_by_one(30))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_rows_that_point_into_examples(engine):
    rng = np.random.default_rng(3)
    images, labels = problems.softmax_batches(20)
    examples = (images.reshape(-1, 6), labels.reshape(-1))
    rows = rng.integers(0, 160, (NUM_EVENTS, 8))
    tx = problems.adaptive()
    gathered = jax.tree.map(lambda leaf: leaf[rows], examples)
    expected = simulate(schedule_for(), gathered, tx=tx, engine=engine)
    result = simulate(schedule_for(), sim.Indexed(examples, rows), tx=tx, engine=engine)
    chex.assert_trees_all_close(result.params, expected.params, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5)
    assert result.trace.samples[-1] == 8 * NUM_EVENTS


@pytest.mark.parametrize(
    ("examples", "rows", "message"),
    [
        (np.ones((5, 2)), [[0, 1], [4, 5]], r"rows\[1, 1\] is 5, but there are 5 examples"),
        (np.ones((5, 2)), [[0, -1], [1, 1]], r"rows\[0, 1\] is -1"),
        (np.ones((5, 2)), [[0.0], [1.0]], "must be integers"),
        ({"a": np.ones(5), "b": np.ones(4)}, [[0], [1]], r"common leading axis, got .*\[4, 5\]"),
        (np.ones((5, 2)), [[0]], "has 1 rows, but the run has 2 events"),
    ],
)
def test_bad_rows(examples, rows, message):
    schedule = sim.Schedule([0, 0], [0, 1])
    with pytest.raises(ValueError, match=message):
        simulate(schedule, sim.Indexed(examples, np.asarray(rows)))


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_the_paper_sampler_end_to_end(engine):
    schedule = schedule_for()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 6)).astype(np.float32)
    examples = (images, images[:, :3].argmax(axis=1).astype(np.int32))
    sampler = sim.ShardedEpochs(num_examples=100, batch_size=8, num_workers=4, seed=0)
    batches = sim.Indexed(examples, sampler.rows(schedule))
    result = simulate(schedule, batches, engine=engine)
    assert result.losses[-10:].mean() < 0.8 * result.losses[:10].mean()


class Restartable:
    """A source that can begin at any batch without producing the ones before."""

    def __init__(self, produced, first=0):
        self.produced, self.first = produced, first

    def starting_at(self, count):
        return Restartable(self.produced, self.first + count)

    def __iter__(self):
        for k, batch in enumerate(one_by_one(start=self.first), start=self.first):
            self.produced.append(k)
            yield batch


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_resuming_does_not_produce_batches_that_are_passed_over(engine, tmp_path):
    tx, schedule = problems.adaptive(), schedule_for()
    options = dict(tx=tx, engine=engine, checkpoint=sim.Checkpoint(tmp_path, every=21))
    simulate(schedule, Restartable([]), **options, stop=42)
    produced = []
    resumed = simulate(schedule, Restartable(produced), **options)
    # Batch 0 is looked at to learn the shapes.
    assert sorted(set(produced) - {0}) == list(range(42, NUM_EVENTS))
    expected = run(schedule, tx, engine=engine)
    chex.assert_trees_all_close(resumed.params, expected.params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_an_iterator_in_float64(engine, x64):
    tx = problems.adaptive()
    images, labels = problems.softmax_batches(NUM_EVENTS, np.float64)
    options = dict(dtype=np.float64, engine=engine)
    expected = run(schedule_for(), tx, **options)
    result = calls.simulate(
        problems.softmax_loss, problems.softmax_params(np.float64), tx, schedule_for(),
        zip(images, labels, strict=True), engine=engine,
    )  # fmt: skip
    chex.assert_trees_all_equal(result.params, expected.params)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_loader_may_fill_the_same_arrays_again(engine):
    """Some that begin at a multiple of 64 bytes, which jax would not copy on a CPU."""
    made = np.random.default_rng(0).normal(size=(NUM_EVENTS, 512, 4)).astype(np.float32)

    def filled():
        room = np.empty(4 * 512 * 4 + 64, np.uint8)
        begin = -room.ctypes.data % 64
        images = room[begin : begin + 4 * 512 * 4].view(np.float32).reshape(512, 4)
        for batch in made:
            images[:] = batch
            yield images

    losses = [
        calls.simulate(
            lambda w, x: ((w[None] - x) ** 2).mean(), np.zeros(4, np.float32), optax.sgd(0.1),
            schedule_for(), batches, engine=engine,
        ).losses
        for batches in (made, filled())
    ]  # fmt: skip
    np.testing.assert_array_equal(*losses)
