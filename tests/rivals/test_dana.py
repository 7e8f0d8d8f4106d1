"""DANA: reference runs, its identities, known wrong implementations, bad input."""

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
ZERO = CASES["dana_zero_irr4"]
ORDER = ZERO["order"]
RATE, DECAY = 0.05, 0.9


def lanes():
    devices = jax.devices()[:2]
    return sim.LanesEngine(
        jax.make_mesh((2,), ("w",), axis_types=(AxisType.Auto,), devices=devices)
    )


ENGINES = {"scan": sim.ScanEngine(), "host": sim.HostEngine(), "lanes": lanes()}


def multi(rate=RATE, num_workers=4, **options):
    return optax.chain(
        rivals.per_worker_momentum(DECAY, num_workers, **options),
        optax.scale_by_learning_rate(rate),
    )


class Server:
    """DANA-Zero in NumPy, from the rule; a wrong implementation overrides one method."""

    def __init__(self, rate=lambda event: RATE, lambda0=0.0):
        self.rate, self.lambda0, self.event = rate, lambda0, 0
        self.w, self.velocities = sent.THETA, np.zeros((4, 15))

    def compensated(self, grad, looked_ahead, plain):
        del plain
        return grad + self.lambda0 * grad**2 * (self.w - looked_ahead)

    def accelerate(self, worker, grad):
        self.velocities[worker] = DECAY * self.velocities[worker] + grad
        return self.velocities[worker]

    def send(self, worker):
        del worker
        return self.w - self.rate(self.event) * DECAY * self.velocities.sum(axis=0)

    def push(self, worker, grad, looked_ahead, plain):
        velocity = self.accelerate(worker, self.compensated(grad, looked_ahead, plain))
        self.w = self.w - self.rate(self.event) * velocity
        self.event += 1


def train_numpy(server):
    """Params of every version [25, 15] and what every event's worker was sent [24, 15]."""
    held = dict.fromkeys(range(4), (server.w, server.w))
    trace, used = [server.w], []
    for event, worker in enumerate(ORDER):
        looked_ahead, plain = held[worker]
        used.append(looked_ahead)
        server.push(worker, sent.gradient(looked_ahead, event), looked_ahead, plain)
        held[worker] = server.send(worker), server.w
        trace.append(server.w)
    return np.array(trace), np.array(used)


