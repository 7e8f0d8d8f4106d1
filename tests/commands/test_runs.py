"""One run: its data, its segments, its program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcasgd_jax import digits, sim
from dcasgd_jax.commands import methods, runs, settings

SMALL = settings.Setting(model="softmax", num_workers=4, num_pushes=64, batch_size=4)


def test_digits_are_whole_scaled_and_stratified():
    data = digits.load()
    assert data.train.images.shape == (digits.NUM_TRAIN, 64)
    assert data.test.images.shape == (digits.NUM_TEST, 64)
    assert digits.NUM_TRAIN + digits.NUM_TEST == 1797
    for split in (data.train, data.test):
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert (split.images.min(), split.images.max()) == (0, 1)
        np.testing.assert_allclose(np.bincount(split.labels) / len(split.labels), 0.1, atol=0.005)


def test_every_epoch_is_a_fresh_permutation():
    rows = digits.batch_rows(10, 3, 7, seed=5)
    assert rows.shape == (7, 3)
    epochs = [rows[0:3].ravel(), rows[3:6].ravel()]
    for epoch in epochs:
        assert len(set(epoch)) == 9
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(digits.batch_rows(10, 3, 4, seed=5), rows[:4])
    assert (digits.batch_rows(10, 3, 7, seed=6) != rows).any()


@pytest.mark.parametrize("model", digits.MODELS)
def test_loss_is_the_mean_cross_entropy(model):
    task = digits.problem(model)
    data = digits.load()
    params = task.init(0)
    activations = data.train.images
    for layer in params[:-1]:
        activations = np.tanh(activations @ np.asarray(layer["weights"]) + layer["biases"][None])
    logits = activations @ np.asarray(params[-1]["weights"]) + params[-1]["biases"][None]
    log_normalizer = np.log(np.exp(logits).sum(axis=1))
    losses = log_normalizer - logits[np.arange(len(logits)), data.train.labels]
    rows = jnp.arange(len(losses))
    np.testing.assert_allclose(task.loss_fn(params, rows), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(task.evaluate(params).train_loss, losses.mean(), rtol=1e-5)
    assert task.loss_fn is digits.problem(model).loss_fn


def test_evaluate_counts_wrong_test_images():
    task = digits.problem("softmax")
    zeros = [{"weights": jnp.zeros((64, 10)), "biases": jnp.zeros(10).at[3].set(1.0)}]
    wrong = np.mean(digits.load().test.labels != 3)
    np.testing.assert_allclose(task.evaluate(zeros).test_error, wrong, rtol=1e-6)


@pytest.mark.parametrize(
    ("workers", "pushes"), [(8, 2520), (1, 149), (3, 60), (16, 64), (5, 5 * 317)]
)
def test_segments_are_whole_rounds(workers, pushes):
    setting = settings.Setting(num_workers=workers, num_pushes=pushes)
    length = runs.segment_length(setting)
    assert length % workers == 0
    assert 15 <= -(-pushes // length) <= 90 or pushes // workers < 36


def test_default_curve_has_about_36_equal_segments():
    length = runs.segment_length(settings.Setting())
    assert 2520 % length == 0
    assert 30 <= 2520 // length <= 45


@pytest.mark.parametrize(("pushes", "name"), [(64, "dcasgd-capped"), (4 * 149, "ssgd")])
def test_the_curve_does_not_change_the_run(pushes, name):
    setting = settings.Setting("softmax", 4, num_pushes=pushes, batch_size=4)
    workload = runs.make_workload(setting, 0)
    method = methods.METHODS[name]
    numbers = methods.Hyperparameters(0.2, 2.0)
    with_curve = runs.train(setting, method, numbers, workload)
    ends = runs.train(setting, method, numbers, workload, curve=False)
    assert with_curve.curve_pushes[-1] == pushes
    assert len(with_curve.curve_pushes) > 10
    assert ends.curve_pushes == [0, pushes]
    assert ends.final_train_loss == with_curve.final_train_loss
    assert ends.max_compensation_ratio == with_curve.max_compensation_ratio
    assert ends.staleness_counts == with_curve.staleness_counts


def test_a_run_is_the_loop_that_anyone_would_write():
    task, numbers = digits.problem("softmax"), methods.Hyperparameters(0.2)
    workload = runs.make_workload(SMALL, 1)
    run = runs.train(SMALL, methods.METHODS["asgd"], numbers, workload)
    schedule = workload.schedules[sim.Asynchronous()]
    versions = [workload.params]
    gradient = jax.jit(jax.grad(task.loss_fn))
    for k, rows in enumerate(workload.rows):
        rate = 0.2 * (1 if k < 32 else 0.1 if k < 48 else 0.01)
        grads = gradient(versions[schedule.read_version[k]], rows)
        versions.append(jax.tree.map(lambda p, g, rate=rate: p - rate * g, versions[-1], grads))
    np.testing.assert_allclose(
        run.final_train_loss, task.evaluate(versions[-1]).train_loss, rtol=1e-5
    )
    assert run.mean_staleness == schedule.staleness.mean()


def test_progress_hears_of_every_push():
    heard = []
    workload = runs.make_workload(SMALL, 0)
    runs.train(SMALL, methods.METHODS["ssgd"], methods.Hyperparameters(0.5), workload, heard.append)
    assert sum(heard) == 64


def test_new_numbers_and_seeds_compile_nothing(caplog):
    method = methods.METHODS["dcasgd-a"]
    first, second = (runs.make_workload(SMALL, seed) for seed in (0, 1))
    assert {w.schedules[method.protocol].num_slots for w in (first, second)} == {4}
    runs.train(SMALL, method, methods.Hyperparameters(0.5, 2.0), first)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        runs.train(SMALL, method, methods.Hyperparameters(0.1, 8.0), second)
        runs.train(SMALL, method, methods.Hyperparameters(0.2, 0.0), first, curve=False)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


@pytest.mark.parametrize("name", ["asgd", "ssgd", "dcasgd-capped"])
def test_members_trained_at_once_end_like_runs_of_their_own(name):
    method = methods.METHODS[name]
    workloads = [runs.make_workload(SMALL, seed) for seed in (0, 1)]
    lambda0 = 2.0 if method.compensates else None
    members = [
        (methods.Hyperparameters(rate, lambda0), workload)
        for rate in (0.2, 0.4, 1e30)
        for workload in workloads
    ]
    pushes = []
    losses = runs.final_train_losses(SMALL, method, members, pushes.append)
    alone = [runs.train(SMALL, method, *member, curve=False) for member in members]
    expected = [np.nan if run.diverged else run.final_train_loss for run in alone]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.isnan(losses).tolist() == [False] * 4 + [True] * 2
    assert sum(pushes) == 6 * SMALL.num_pushes
