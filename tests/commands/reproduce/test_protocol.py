"""The parts of the protocol: learning rates, epochs, optimizers, evaluation."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcasgd_jax import sim
from dcasgd_jax.commands import methods
from dcasgd_jax.commands.images import augmentation, cifar10
from dcasgd_jax.commands.reproduce import cifar10 as data_set
from dcasgd_jax.commands.reproduce import paper, settings

HYPERPARAMETERS = methods.Hyperparameters(0.5)


def run_of(method, workers=8):
    max_pull = methods.METHODS[method].max_pull
    return settings.Run(method, workers, 0.5, paper.CIFAR10.lambda0.get(method), max_pull, seed=0)


def images(num_train, num_test, seed=0):
    rng = np.random.default_rng(seed)
    split = lambda count: cifar10.LabelledImages(
        rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
        rng.integers(0, 10, count).astype(np.int32),
    )
    return cifar10.Cifar10(split(num_train), split(num_test))


def budget(setting, run):
    return settings.budget(setting, run, run.trained_by.protocol, 50_000)


def test_an_epoch_of_the_paper():
    """50,000 images in batches of 128; synchronous workers make one update together."""
    counts = {
        (name, workers): budget(settings.Setting(), run_of(name, workers))[1:]
        for name, workers in (("sgd", 1), ("ssgd", 4), ("ssgd", 8), ("asgd", 8), ("dcasgd-a", 4))
    }
    assert counts == {
        ("sgd", 1): (390, 390),
        ("ssgd", 4): (4 * 97, 97),
        ("ssgd", 8): (8 * 48, 48),
        ("asgd", 8): (8 * 48, 8 * 48),
        ("dcasgd-a", 4): (4 * 97, 4 * 97),
    }


@pytest.mark.parametrize("method", ["sgd", "ssgd", "asgd"])
@pytest.mark.parametrize("epochs", [160, 8])
def test_the_learning_rate_falls_after_one_half_and_three_quarters(method, epochs):
    setting = settings.Setting(epochs=epochs)
    per_epoch = budget(setting, run_of(method)).updates_per_epoch
    decay = methods.rate_factor(epochs * per_epoch, warm_up=0)
    for epoch, before, after in ((epochs / 2, 1, 0.1), (3 * epochs / 4, 0.1, 0.01)):
        last = int(epoch * per_epoch) - 1
        np.testing.assert_allclose(decay(last), before, rtol=1e-6)
        np.testing.assert_allclose(decay(last + 1), after, rtol=1e-6)


def test_the_whole_data_is_evaluated_every_epoch():
    data = lambda *counts: [
        cifar10.LabelledImages(np.zeros((n, 0), np.uint8), np.zeros(n, np.int32)) for n in counts
    ]
    every = lambda setting, *counts: setting.epochs_between_evaluations(
        cifar10.Cifar10(*data(*counts))
    )
    assert every(settings.Setting(), 50_000, 10_000) == 1
    assert every(settings.Setting(), 5_000, 10_000) == 10
    assert every(settings.Setting(epochs=4), 5_000, 10_000) == 4
    assert every(settings.Setting(eval_every=2), 50_000, 10_000) == 2


@pytest.mark.parametrize("method", ["asgd", "dcasgd-c", "dcasgd-a", "dcasgd-capped"])
def test_the_optimizer_compensates_decays_and_then_takes_momentum(method):
    """Two updates of one weight, against the formulas; what is capped pulls outside of momentum."""
    run = run_of(method)
    method_of_run = settings.Setting(momentum=0.9).method_of(run)
    tx = methods.make_tx(method_of_run, 4, warm_up=0, weight_decay=0.01)
    numbers = methods.Hyperparameters(0.5, run.lambda0)
    params = {"w": jnp.array([1.0, -2.0])}
    stale = {"w": jnp.array([0.5, -2.5])}
    grads = {"w": jnp.array([0.2, -0.1])}
    state = methods.init_opt_state(tx, params, numbers)
    w, g, w_old = (np.asarray(tree["w"], np.float64) for tree in (params, grads, stale))
    velocity, mean_square = 0, 0
    for rate in (0.5, 0.5, 0.05, 0.005):
        updates, state = tx.update(grads, state, params, stale_params=stale, worker=0, staleness=1)
        mean_square = 0.95 * mean_square + 0.05 * g**2
        strength = {
            "asgd": 0.0,
            "dcasgd-c": 0.04,
            "dcasgd-a": 2 / np.sqrt(mean_square + 1e-7),
            "dcasgd-capped": 300 / np.sqrt(mean_square + 1e-7),
        }[method] * g**2
        before, pull = strength, 0.0
        if method == "dcasgd-capped":
            # Momentum makes ten times the learning rate of a gradient in the long run.
            assert rate < 0.5 or (10 * rate * strength > 1).all()  # the cap is at work
            before, pull = 0.0, np.minimum(10 * rate * strength, 1.0)
        velocity = 0.9 * velocity + g + before * (w - w_old) + 0.01 * w
        wanted = -rate * velocity - pull * (w - w_old)
        np.testing.assert_allclose(updates["w"], wanted, rtol=2e-5)


def test_one_optimizer_for_all_numbers():
    make = lambda: methods.make_tx(settings.Setting().method_of(run_of("dcasgd-a")), 10)
    assert make() is make()


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("size", [None, 3])
def test_evaluation_in_batches(backend, size, monkeypatch):
    """Unrolled as on the CPU, or in a loop as on accelerators; the last batch is filled up."""
    data = images(9, 10)
    reference = lambda x: jnp.stack([x.mean((1, 2, 3)) * k for k in range(10)], axis=1)
    dc_nnx = pytest.importorskip("dcasgd_jax.integrations.nnx")
    caught = {}
    monkeypatch.setattr(
        dc_nnx, "split_model", lambda model, loss, evaluate: caught.update(evaluate=evaluate)
    )
    monkeypatch.setattr(data_set, "_make_model", lambda *args: types.SimpleNamespace())
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: backend)
        data_set.problem_maker(settings.Setting(), data, size)(0)
    values = caught["evaluate"](reference)
    for split, count, names in ((data.train, 2, "train"), (data.test, 10, "test")):
        logits = reference(augmentation.normalise(split.images[:count]))
        labels = split.labels[:count]
        loss = -jax.nn.log_softmax(logits)[np.arange(count), labels].mean()
        np.testing.assert_allclose(values[f"{names}_loss"], loss, rtol=1e-5)
    wrong = (np.asarray(logits).argmax(1) != data.test.labels).mean()
    np.testing.assert_allclose(values["test_error"], wrong, rtol=1e-6)


def test_problems_of_all_seeds_share_their_functions():
    pytest.importorskip("flax")
    make = data_set.problem_maker(settings.Setting(model="tiny"), images(8, 4))
    first, second = make(0), make(1)
    assert first.loss_fn is second.loss_fn
    assert first.eval_fn is second.eval_fn
    leaves = zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True)
    assert any((a != b).any() for a, b in leaves)


def test_the_paper_has_a_number_for_every_method_of_its_own():
    """The capped ones are ours; sequential SGD has one worker."""
    theirs = {name for name in methods.METHODS if name not in ("sgd", "dcasgd-capped", "rotated")}
    expected = {(name, workers) for name in theirs for workers in (4, 8)} | {("sgd", 1)}
    assert set(paper.CIFAR10.test_error_percent) == expected
    assert isinstance(settings.Setting().law, sim.GammaTime)
