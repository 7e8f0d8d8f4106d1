"""Weight prediction: reference runs, its identities, known wrong implementations, bad input."""

import functools

import calls
import jax
import jax.numpy as jnp
import loops
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
RATE, MOMENTUM, HORIZON = 0.05, 0.9, 3


def heavy_ball(rate=RATE):
    return optax.sgd(rate, momentum=MOMENTUM)


def averaging(rate=RATE):
    momentum = optax.ema(MOMENTUM, debias=False)
    return optax.chain(momentum, optax.scale_by_learning_rate(rate))


def spike_compensated():
    spikes = rivals.spike_compensation(MOMENTUM, delay=3)
    return optax.chain(spikes, optax.scale_by_learning_rate(RATE), rivals.remember_step())


def remembering(*stages):
    return optax.chain(*stages, rivals.remember_step())


RUNS = {
    "tau3_none": (heavy_ball(), None),
    "tau3_lwp_v": (heavy_ball(), rivals.sends.velocity_prediction(HORIZON, RATE)),
    "tau3_lwp_w": (remembering(heavy_ball()), rivals.sends.step_prediction(HORIZON)),
    "tau3_msnag": (heavy_ball(), rivals.sends.multi_step_nesterov(HORIZON, MOMENTUM, RATE)),
    "tau3_spectrain": (averaging(), rivals.sends.velocity_prediction(HORIZON, RATE)),
    "tau3_sc": (spike_compensated(), None),
    "tau3_lwp_w+sc": (spike_compensated(), rivals.sends.step_prediction(HORIZON)),
}


def lanes():
    kinds, devices = (AxisType.Auto,), jax.devices()[:2]
    return sim.LanesEngine(jax.make_mesh((2,), ("workers",), axis_types=kinds, devices=devices))


ENGINES = {"scan": sim.ScanEngine(), "host": sim.HostEngine(), "lanes": lanes()}


@functools.cache
def train(tx, send):
    return sent.run(sent.delayed(3), tx, send)[0]


def test_every_reference_run_is_tried():
    assert set(RUNS) == {name for name in CASES if name.startswith("tau3_")}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", RUNS)
def test_reference_runs(name, engine, x64):
    case = CASES[name]
    trace, _, _ = sent.run(sent.delayed(3), *RUNS[name], engine=ENGINES[engine])
    np.testing.assert_allclose(trace[-1], case["theta_final"], rtol=0, atol=ATOL)
    losses = servers.full_losses(sent.as_trace(trace))
    np.testing.assert_allclose(losses, case["loss_full"], rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "tx", "send"),
    [
        ("tau3_lwp_v", heavy_ball(), rivals.sends.velocity_prediction(2, RATE)),
        ("tau3_lwp_v", heavy_ball(), rivals.sends.velocity_prediction(4, RATE)),
        ("tau3_lwp_w", remembering(heavy_ball()), rivals.sends.step_prediction(2)),
        ("tau3_lwp_w", remembering(heavy_ball()), rivals.sends.step_prediction(4)),
        ("tau3_msnag", heavy_ball(), rivals.sends.multi_step_nesterov(2, MOMENTUM, RATE)),
        ("tau3_msnag", heavy_ball(), rivals.sends.multi_step_nesterov(4, MOMENTUM, RATE)),
        ("tau3_msnag", heavy_ball(), rivals.sends.velocity_prediction(3, RATE)),
        ("tau3_spectrain", heavy_ball(), rivals.sends.velocity_prediction(3, RATE)),
        ("tau3_lwp_v", averaging(), rivals.sends.velocity_prediction(3, RATE)),
        ("tau3_lwp_w+sc", spike_compensated(), rivals.sends.velocity_prediction(3, RATE)),
    ],
    ids=[
        *("horizon - 1", "horizon + 1", "horizon - 1, weights", "horizon + 1, weights"),
        *("horizon - 1, msnag", "horizon + 1, msnag", "linear for msnag", "sum for average"),
        *("average for sum", "velocity for weights with spikes"),
    ],
)
def test_wrong_ones_differ(name, tx, send, x64):
    right = train(*RUNS[name])
    np.testing.assert_allclose(right[-1], CASES[name]["theta_final"], rtol=0, atol=ATOL)
    assert np.abs(right - train(tx, send)).max() > VISIBLE


def test_velocity_and_weight_form_are_one_for_plain_momentum(x64):
    ours = train(*RUNS["tau3_lwp_v"])
    np.testing.assert_allclose(ours, train(*RUNS["tau3_lwp_w"]), rtol=0, atol=1e-13)