@pytest.mark.parametrize("engine", ENGINES)
def test_dana_zero(engine, x64):
    tx, send = rivals.dana(RATE, DECAY, num_workers=4)
    schedule = sent.schedule_of(ORDER)
    trace, used, result = sent.run(schedule, tx, send, engine=ENGINES[engine])
    np.testing.assert_allclose(trace[-1], ZERO["theta_final"], rtol=0, atol=ATOL)
    of_events = np.array(ZERO["sent_trace"])[schedule.read_version]
    np.testing.assert_allclose(used, of_events, rtol=0, atol=ATOL)
    last = servers.theta(send(result.params, result.opt_state))
    np.testing.assert_allclose(last, ZERO["sent_final"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(trace, train_numpy(Server())[0], rtol=0, atol=ATOL)


@pytest.mark.parametrize("engine", ENGINES)
def test_multi_asgd_sends_its_params(engine, x64):
    case = CASES["dana_multi_irr4"]
    trace, _, _ = sent.run(sent.schedule_of(ORDER), multi(), None, engine=ENGINES[engine])
    np.testing.assert_allclose(trace, case["sent_trace"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(trace[-1], case["theta_final"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("engine", ENGINES)
def test_dana_slim_has_the_params_that_dana_zero_sends(engine, x64):
    tx = multi(nesterov=True)
    trace, _, _ = sent.run(sent.schedule_of(ORDER), tx, None, engine=ENGINES[engine])
    np.testing.assert_allclose(trace, ZERO["sent_trace"], rtol=0, atol=ATOL)
    losses = servers.full_losses(sent.as_trace(trace))  # the file's losses are at what is sent
    np.testing.assert_allclose(losses, ZERO["loss_full"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_worker_is_the_momentum_of_optax(nesterov, x64):
    schedule = sent.schedule_of([0] * sent.NUM_EVENTS)
    ours, _, _ = sent.run(schedule, multi(num_workers=1, nesterov=nesterov), None)
    tx = optax.sgd(RATE, momentum=DECAY, nesterov=nesterov)
    expected, _, _ = sent.run(schedule, tx, None)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)


def test_dana_dc_compensates_towards_what_was_sent(x64):
    tx, send = rivals.dana(RATE, DECAY, num_workers=4, lambda0=2.0)
    trace, used, _ = sent.run(sent.schedule_of(ORDER), tx, send)
    expected, expected_used = train_numpy(Server(lambda0=2.0))
    np.testing.assert_allclose(trace, expected, rtol=0, atol=ATOL)
    np.testing.assert_allclose(used, expected_used, rtol=0, atol=ATOL)


def read_then_write(velocities, total, worker, grad):
    """The rule in the order in which it is stated, on `[num_workers, ...]` and a sum."""
    velocity = DECAY * velocities[worker] + grad
    total = total + (velocity - velocities[worker])
    return velocity, velocities.at[worker].set(velocity), total


def test_the_velocity_that_is_not_written_yet_changes_no_bit():
    grads = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    workers = np.random.default_rng(1).integers(0, 3, 30)
    tx = rivals.per_worker_momentum(DECAY, 3)
    state = tx.init(jnp.zeros(7))
    velocities, total = jnp.zeros((3, 7)), jnp.zeros(7)
    for worker, grad in zip(map(int, workers), grads, strict=True):
        expected, velocities, total = read_then_write(velocities, total, worker, grad)
        actual, state = tx.update(grad, state, worker=worker)
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(state.velocities, velocities)
        np.testing.assert_array_equal(state.total, total)


@pytest.mark.usefixtures("compiled_afresh")
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_copies_no_velocities(nesterov):
    params = jnp.ones((1000, 100))
    tx = multi(num_workers=2, nesterov=nesterov)

    def step(params, state, worker):
        updates, state = tx.update(params, state, params, worker=worker)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    compiled = jitted.lower(params, tx.init(params), jnp.int32(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1000


def falling(event):
    return RATE * 0.5 ** (event // 8)


class RescaledBuffers(Server):
    """Velocities of rate * g, rescaled when the rate falls: momentum correction."""

    rescales = True

    def accelerate(self, worker, grad):
        now, before = self.rate(self.event), self.rate(max(self.event - 1, 0))
        if self.rescales:
            self.velocities *= now / before
        self.velocities[worker] = DECAY * self.velocities[worker] + now * grad
        return self.velocities[worker] / now

    def send(self, worker):
        before = self.rate(max(self.event - 1, 0))
        factor = self.rate(self.event) / before if self.rescales else 1.0
        return self.w - factor * DECAY * self.velocities.sum(axis=0)


class BuffersNotRescaled(RescaledBuffers):
    rescales = False


def test_a_falling_rate_is_momentum_correction(x64):
    schedule = lambda count: RATE * jnp.exp2(-(count // 8).astype(jnp.float64))
    tx, send = rivals.dana(schedule, DECAY, num_workers=4)
    trace, _, _ = sent.run(sent.schedule_of(ORDER), tx, send)
    np.testing.assert_allclose(trace, train_numpy(RescaledBuffers(falling))[0], rtol=0, atol=ATOL)
    assert np.abs(trace - train_numpy(BuffersNotRescaled(falling))[0]).max() > VISIBLE


class WithoutDecay(Server):
    def send(self, worker):
        return self.w - RATE * self.velocities.sum(axis=0)


class DecayTwice(Server):
    def send(self, worker):
        return self.w - RATE * DECAY**2 * self.velocities.sum(axis=0)


class OwnBufferOnly(Server):
    def send(self, worker):
        return self.w - RATE * DECAY * self.velocities[worker]


class OthersBuffersOnly(Server):
    def send(self, worker):
        return self.w - RATE * DECAY * (self.velocities.sum(axis=0) - self.velocities[worker])


class SumBeforeUpdate(Server):
    total = np.zeros(15)

    def accelerate(self, worker, grad):
        self.total = self.velocities.sum(axis=0)
        return super().accelerate(worker, grad)

    def send(self, worker):
        return self.w - RATE * DECAY * self.total


class OneSharedBuffer(Server):
    def accelerate(self, worker, grad):
        return super().accelerate(0, grad)


class CompensatesTowardsParams(Server):
    def compensated(self, grad, looked_ahead, plain):
        return grad + self.lambda0 * grad**2 * (self.w - plain)


class CompensatesAfterMomentum(Server):
    def push(self, worker, grad, looked_ahead, plain):
        velocity = self.accelerate(worker, grad)
        self.w = self.w - RATE * self.compensated(velocity, looked_ahead, plain)


@pytest.mark.parametrize(
    ("mutant", "lambda0"),
    [
        (WithoutDecay, None),
        (DecayTwice, None),
        (OwnBufferOnly, None),
        (OthersBuffersOnly, None),
        (SumBeforeUpdate, None),
        (OneSharedBuffer, None),
        (CompensatesTowardsParams, 2.0),
        (CompensatesAfterMomentum, 2.0),
    ],
)
def test_wrong_implementations_differ(mutant, lambda0, x64):
    tx, send = rivals.dana(RATE, DECAY, num_workers=4, lambda0=lambda0)
    trace, _, _ = sent.run(sent.schedule_of(ORDER), tx, send)
    wrong, _ = train_numpy(mutant(lambda0=lambda0 or 0.0))
    assert np.abs(trace - wrong).max() > VISIBLE


def test_a_swept_learning_rate_is_looked_ahead_with(x64):
    tx = optax.inject_hyperparams(lambda learning_rate: multi(learning_rate))(learning_rate=0.0)
    params = jax.tree.map(jnp.asarray, sent.PROBLEM.params)
    result = calls.sweep(
        loops.softmax_loss, params, tx, sent.schedule_of(ORDER), sent.batches(),
        hyperparams={"learning_rate": [0.01, RATE]}, send=rivals.sends.dana_look_ahead(DECAY),
    )  # fmt: skip
    final = servers.theta(jax.tree.map(lambda leaf: leaf[1], result.params))
    np.testing.assert_allclose(final, ZERO["theta_final"], rtol=0, atol=ATOL)


def test_the_sum_stays_the_sum_for_long():
    """Kept incrementally, its rounding errors add up: 2e4 updates in float32."""
    tx = rivals.per_worker_momentum(DECAY, 8)

    def step(state, inputs):
        grads, worker = inputs
        return tx.update(grads, state, worker=worker)[::-1]

    keys = jax.random.split(jax.random.key(0))
    grads = jax.random.normal(keys[0], (20_000, 5))
    workers = jax.random.randint(keys[1], (20_000,), 0, 8)
    state, _ = jax.jit(lambda *a: jax.lax.scan(step, *a))(tx.init(jnp.zeros(5)), (grads, workers))
    # |v| is about 2.3, each update rounds twice, and errors walk randomly: 2.3 * 6e-8 * 200 = 3e-5.
    np.testing.assert_allclose(state.total, state.velocities.sum(axis=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_narrow_params_have_wide_velocities(dtype):
    tx, send = rivals.dana(RATE, DECAY, num_workers=4, lambda0=2.0)
    schedule = sent.schedule_of(ORDER)
    trace, _, result = sent.run(schedule, tx, send, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(dtype)}
    velocities = result.opt_state[1][1].velocities
    assert {leaf.dtype for leaf in jax.tree.leaves(velocities)} == {jnp.dtype(jnp.float32)}
    # Relative to 1: float32 has 6e-8, bfloat16 4e-3, 24 events amplify by less than 20.
    atol = 1e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(
        trace.astype(np.float64), train_numpy(Server(lambda0=2.0))[0], rtol=0, atol=atol
    )


def test_all_workers_share_one_trace():
    traces = []
    tx = rivals.per_worker_momentum(DECAY, 4)

    @jax.jit
    def update(grads, state, worker):
        traces.append(None)
        return tx.update(grads, state, worker=worker)

    state = tx.init(jnp.zeros(3))
    for worker in ORDER:
        _, state = update(jnp.ones(3), state, np.int32(worker))
    assert len(traces) == 1


def test_none_leaves_stay_none():
    tx = rivals.per_worker_momentum(DECAY, 2, nesterov=True)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    updates, state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), worker=1)
    assert updates["b"] is None
    np.testing.assert_array_equal(state.velocities["b"], np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rivals.per_worker_momentum(1.0, 4), ValueError, "decay must lie in"),
        (
            lambda: rivals.per_worker_momentum(0.9, 0),
            ValueError,
            "num_workers must be an integer >= 1",
        ),
        (lambda: rivals.sends.dana_look_ahead(-0.1, 0.1), ValueError, "decay must lie in"),
        (lambda: rivals.sends.dana_look_ahead(0.9, -1.0), ValueError, "learning_rate must be"),
        (
            lambda: rivals.dana(0.1, 0.9, 4, max_pull=1.0),
            ValueError,
            "max_pull caps a compensation",
        ),
        (lambda: rivals.dana(0.1, 0.9, 4, lambda0=-1.0), ValueError, "lambda0 must be"),
        (lambda: update_once(), TypeError, r"update\(\) needs worker="),
        (lambda: update_once(worker=4), ValueError, "worker 4 is out of range"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def update_once(**told):
    tx = rivals.per_worker_momentum(0.9, 4)
    return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), **told)


LOOK_AHEAD = rivals.sends.dana_look_ahead(DECAY, RATE)


@pytest.mark.parametrize(
    ("tx", "send", "message"),
    [
        (optax.sgd(RATE, momentum=DECAY), LOOK_AHEAD, "needs one PerWorkerMomentumState .* are 0"),
        (multi(nesterov=True), LOOK_AHEAD, "DANA-Slim"),
        (optax.chain(multi(), multi()), LOOK_AHEAD, "there are 2"),
        (multi(num_workers=3), LOOK_AHEAD, "made for num_workers=3, but there are 4"),
        (multi(), rivals.sends.dana_look_ahead(DECAY), "needs learning_rate="),
        (multi(), rivals.sends.dana_look_ahead(DECAY, falling), "nothing in the server's"),
    ],
    ids=["none", "slim", "two", "workers", "no rate", "no counter"],
)
def test_optimizers_that_do_not_fit_are_refused(tx, send, message):
    with pytest.raises(ValueError, match=message):
        sent.run(sent.schedule_of(ORDER), tx, send, dtype=np.float32)
