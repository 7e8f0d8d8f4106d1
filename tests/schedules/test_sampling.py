"""`ShardedEpochs`: every example once per epoch, shared by workers that keep their own pace."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import sim
from dcasgd_jax.schedules.sampling import ShardedEpochs


def schedule_of(worker, **fields):
    """A possible schedule in which these workers push in this order; every read is of version 0."""
    return sim.Schedule(worker=worker, read_version=np.zeros(len(worker), int), **fields)


def batches_of(sampler, worker):
    """What each worker drew, batch after batch; a list of arrays [num_batches, batch_size]."""
    schedule = schedule_of(worker, num_workers=sampler.num_workers)
    rows = sampler.rows(schedule)
    assert rows.dtype == np.int32
    assert rows.shape == (len(worker), sampler.batch_size)
    return [rows[schedule.worker == m] for m in range(sampler.num_workers)]


def test_every_example_once_per_epoch_and_shards_disjoint():
    sampler = ShardedEpochs(24, batch_size=2, num_workers=3, seed=5)
    assert sampler.batches_per_shard == 4
    drawn = batches_of(sampler, [0, 1, 2] * 12)
    orders = []
    for epoch in range(3):
        shards = [of_worker[4 * epoch : 4 * epoch + 4].ravel() for of_worker in drawn]
        assert sorted(np.concatenate(shards)) == list(range(24))
        orders.append(np.concatenate(shards).tolist())
    assert len({tuple(order) for order in orders}) == 3  # a new order in every epoch,
    assert {frozenset(order[:8]) for order in orders} != {frozenset(orders[0][:8])}  # new shards


def test_rows_are_those_of_the_definition():
    """Event by event: the worker's next batch of its part of the epoch's order."""
    sampler = ShardedEpochs(23, batch_size=2, num_workers=3, seed=7)
    worker = np.random.default_rng(0).integers(0, 3, 60)
    seen, expected = [0, 0, 0], []
    for m in worker:
        epoch, batch = divmod(seen[m], 3)  # 23 // 3 = 7 examples, 3 batches and one left over
        order = np.random.default_rng([7, epoch]).permutation(np.arange(23, dtype=np.int32))
        expected.append(order[7 * m + 2 * batch : 7 * m + 2 * batch + 2])
        seen[m] += 1
    np.testing.assert_array_equal(sampler.rows(schedule_of(worker, num_workers=3)), expected)


def test_a_fast_worker_is_epochs_ahead_of_a_slow_one():
    sampler = ShardedEpochs(12, batch_size=3, num_workers=2, seed=0)
    fast, slow = batches_of(sampler, [0] * 8 + [1] + [0] * 8 + [1])
    shards = [set(fast[2 * epoch : 2 * epoch + 2].ravel()) for epoch in range(8)]
    assert all(len(shard) == 6 for shard in shards)
    assert set(slow.ravel()) == set(range(12)) - shards[0]  # still in epoch 0, the other half


def test_who_else_pushes_does_not_matter():
    """A worker draws the same batches in the same order, whatever the speed of the others."""
    sampler = ShardedEpochs(40, batch_size=3, num_workers=2, seed=1)
    alone, _ = batches_of(sampler, [0] * 15)
    crowded, _ = batches_of(sampler, [1, 1, 0, 1] * 15)
    np.testing.assert_array_equal(crowded, alone)


def test_remainder_is_left_out_of_an_epoch_but_not_of_the_next():
    sampler = ShardedEpochs(11, batch_size=2, num_workers=2, seed=0)  # 5 each, 2 batches of 2
    drawn = batches_of(sampler, [0, 1] * 2 * 40)
    left_out = set()
    for epoch in range(40):
        batches = np.concatenate([of_worker[2 * epoch : 2 * epoch + 2] for of_worker in drawn])
        assert len(set(batches.ravel())) == batches.size == 8
        left_out |= set(range(11)) - set(batches.ravel())
    assert left_out == set(range(11))


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(
    worker=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    batch_size=st.integers(1, 4),
    spare=st.integers(0, 20),
    seed=st.integers(0, 3),
)
def test_no_worker_meets_an_example_twice_in_an_epoch(worker, batch_size, spare, seed):
    sampler = ShardedEpochs(4 * batch_size + spare, batch_size, num_workers=4, seed=seed)
    length, taken = sampler.batches_per_shard, {}
    for m, of_worker in enumerate(batches_of(sampler, worker)):
        for j, batch in enumerate(of_worker):
            assert ((batch >= 0) & (batch < sampler.num_examples)).all()
            of_epoch = taken.setdefault(j // length, {})
            assert not of_epoch.keys() & set(batch), (m, j)  # neither its own nor another's
            of_epoch.update(dict.fromkeys(batch, m))
            assert len(set(batch)) == batch_size


def test_rows_of_a_prefix_are_a_prefix_of_the_rows():
    """What a resumed run and a longer run rely on."""
    sampler = ShardedEpochs(50, batch_size=4, num_workers=4, seed=3)
    make = lambda num: sim.make_schedule(sim.GammaTime(1, [1, 1, 2, 5]), 4, num, seed=2)
    long, short = make(200), make(73)
    np.testing.assert_array_equal(long.worker[:73], short.worker)
    np.testing.assert_array_equal(sampler.rows(long)[:73], sampler.rows(short))
    np.testing.assert_array_equal(sampler.epochs(long)[:73], sampler.epochs(short))


def test_repeated_deliveries_repeat_the_batch_and_use_none():
    sampler = ShardedEpochs(16, batch_size=2, num_workers=2, seed=0)
    # Event 2 delivers event 0's push again, and event 5 event 1's, after worker 1 pushed another.
    twice = schedule_of([0, 1, 0, 0, 1, 1], batch=[0, 1, 0, 3, 4, 1])
    once = sampler.rows(schedule_of([0, 1, 0, 1]))
    np.testing.assert_array_equal(sampler.rows(twice), once[[0, 1, 0, 2, 3, 1]])
    np.testing.assert_array_equal(sampler.epochs(twice), np.asarray([1, 2, 2, 3, 4, 4]) / 8)


def test_dropped_and_corrupt_pushes_have_used_their_batch():
    sampler = ShardedEpochs(16, batch_size=2, num_workers=2, seed=0)
    worker = [0, 1, 0, 1, 0]
    plain = schedule_of(worker)
    dropped = schedule_of(worker, applied=[True, False, False, True, True])
    corrupt = schedule_of(worker, corrupt=[False, True, False, False, False])
    for schedule in (dropped, corrupt):
        np.testing.assert_array_equal(sampler.rows(schedule), sampler.rows(plain))
        np.testing.assert_array_equal(sampler.epochs(schedule), sampler.epochs(plain))


def test_epochs_is_the_mean_over_workers_whoever_is_faster():
    sampler = ShardedEpochs(13, batch_size=2, num_workers=2, seed=0)  # 2 * 3 batches
    worker = [0, 0, 0, 0, 1, 0, 1, 1]
    epochs = sampler.epochs(schedule_of(worker))
    own = [np.cumsum(np.equal(worker, m)) / sampler.batches_per_shard for m in (0, 1)]
    np.testing.assert_allclose(epochs, np.mean(own, axis=0), rtol=1e-15)
    assert epochs.dtype == np.float64
    assert epochs[5] == 1.0


def test_same_value_same_rows_and_another_seed_others():
    schedule = schedule_of([0, 1] * 20)
    sampler = ShardedEpochs(100, batch_size=5, num_workers=2, seed=3)
    again = ShardedEpochs(100, batch_size=5, num_workers=2, seed=3)
    assert sampler == again
    assert hash(sampler) == hash(again)
    first = sampler.rows(schedule)
    np.testing.assert_array_equal(sampler.rows(schedule), first)  # the first call left no trace
    np.testing.assert_array_equal(again.rows(schedule), first)
    other = dataclasses.replace(sampler, seed=4)
    assert (other.rows(schedule) != first).any()


def test_each_order_is_made_once_and_only_when_reached(monkeypatch):
    sampler = ShardedEpochs(12, batch_size=2, num_workers=2, seed=0)  # 3 batches each
    made = []
    order = ShardedEpochs._order
    spy = lambda self, epoch: made.append(epoch) or order(self, epoch)
    monkeypatch.setattr(ShardedEpochs, "_order", spy)
    sampler.rows(schedule_of([0] * 14 + [1] * 2 + [0] * 3))
    assert sorted(made) == [0, 1, 2, 3, 4, 5]


def test_a_worker_that_never_pushes_keeps_its_shard_to_itself():
    sampler = ShardedEpochs(12, batch_size=2, num_workers=3, seed=0)
    drawn = batches_of(sampler, [0, 2, 2, 0])
    everyone = batches_of(sampler, [0, 1, 2, 0, 1, 2])
    assert [len(of_worker) for of_worker in drawn] == [2, 0, 2]
    np.testing.assert_array_equal(drawn[0], everyone[0])
    np.testing.assert_array_equal(drawn[2], everyone[2])


GOOD = {"num_examples": 100, "batch_size": 10, "num_workers": 4, "seed": 0}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, r"batch_size must be an integer >= 1, got 2\.0"),
        ({"num_workers": 0}, r"num_workers must be an integer >= 1, got 0"),
        ({"num_workers": True}, r"num_workers must be an integer >= 1, got True"),
        ({"num_examples": 0}, r"num_examples must be an integer >= 1, got 0"),
        ({"num_examples": 2**31}, r"num_examples must fit 32 bits, got 2147483648"),
        ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
        ({"seed": None}, r"seed must be an integer >= 0, got None"),
        ({"num_examples": 39}, r"39 examples shared by 4 workers .* batch of 10 .*: 40 examples"),
    ],
)
def test_bad_numbers(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ShardedEpochs(**{**GOOD, **bad})


def test_fewest_examples_that_will_do():
    sampler = ShardedEpochs(**{**GOOD, "num_examples": 40})
    assert sampler.batches_per_shard == 1


@pytest.mark.parametrize("method", [ShardedEpochs.rows, ShardedEpochs.epochs])
def test_schedule_of_other_workers(method):
    with pytest.raises(ValueError, match=r"has 3 workers.*shared by 4.*num_workers=3"):
        method(ShardedEpochs(**GOOD), schedule_of([0, 1, 2]))


def test_a_million_events_of_many_epochs_need_little_more_than_the_result():
    """In a process of its own, whose peak memory is then that of the rows."""
    script = """
import resource
import numpy as np
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.schedules.sampling import ShardedEpochs
num = 1_000_000
schedule = schedules.Schedule(worker=np.arange(num) % 8, read_version=np.zeros(num, int))
sampler = ShardedEpochs(200_000, 32, 8, seed=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sampler.rows(schedule)
assert rows.nbytes == 128_000_000
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / rows.nbytes)
"""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    # 1.0 for the rows, 0.25 for a few int64 [num_events], 0.05 for the largest epoch.
    assert float(done.stdout) < 1.7