def test_an_averaging_velocity_is_a_summing_one_at_another_rate(x64):
    rate = RATE / (1 - MOMENTUM)
    averaged = train(averaging(rate), rivals.sends.velocity_prediction(HORIZON, rate))
    np.testing.assert_allclose(averaged, train(*RUNS["tau3_lwp_v"]), rtol=0, atol=1e-12)


def test_msnag_is_the_roll_out_without_gradients(x64):
    tx = heavy_ball()
    rolled = train(tx, sent.on_server(rivals.sends.roll_forward(tx, HORIZON)))
    np.testing.assert_allclose(rolled, train(*RUNS["tau3_msnag"]), rtol=0, atol=1e-12)


def falling(count):
    return RATE * jnp.exp2(-(count // 4).astype(jnp.result_type(float)))


def lwp_in_numpy(next_rates):
    """Velocity form with a falling rate; `next_rates(t)` are the 3 that the prediction takes."""
    w, velocity, versions, trace = sent.THETA, np.zeros(15), [sent.THETA], [sent.THETA]
    rate = lambda t: RATE * 0.5 ** (t // 4)
    for event in range(sent.NUM_EVENTS):
        grad = sent.gradient(versions[max(event - 3, 0)], event)
        velocity = MOMENTUM * velocity + grad
        w = w - rate(event) * velocity
        versions.append(w - velocity * sum(map(rate, next_rates(event + 1))))
        trace.append(w)
    return np.array(trace)


def test_the_rates_are_those_of_the_updates_to_come(x64):
    ours = train(heavy_ball(falling), rivals.sends.velocity_prediction(HORIZON, falling))
    right = lwp_in_numpy(lambda t: [t, t + 1, t + 2])
    np.testing.assert_allclose(ours, right, rtol=0, atol=ATOL)
    assert np.abs(ours - lwp_in_numpy(lambda t: [t] * 3)).max() > VISIBLE
    assert np.abs(ours - lwp_in_numpy(lambda t: [t - 1] * 3)).max() > VISIBLE
    direction = optax.chain(
        optax.trace(MOMENTUM), rivals.remember_step(), optax.scale_by_learning_rate(falling)
    )
    by_step = train(direction, rivals.sends.step_prediction(HORIZON, future_rates=falling))
    np.testing.assert_allclose(by_step, right, rtol=0, atol=ATOL)
    last_repeated = train(remembering(heavy_ball(falling)), rivals.sends.step_prediction(HORIZON))
    assert np.abs(last_repeated - right).max() > VISIBLE


def test_msnag_with_a_falling_rate_is_the_roll_out(x64):
    tx = heavy_ball(falling)
    ours = train(tx, rivals.sends.multi_step_nesterov(HORIZON, MOMENTUM, falling))
    rolled = train(tx, sent.on_server(rivals.sends.roll_forward(tx, HORIZON)))
    np.testing.assert_allclose(ours, rolled, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [lambda: optax.adam(0.05), lambda: optax.contrib.muon(0.05), lambda: optax.sgd(0.05)],
    ids=["adam", "muon", "sgd"],
)
def test_the_last_step_of_any_optimizer_goes_on(make, x64):
    """Sent to event k is w_v + 3 (w_v - w_{v-1}) of the version v that it read."""
    trace, used, _ = sent.run(sent.delayed(3), remembering(make()), rivals.sends.step_prediction(3))
    read = sent.delayed(3).read_version
    before = trace[np.maximum(read - 1, 0)]
    np.testing.assert_allclose(used, trace[read] + 3 * (trace[read] - before), rtol=0, atol=1e-12)
    assert np.abs(used - trace[read]).max() > 0.01


def test_adam_rolled_forward_is_adam_with_zero_gradients(x64):
    tx = optax.adamw(0.05, weight_decay=0.1)
    _, used, result = sent.run(
        sent.delayed(3), tx, sent.on_server(rivals.sends.roll_forward(tx, 2))
    )
    params, state = result.params, result.opt_state[1]
    for _ in range(2):
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    rolled = rivals.sends.roll_forward(tx, 2)(result.params, result.opt_state[1])
    np.testing.assert_allclose(servers.theta(rolled), servers.theta(params), rtol=0, atol=1e-13)
    assert np.abs(servers.theta(rolled) - servers.theta(result.params)).max() > VISIBLE
    assert np.isfinite(used).all()


def test_a_swept_learning_rate_is_predicted_with(x64):
    tx = INJECTED(learning_rate=0.0, momentum=MOMENTUM)
    params = jax.tree.map(jnp.asarray, sent.PROBLEM.params)
    result = calls.sweep(
        loops.softmax_loss, params, tx, sent.delayed(3), sent.batches(),
        hyperparams={"learning_rate": [0.01, RATE]}, send=rivals.sends.velocity_prediction(HORIZON),
    )  # fmt: skip
    final = servers.theta(jax.tree.map(lambda leaf: leaf[1], result.params))
    np.testing.assert_allclose(final, CASES["tau3_lwp_v"]["theta_final"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["tau3_lwp_v", "tau3_lwp_w+sc", "tau3_msnag"])
def test_narrow_params(name, dtype):
    trace, used, result = sent.run(sent.delayed(3), *RUNS[name], dtype=dtype)
    assert used.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(dtype)}
    # Relative to 1: float32 has 6e-8, bfloat16 4e-3, 24 events amplify by less than 20.
    atol = 1e-5 if dtype == jnp.float32 else 0.1
    expected = CASES[name]["theta_final"]
    np.testing.assert_allclose(trace[-1].astype(np.float64), expected, rtol=0, atol=atol)


MAKERS = {
    "velocity": functools.partial(rivals.sends.velocity_prediction, learning_rate=RATE),
    "msnag": functools.partial(
        rivals.sends.multi_step_nesterov, momentum=MOMENTUM, learning_rate=RATE
    ),
    "step": rivals.sends.step_prediction,
    "roll": functools.partial(rivals.sends.roll_forward, heavy_ball()),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_the_horizon_must_be_given_and_a_positive_integer(maker):
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'horizon'"):
        MAKERS[maker]()
    for horizon in (0, -1, 2.5, "3", None):
        error = ValueError if isinstance(horizon, int) else TypeError
        with pytest.raises(error, match="horizon must be"):
            MAKERS[maker](horizon=horizon)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rivals.sends.velocity_prediction(3, -0.1), "learning_rate must be"),
        (lambda: rivals.sends.velocity_prediction(3, float("nan")), "learning_rate must be"),
        (lambda: rivals.sends.multi_step_nesterov(3, 1.0, 0.1), "momentum must lie in"),
        (lambda: rivals.sends.step_prediction(3, future_rates=-1.0), "future_rates must be"),
    ],
)
def test_hyperparameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


INJECTED = optax.inject_hyperparams(optax.sgd)


@pytest.mark.parametrize(
    ("tx", "send", "message"),
    [
        (
            optax.adam(0.1),
            rivals.sends.velocity_prediction(3, 0.1),
            "needs one TraceState .* are 0",
        ),
        (
            optax.chain(heavy_ball(), heavy_ball()),
            rivals.sends.velocity_prediction(3, 0.1),
            "there are 2",
        ),
        (heavy_ball(), rivals.sends.step_prediction(3), "needs one RememberStepState"),
        (heavy_ball(), rivals.sends.velocity_prediction(3), "needs learning_rate="),
        (heavy_ball(), rivals.sends.velocity_prediction(3, falling), "nothing in the server's"),
        (
            INJECTED(learning_rate=falling, momentum=0.9),
            rivals.sends.velocity_prediction(3),
            "pass the schedule as learning_rate=",
        ),
        (heavy_ball(), rivals.sends.roll_forward(heavy_ball(), 3), "state of another optimizer"),
        (
            optax.masked(heavy_ball(), {"W": True, "b": False}),
            rivals.sends.velocity_prediction(3, 0.1),
            r"has no leaf|has shape|containers",
        ),
    ],
    ids=["adam", "two", "not kept", "no rate", "no counter", "injected", "rolled", "masked"],
)
def test_optimizers_that_do_not_fit_are_refused(tx, send, message):
    with pytest.raises(ValueError, match=message):
        sent.run(sent.delayed(3), tx, send, dtype=np.float32)


def test_an_injected_schedule_is_followed_when_it_is_given(x64):
    tx = INJECTED(learning_rate=falling, momentum=MOMENTUM)
    ours = train(tx, rivals.sends.velocity_prediction(HORIZON, falling))
    right = lwp_in_numpy(lambda t: [t, t + 1, t + 2])
    np.testing.assert_allclose(ours, right, rtol=0, atol=ATOL)
