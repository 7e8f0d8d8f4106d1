"""Examples that are a worker's own, and samplers for workers that take many steps."""

import numpy as np
import pytest

from dcasgd_jax import sim

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
STEPS = (3, 1, 2, 3)


def schedule_of(num_updates=60, **options):
    return sim.make_schedule(sim.ExponentialTime(), 4, num_updates, seed=1, **options)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 100.0])
def test_dirichlet_shards_share_out_everything_once(alpha):
    shards = sim.dirichlet_shards(LABELS, 4, alpha, seed=0)
    assert np.sort(np.concatenate(shards)).tolist() == list(range(2000))
    assert all(np.all(np.diff(shard) > 0) for shard in shards)
    again = sim.dirichlet_shards(LABELS, 4, alpha, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    other = sim.dirichlet_shards(LABELS, 4, alpha, seed=1)
    assert any(not np.array_equal(a, b) for a, b in zip(shards, other, strict=True))


def test_a_small_alpha_gives_most_of_a_label_to_one_worker():
    largest = lambda counts: (counts.max(axis=0) / counts.sum(axis=0)).mean()
    shares = [
        np.mean(
            [
                largest(sim.label_counts(LABELS, sim.dirichlet_shards(LABELS, 4, alpha, seed)))
                for seed in range(10)
            ]
        )
        for alpha in (0.05, 1.0, 1000.0)
    ]
    assert shares[0] > 0.85
    # The largest of four parts of a uniform division is (1 + 1/2 + 1/3 + 1/4) / 4 on average.
    assert shares[1] == pytest.approx(25 / 48, abs=0.06)
    assert shares[2] < 0.29


def test_label_shards():
    shards = sim.label_shards(LABELS, 5, 4, seed=0)
    assert np.sort(np.concatenate(shards)).tolist() == list(range(2000))
    counts = sim.label_counts(LABELS, shards)
    assert (counts > 0).sum(axis=1).tolist() == [4] * 5
    owners = (counts > 0).sum(axis=0)
    assert owners.tolist() == [2] * 10
    # Who shares a label has as many of it as the other, but for one.
    assert max(np.ptp(column[column > 0]) for column in counts.T) <= 1


def batches_of(rows, worker, schedule, steps):
    """All that a worker draws, in order."""
    mine = np.flatnonzero((schedule.worker == worker) & ~schedule.repeats)
    return rows[mine][:, :steps].reshape(-1, rows.shape[-1])


SHARDS = sim.label_shards(LABELS, 4, 5, seed=3)
SAMPLERS = {
    "shared": sim.ShardedEpochs(2000, 16, 4, seed=5),
    "fixed": sim.FixedShards(SHARDS, 16, seed=5),
}
each = pytest.mark.parametrize("name", SAMPLERS)


@each
def test_steps_draw_the_batches_of_as_many_pushes(name):
    """A worker's j-th batch is the same whether pushes or steps of pushes take it."""
    sampler, schedule = SAMPLERS[name], schedule_of(faults=[sim.DuplicatedPush(1, 3)])
    rows = sampler.rows(schedule, STEPS)
    assert rows.shape == (len(schedule), 3, 16)
    singly = sampler.rows(schedule_of(num_updates=600))
    for worker, steps in enumerate(STEPS):
        drawn = batches_of(rows, worker, schedule, steps)
        wanted = batches_of(singly[:, None], worker, schedule_of(num_updates=600), 1)
        np.testing.assert_array_equal(drawn, wanted[: len(drawn)])
        of_worker = rows[schedule.worker == worker]
        np.testing.assert_array_equal(of_worker[:, steps:], of_worker[:, steps - 1 : steps].repeat(
            3 - steps, axis=1))  # fmt: skip
    repeats = np.flatnonzero(schedule.repeats)
    np.testing.assert_array_equal(rows[repeats], rows[schedule.batch[repeats]])
    np.testing.assert_array_equal(sampler.rows(schedule, 1)[:, 0], sampler.rows(schedule))


def test_an_epoch_of_a_worker_is_its_shard():
    schedule = schedule_of(num_updates=400)
    rows = SAMPLERS["fixed"].rows(schedule)
    for worker, shard in enumerate(SHARDS):
        drawn = rows[schedule.worker == worker]
        per_epoch = len(shard) // 16
        first, second = drawn[:per_epoch].ravel(), drawn[per_epoch : 2 * per_epoch].ravel()
        assert len(set(first.tolist())) == per_epoch * 16
        assert set(first.tolist()) <= set(shard.tolist())
        assert first.tolist() != second[: len(first)].tolist()


@each
def test_a_longer_run_begins_with_the_same_batches(name):
    longer = SAMPLERS[name].rows(schedule_of(num_updates=300), 2)
    shorter = SAMPLERS[name].rows(schedule_of(num_updates=40), 2)
    np.testing.assert_array_equal(longer[:40], shorter)


def test_who_was_listened_to():
    dropping = sim.make_schedule(
        sim.GammaTime(100, [1.0, 1.0, 1.0, 20.0]), 4, 200, seed=0, protocol=sim.DropStale(4)
    )
    applied = dropping.applied_per_worker
    assert applied.tolist() == [
        int((dropping.applied & (dropping.worker == m)).sum()) for m in range(4)
    ]
    assert applied[3] == 0
    assert "applied pushes per worker 0 to 68" in repr(dropping)
    assert "per worker" not in repr(schedule_of())


BAD = {
    "labels": (lambda: sim.dirichlet_shards([0.5], 2, 1.0, 0), "labels must be integers"),
    "no labels": (lambda: sim.label_counts([], []), "labels must be integers"),
    "negative": (lambda: sim.label_shards([0, -1], 2, 1, 0), "labels must count from 0"),
    "alpha": (lambda: sim.dirichlet_shards(LABELS, 4, 0.0, 0), "alpha must be"),
    "least": (
        lambda: sim.dirichlet_shards(LABELS[:40], 4, 0.001, 0, least=9),
        "a hundred draws left a worker with fewer than 9 of 40 examples",
    ),
    "too few labels": (lambda: sim.label_shards(LABELS, 2, 4, 0), "at least 5 and at most 10"),
    "too many labels": (lambda: sim.label_shards(LABELS, 2, 11, 0), "at least 5 and at most 10"),
    "no shards": (lambda: sim.FixedShards([], 4, 0), "shards is empty"),
    "a small shard": (lambda: sim.FixedShards([[1, 2]], 4, 0), "Worker 0 has 2 examples, which"),
    "no index": (lambda: sim.FixedShards([[0.5]], 1, 0), r"shards\[0\] must be indices"),
    "workers": (
        lambda: SAMPLERS["fixed"].rows(sim.Schedule([0], [0])),
        "The schedule has 1 workers, but the examples are shared by 4",
    ),
    "steps": (
        lambda: SAMPLERS["fixed"].rows(schedule_of(), (1, 2)),
        "num_steps has 2 values, but there are 4 workers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_shared_out(name):
    make, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        make()
