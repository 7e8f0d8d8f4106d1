"""Momentum compensation: reference runs, the roll-out, known wrong implementations, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from jax.sharding import AxisType

from dcasgd_jax import rivals, sim
from rivals import sent, servers

# Both sides are float64 and 24 events long, |theta| < 10.
ATOL = 1e-10
# What a wrong implementation must move at least one coordinate by.
VISIBLE = 1e-3
CASES = oracle.cases("rivals")
RATE, TAU = 0.3, 3


def accelerated(*coefficient):
    return optax.chain(optax.scale_by_learning_rate(RATE), rivals.accelerate(*coefficient))


def lanes():
    kinds, devices = (AxisType.Auto,), jax.devices()[:2]
    return sim.LanesEngine(jax.make_mesh((2,), ("workers",), axis_types=kinds, devices=devices))


ENGINES = {"scan": sim.ScanEngine(), "host": sim.HostEngine(), "lanes": lanes()}
RUNS = {
    "aagd_compensated_tau3": (3, 3),
    "nag_stale_uncompensated_tau3": (3, 0),
    "nag_tau0": (0, 0),
}


def train(send, tau=TAU, tx=None, **options):
    tx = accelerated() if tx is None else tx
    return sent.run(sent.delayed(tau), tx, send, full_batch=True, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", RUNS)
def test_reference_runs(name, engine, x64):
    tau, delay = RUNS[name]
    send = rivals.sends.momentum_compensation(delay)
    trace, _, _ = train(send, tau, engine=ENGINES[engine])
    np.testing.assert_allclose(trace[-1], CASES[name]["theta_final"], rtol=0, atol=ATOL)
    losses = servers.full_losses(sent.as_trace(trace))
    np.testing.assert_allclose(losses, CASES[name]["loss_full"], rtol=0, atol=ATOL)


class Server:
    """The rule in NumPy; a wrong implementation overrides where gradients are taken."""

    a = staticmethod(lambda k: k / (k + 3))

    def point(self, versions, j, k):
        """Where the gradient that was read at version j and arrives at k is taken."""
        x, before = versions[j], versions[max(j - 1, 0)]
        products = [np.prod([self.a(i) for i in range(j, last + 1)]) for last in range(j, k + 1)]
        return x + sum(products) * (x - before)

    def train(self):
        versions = [sent.THETA]
        for k in range(sent.NUM_EVENTS):
            x, before = versions[-1], versions[max(k - 1, 0)]
            grad = sent.gradient(self.point(versions, max(k - TAU, 0), k), None)
            versions.append(x + self.a(k) * (x - before) - RATE * grad)
        return np.array(versions)


class OneUpdateShort(Server):
    def point(self, versions, j, k):
        return super().point(versions, j, k - 1)


class OneUpdateFar(Server):
    def point(self, versions, j, k):
        return super().point(versions, j, k + 1)


class CoefficientOfTheRead(Server):
    """a_j for all updates to come."""

    def point(self, versions, j, k):
        x, before = versions[j], versions[max(j - 1, 0)]
        return x + sum(self.a(j) ** i for i in range(1, k - j + 2)) * (x - before)


class LinearExtrapolation(Server):
    def point(self, versions, j, k):
        x, before = versions[j], versions[max(j - 1, 0)]
        return x + (k - j + 1) * (x - before)


class AtTheParams(Server):
    def point(self, versions, j, k):
        return versions[j]


def test_ours_is_the_rule(x64):
    trace, _, _ = train(rivals.sends.momentum_compensation(TAU))
    np.testing.assert_allclose(trace, Server().train(), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    "wrong",
    [OneUpdateShort, OneUpdateFar, CoefficientOfTheRead, LinearExtrapolation, AtTheParams],
)
def test_wrong_implementations_differ(wrong, x64):
    trace, _, _ = train(rivals.sends.momentum_compensation(TAU))
    assert np.abs(trace - wrong().train()).max() > VISIBLE


@pytest.mark.parametrize("coefficient", [rivals.nesterov_coefficient, 0.7], ids=["k/(k+3)", "0.7"])
def test_it_is_the_recursion_rolled_forward_with_zero_gradients(coefficient, x64):
    """Delay + 1 steps: the look-ahead of the update that the gradient is used in comes on top."""
    tx = accelerated(coefficient)
    closed, used, _ = train(rivals.sends.momentum_compensation(TAU, coefficient), tx=tx)
    roll_out = sent.on_server(rivals.sends.roll_forward(tx, TAU + 1))
    rolled, used_by_roll_out, _ = train(roll_out, tx=tx)
    np.testing.assert_allclose(used, used_by_roll_out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(closed, rolled, rtol=0, atol=1e-13)


def test_with_a_constant_coefficient_it_is_msnag_with_the_look_ahead_on_top(x64):
    """x_k - x_{k-1} is -rate times the velocity of heavy ball."""
    tx, heavy_ball = accelerated(0.7), optax.sgd(RATE, momentum=0.7)
    ours, _, _ = train(rivals.sends.momentum_compensation(TAU, 0.7), tx=tx)
    msnag, _, _ = train(rivals.sends.multi_step_nesterov(TAU + 1, 0.7, RATE), tx=heavy_ball)
    np.testing.assert_allclose(ours, msnag, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_narrow_params(dtype):
    trace, used, result = train(rivals.sends.momentum_compensation(TAU), dtype=dtype)
    assert used.dtype == dtype
    state = result.opt_state[1][1]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.step)} == {jnp.dtype(jnp.float32)}
    # Relative to 1: float32 has 6e-8, bfloat16 4e-3, 24 events amplify by less than 30.
    atol = 1e-5 if dtype == jnp.float32 else 0.15
    expected = CASES["aagd_compensated_tau3"]["theta_final"]
    np.testing.assert_allclose(trace[-1].astype(np.float64), expected, rtol=0, atol=atol)


def test_all_updates_share_one_trace():
    traces = []
    tx = accelerated()

    @jax.jit
    def update(grads, state):
        traces.append(None)
        return tx.update(grads, state)

    state = tx.init(jnp.zeros(3))
    for _ in range(5):
        _, state = update(jnp.ones(3), state)
    assert len(traces) == 1


def test_none_leaves_stay_none():
    tx = rivals.accelerate(0.5)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    updates, _ = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params))
    assert updates["b"] is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rivals.accelerate(1.0), ValueError, "coefficient must lie in"),
        (
            lambda: rivals.sends.momentum_compensation(3, -0.1),
            ValueError,
            "coefficient must lie in",
        ),
        (
            lambda: rivals.sends.momentum_compensation(-1),
            ValueError,
            "delay must be an integer >= 0",
        ),
        (lambda: rivals.sends.momentum_compensation(1.5), TypeError, "delay must be an integer"),
        (lambda: rivals.sends.momentum_compensation(), TypeError, "argument: 'delay'"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_needs_an_accelerated_server():
    with pytest.raises(ValueError, match="momentum_compensation needs one AccelerateState"):
        train(rivals.sends.momentum_compensation(3), tx=optax.sgd(0.1), dtype=np.float32)
