"""Every method of the comparison trains, and each is tried as often as the others."""

import math

import numpy as np
import pytest

from dcasgd_jax import digits, rivals, sim
from dcasgd_jax.commands import catalogue, methods, runs, settings
from dcasgd_jax.commands.catalogue import systems

SETTING = settings.Setting(
    model="softmax",
    num_workers=4,
    num_pushes=160,
    law_name="exponential",
    law=sim.ExponentialTime(),
)
WORKLOAD = runs.make_workload(SETTING, 0)


def entries(momentum=None):
    return {entry.name: entry for entry in catalogue.entries(4, 160, momentum)}


def train(name, rate, number=None, momentum=None):
    hyperparameters = methods.Hyperparameters(rate, number)
    return (
        entries(momentum)[name]
        .train(SETTING, [(hyperparameters, WORKLOAD)], lambda pushes: None)[0]
        .train_loss
    )


@pytest.mark.parametrize("name", catalogue.names())
def test_learns(name):
    momentum = None if name in entries() else 0.9
    entry = entries(momentum)[name]
    grid = catalogue.make_grid(entry, "softmax", momentum)
    rate = grid.learning_rates[len(grid.learning_rates) // 3]
    pushes = []
    member = methods.Hyperparameters(rate, grid.lambda0s[0])
    (found,) = entry.train(SETTING, [(member, WORKLOAD)], pushes.append)
    assert found.train_loss < 1.5
    assert 0 <= found.test_error < 0.5
    assert sum(pushes) == 160


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_all_get_as_many_configurations_over_the_same_range(momentum):
    for entry in entries(momentum).values():
        grid = catalogue.make_grid(entry, "mlp", momentum)
        assert len(grid) == catalogue.NUM_CONFIGURATIONS, entry.name
        rates = grid.learning_rates
        assert math.isclose(rates[-1] / rates[0], catalogue.HIGHEST_BY_LOWEST, rel_tol=1e-3)


def test_the_objects_stay_the_same():
    """So compiled programs are found again."""
    assert catalogue.entries(4, 160, 0.9) is catalogue.entries(4, 160, 0.9)


def test_methods_about_momentum_are_only_there_with_it():
    assert set(catalogue.names()) == set(entries()) | set(entries(0.9))
    assert "dana-zero" not in entries()
    assert "dana-zero" in entries(0.9)


@pytest.mark.parametrize(
    ("name", "number", "plain"),
    [
        ("dcasgd-c", 0.0, "asgd"),
        ("uniform-pull", 0.0, "asgd"),
        ("hessian", 0.0, "asgd"),
        ("dc-svrg", 0.0, "svrg"),
    ],
)
def test_without_its_number_a_method_is_the_plain_one(name, number, plain):
    assert train(name, 0.4, number) == pytest.approx(train(plain, 0.4), rel=1e-5)


def test_dc_ssgd_without_its_number_is_ssgd_with_the_summed_step():
    assert train("dc-ssgd", 0.1, 0.0) == pytest.approx(train("ssgd", 0.4), rel=1e-4)


def test_dc_s3gd_of_workers_that_agree_is_synchronous():
    """One worker's share of the work each, so only its first, undelayed round is the same."""
    one_round = settings.Setting(model="softmax", num_workers=4, num_pushes=4)
    workload = runs.make_workload(one_round, 0)
    member = [(methods.Hyperparameters(8.0, 0.0), workload)]
    ignore = lambda pushes: None
    decentralized = entries()["dc-s3gd"].train(one_round, member, ignore)[0]
    synchronous = entries()["ssgd"].train(one_round, member, ignore)[0]
    assert not math.isnan(decentralized.train_loss)
    assert decentralized.train_loss == pytest.approx(synchronous.train_loss, rel=1e-5)


def test_what_is_sent_follows_the_decay_of_the_rate():
    """As DANA-Zero with the whole schedule does, and not as with the rate before decay."""
    decay = methods.decay_schedule(160)
    tx, send = rivals.dana(lambda count: 0.2 * decay(count), 0.9, num_workers=4)
    schedule = WORKLOAD.schedules[sim.Asynchronous()]
    task = digits.task("softmax")
    of_schedule = lambda send: (
        runs.outcome(
            SETTING,
            WORKLOAD,
            sim.simulate(
                task.loss_fn, WORKLOAD.params, tx, schedule, WORKLOAD.rows, send=send
            ).params,
        ).train_loss
    )
    found = train("dana-zero", 0.2, momentum=0.9)
    assert found == pytest.approx(of_schedule(send), rel=1e-5)
    assert found != pytest.approx(of_schedule(rivals.sends.dana_look_ahead(0.9, 0.2)), rel=1e-3)


def test_svrg_takes_as_many_gradients_as_the_others():
    num_epochs, pushes = systems.svrg_epochs(settings.Setting())
    full = math.ceil(1347 / 16)
    assert num_epochs * (2 * pushes + full) == pytest.approx(2520, abs=2 * num_epochs)


def test_leaves_are_read_one_after_another_and_never_before_the_pull():
    schedule = WORKLOAD.schedules[sim.Asynchronous()]
    reads = systems.reads_of_leaves(schedule, 4).read_version
    np.testing.assert_array_equal(reads[:, 0], schedule.read_version)
    assert (np.diff(reads, axis=1) >= 0).all()
    assert (reads <= np.arange(160)[:, None]).all()
    assert (reads[:, 3] > reads[:, 0]).mean() > 0.2
