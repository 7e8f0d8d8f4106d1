"""Runs on the digits: the data, the curve, the program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcasgd_jax import digits, sim
from dcasgd_jax.commands import methods, runs, settings, study

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
    params = task.params
    activations = data.train.images
    for layer in params[:-1]:
        activations = np.tanh(activations @ np.asarray(layer["weights"]) + layer["biases"][None])
    logits = activations @ np.asarray(params[-1]["weights"]) + params[-1]["biases"][None]
    log_normalizer = np.log(np.exp(logits).sum(axis=1))
    losses = log_normalizer - logits[np.arange(len(logits)), data.train.labels]
    rows = jnp.arange(len(losses))
    np.testing.assert_allclose(task.loss_fn(params, rows), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(task.eval_fn(params).train_loss, losses.mean(), rtol=1e-5)
    assert task.loss_fn is digits.problem(model).loss_fn


def test_evaluate_counts_wrong_test_images():
    task = digits.problem("softmax")
    zeros = [{"weights": jnp.zeros((64, 10)), "biases": jnp.zeros(10).at[3].set(1.0)}]
    wrong = np.mean(digits.load().test.labels != 3)
    np.testing.assert_allclose(task.eval_fn(zeros).test_error, wrong, rtol=1e-6)


@pytest.mark.parametrize(
    ("workers", "pushes"), [(8, 2520), (1, 149), (3, 60), (16, 64), (5, 5 * 317)]
)
def test_a_curve_has_about_36_points_and_the_end(workers, pushes):
    setting = settings.Setting(num_workers=workers, num_pushes=pushes)
    for protocol in (sim.Asynchronous(), sim.Synchronous()):
        schedule = runs.make_workload(setting, 0).schedule(protocol)
        stops = runs.curve_stops(schedule)
        assert stops[-1] == schedule.num_updates
        assert len(stops) == min(runs.NUM_CURVE_POINTS, schedule.num_updates)


def member(rate, lambda0=None, seed=0):
    return study.Member(methods.Hyperparameters(rate, lambda0), seed)


@pytest.mark.parametrize(("pushes", "name"), [(64, "dcasgd-capped"), (4 * 149, "ssgd")])
def test_the_curve_does_not_change_the_run(pushes, name):
    setting = settings.Setting("softmax", 4, num_pushes=pushes, batch_size=4)
    method = methods.METHODS[name]
    of = member(0.2, 2.0 if method.compensates else None)
    (with_curve,) = runs.train_with_curves(setting, method, [of])
    (ends,) = runs.train(setting, method, [of])
    for field in ("initial_loss", "train_loss", "test_error", "highest_loss"):
        assert with_curve[field] == pytest.approx(ends[field], rel=1e-4), field
    assert with_curve["curve_pushes"][-1] == sum(with_curve["staleness_counts"]) == pushes
    assert len(with_curve["curve_pushes"]) > 10
    assert with_curve["curve_train_loss"][0] == ends["initial_loss"]
    assert with_curve["curve_train_loss"][-1] == pytest.approx(ends["train_loss"], rel=1e-4)
    assert with_curve["curve_seconds"][-1] == with_curve["simulated_seconds"]
    assert with_curve["train_loss_nudged"] == pytest.approx(ends["train_loss"], rel=1e-3)


def test_a_run_is_the_loop_that_anyone_would_write():
    workload = runs.make_workload(SMALL, 1)
    problem = workload.problem
    (run,) = runs.train(SMALL, methods.METHODS["asgd"], [member(0.2, seed=1)])
    schedule = workload.schedule(sim.Asynchronous())
    versions, losses = [problem.params], []
    gradient = jax.jit(jax.value_and_grad(problem.loss_fn))
    for k, rows in enumerate(workload.rows):
        rate = 0.2 * min((k + 1) / 6, 1) * (1 if k < 32 else 0.1 if k < 48 else 0.01)
        loss, grads = gradient(versions[schedule.read_version[k]], rows)
        versions.append(jax.tree.map(lambda p, g, rate=rate: p - rate * g, versions[-1], grads))
        losses.append(loss)
    end = problem.eval_fn(versions[-1])
    assert run["train_loss"] == pytest.approx(float(end.train_loss), rel=1e-5)
    assert run["test_error"] == pytest.approx(float(end.test_error), abs=1e-6)
    # Of as many gradients after one another as there are workers.
    assert run["highest_loss"] == pytest.approx(np.reshape(losses, (-1, 4)).mean(1).max(), rel=1e-5)


@pytest.mark.parametrize("train", [runs.train, runs.train_with_curves])
def test_progress_hears_of_every_push(train):
    heard = []
    train(SMALL, methods.METHODS["ssgd"], [member(0.5), member(0.5, seed=1)], heard.append)
    assert sum(heard) == 2 * 64


def test_what_diverges_is_lost_to_tuning_as_is_what_rises_too_high():
    method = methods.METHODS["asgd"]
    found = runs.train(SMALL, method, [member(rate) for rate in (0.2, 1e30)])
    assert [math.isnan(outcome["train_loss"]) for outcome in found] == [False, True]
    assert found[1]["highest_loss"] > 1e3 * found[1]["initial_loss"]
    fine = {"train_loss": 0.1, "initial_loss": 2.0, "highest_loss": 2.9}
    assert runs.loss_of(fine) == 0.1
    assert math.isnan(runs.loss_of(fine | {"highest_loss": 3.1}))


def test_a_run_that_learnt_nothing_is_diverged():
    """Finite and below the initial loss, but no better than a uniform guess."""
    assert runs.has_diverged(2.9, math.log(10))
    assert runs.has_diverged(2.0, 2.1)
    assert runs.has_diverged(2.9, math.nan)
    assert not runs.has_diverged(2.9, 2.2)


def test_new_numbers_and_seeds_compile_nothing(caplog):
    method = methods.METHODS["dcasgd-a"]
    runs.train(SMALL, method, [member(0.5, 2.0)])
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        runs.train(SMALL, method, [member(0.1, 8.0, seed=1)])
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_all_events_so_far_are_heard_of_once_each():
    heard = []
    advance = study.of_events(heard.append, pushes_per_event=8)
    for num_events in (3, 4, 10):
        advance(num_events)
    assert heard == [24, 8, 48]
