"""Every method of the comparison trains, and each is tried as often as the others."""

import dataclasses
import math

import numpy as np
import pytest

from dcasgd_jax import rivals, sim
from dcasgd_jax.commands import catalogue, methods, runs, settings, study, tuning
from dcasgd_jax.commands.catalogue import systems

SETTING = settings.Setting(
    model="softmax",
    num_workers=4,
    num_pushes=160,
    law=sim.ExponentialTime(),
)
WORKLOAD = runs.make_workload(SETTING, 0)


def those_with(momentum=None):
    return catalogue.methods_for(4, 160, momentum)


def train(name, rate, number=None, momentum=None):
    setting = dataclasses.replace(SETTING, momentum=momentum)
    member = study.Member(methods.Hyperparameters(rate, number), 0)
    (outcome,) = runs.train(setting, those_with(momentum)[name], [member])
    return outcome["train_loss"]


@pytest.mark.parametrize("name", catalogue.names())
def test_learns(name):
    momentum = None if name in those_with() else 0.9
    method = those_with(momentum)[name]
    tried = tuning.configurations(method, "softmax", momentum)
    numbers = methods.Hyperparameters(tried[len(tried) // 3].learning_rate, method.numbers[0])
    pushes = []
    (found,) = runs.train(SETTING, method, [study.Member(numbers, 0)], pushes.append)
    assert found["train_loss"] < 1.5
    assert 0 <= found["test_error"] < 0.5
    assert found["highest_loss"] > 0.5 * found["initial_loss"]
    assert sum(pushes) == 160


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_all_get_as_many_configurations_over_the_same_range(momentum):
    for method in those_with(momentum).values():
        tried = tuning.configurations(method, "mlp", momentum)
        assert len(set(tried)) == tuning.NUM_CONFIGURATIONS, method.name
        rates = [numbers.learning_rate for numbers in tried]
        assert math.isclose(max(rates) / min(rates), tuning.HIGHEST_BY_LOWEST, rel_tol=1e-3)


def test_the_objects_stay_the_same():
    """So compiled programs are found again."""
    assert catalogue.methods_for(4, 160, 0.9) is catalogue.methods_for(4, 160, 0.9)


def test_methods_about_momentum_are_only_there_with_it():
    assert set(catalogue.names()) == set(those_with()) | set(those_with(0.9))
    assert "dana-zero" not in those_with()
    assert "dana-zero" in those_with(0.9)


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
    member = study.Member(methods.Hyperparameters(8.0, 0.0), 0)
    of = lambda name: runs.train(one_round, those_with()[name], [member])[0]["train_loss"]
    assert not math.isnan(of("dc-s3gd"))
    assert of("dc-s3gd") == pytest.approx(of("ssgd"), rel=1e-5)


def test_what_is_sent_follows_the_factor_on_the_rate():
    """As DANA-Zero with the whole schedule does, and not as with the rate alone."""
    factor = methods.rate_factor(160)
    tx, send = rivals.dana(lambda count: 0.2 * factor(count), 0.9, num_workers=4)
    workload = runs.make_workload(dataclasses.replace(SETTING, momentum=0.9), 0)
    schedule = workload.schedule(sim.Asynchronous())

    def of_schedule(send):
        server = sim.Server(tx, send=send)
        result = sim.simulate(workload.problem, server, schedule, workload.rows)
        return float(result.evaluations.values.train_loss[-1])

    found = train("dana-zero", 0.2, momentum=0.9)
    assert found == pytest.approx(of_schedule(send), rel=1e-5)
    assert found != pytest.approx(of_schedule(rivals.sends.dana_look_ahead(0.9, 0.2)), rel=1e-3)


def test_svrg_takes_as_many_gradients_as_the_others():
    num_epochs, pushes = systems.svrg_epochs(settings.Setting())
    full = math.ceil(1347 / 16)
    assert num_epochs * (2 * pushes + full) == pytest.approx(2520, abs=2 * num_epochs)


def test_leaves_are_read_one_after_another_and_never_before_the_pull():
    schedule = WORKLOAD.schedule(sim.Asynchronous())
    reads = systems.reads_of_leaves(schedule, 4).read_version
    np.testing.assert_array_equal(reads[:, 0], schedule.read_version)
    assert (np.diff(reads, axis=1) >= 0).all()
    assert (reads <= np.arange(160)[:, None]).all()
    assert (reads[:, 3] > reads[:, 0]).mean() > 0.2
