"""Known misreadings: each differs from the reference run, so each would be noticed."""

import functools

import numpy as np
import optax
import oracle
import pytest

from dcasgd_jax import rivals
from rivals import mutants, servers
from rivals.test_oracles import local_steps

# Float64 on both sides; coordinates of order 1.
ATOL = 1e-10
VISIBLE = 1e-3

STALENESS = oracle.cases("staleness_lr")
RIVALS = oracle.cases("rivals")


@functools.cache
def our_fedbuff():
    case = RIVALS["delayed_nesterov_N4"]  # the same local steps
    tx = rivals.fedbuff(optax.sgd(1.0), buffer_size=3, num_workers=4)
    trace, _ = servers.run(tx, case["order"], servers.worker, local_steps(case))
    return oracle.flatten(trace)


def expected(name):
    if name == "fedbuff":  # no reference run: ours
        return our_fedbuff()
    if name == "ormo_fixed_gradients":
        return np.array([RIVALS[name]["w"], RIVALS[name]["u"]])
    case = STALENESS.get(name) or RIVALS[name]
    return np.array(case.get("theta_trace") or [case["theta_final"]])


RIGHT = {
    "wu_adaptive1_gamma'=1_alpha=0.9": functools.partial(mutants.wu, alpha=0.9),
    "wu_adaptive2_gamma'=1": mutants.wu,
    "tau3_sc": mutants.spikes,
    "delayed_nesterov_N4": mutants.delayed_nesterov,
    "delayed_nesterov_N1_is_nesterov": functools.partial(mutants.delayed_nesterov, N=1),
    "ormo_fixed_gradients": mutants.ordered,
    "dc_ssgd_lam2": mutants.dc_ssgd,
    "dc_ssgd_lam0_is_sum_step": functools.partial(mutants.dc_ssgd, lam=0.0),
    "fedbuff": mutants.fedbuff,
}
WRONG = {
    "wu_adaptive1_gamma'=1_alpha=0.9": [{"window": 1}, {"window": -1}],
    # A shorter window does not show in this run; test_wu_adaptive2_by_hand has one where it does.
    "wu_adaptive2_gamma'=1": [{"window": 1}, {"fill": False}],
    "tau3_sc": [{"form": "average"}, {"a_power": 0}, {"spike": False}, {"delay": 2}],
    "delayed_nesterov_N4": [
        {"divide": False},
        {"every": True},
        {"keep": True},
        {"old": True},
        {"sign": -1},
    ],
    "ormo_fixed_gradients": [
        {"late_counts": False},
        {"glide": False},
        {"per_gradient": True},
        {"closed_form": False},
    ],
    "dc_ssgd_lam2": [{"against": "previous"}, {"mean": True}, {"order": (3, 2, 1, 0)}],
    "fedbuff": [{"divide": False}, {"count": "pushes"}, {"normalise": True}, {"exponent": 1.0}],
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_one(name, x64):
    want = expected(name)
    np.testing.assert_allclose(RIGHT[name]()[-len(want) :], want, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "misreading"),
    [(name, m) for name, misreadings in WRONG.items() for m in misreadings],
    ids=str,
)
def test_misreading(name, misreading, x64):
    want = expected(name)
    assert np.abs(RIGHT[name](**misreading)[-len(want) :] - want).max() > VISIBLE


def test_the_order_of_a_round_does_not_matter_without_compensation():
    one, other = (mutants.dc_ssgd(lam=0.0, order=order) for order in ((0, 1, 2, 3), (3, 2, 1, 0)))
    np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)


def test_fedbuff_is_a_buffer_of_scaled_pushes(x64):
    """Told the staleness in updates, it is what it counts by itself."""
    case = RIVALS["delayed_nesterov_N4"]
    version, read = [event // 3 for event in range(25)], dict.fromkeys(case["order"], 0)

    def told(event, worker, staleness):
        del staleness
        staleness = version[event] - read[worker]
        read[worker] = version[event + 1]
        return {"staleness": staleness}

    tx = rivals.fedbuff(optax.sgd(1.0), buffer_size=3)
    trace, _ = servers.run(tx, case["order"], told, local_steps(case))
    np.testing.assert_allclose(oracle.flatten(trace), our_fedbuff(), rtol=0, atol=ATOL)
