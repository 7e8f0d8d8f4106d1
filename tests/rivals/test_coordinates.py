"""Accelerated coordinate descent with stale workers: in NumPy, wrong forms, a convex race."""

import itertools

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import rivals, sim

# Both sides are float64, 40 updates, |w| < 10.
ATOL = 1e-10
VISIBLE = 1e-3
RATE, EVENTS, N = 0.2, 40, 4
GENERATOR = np.random.default_rng(0)
TRANSFORM = GENERATOR.normal(size=(6, N))
TARGET = GENERATOR.normal(size=6)


def order(seed=0):
    return np.random.default_rng(seed).integers(0, N, EVENTS)


def gradient(w):
    return TRANSFORM.T @ (TRANSFORM @ w - TARGET) / 6


class Server:
    """The three sequences of the textbook; a wrong implementation overrides a piece."""

    def __init__(self):
        self.x, self.z, self.theta = np.zeros(N), np.zeros(N), 1 / N

    def y(self):
        return (1 - self.theta) * self.x + self.theta * self.z

    def push(self, grads, j):
        y, before = self.y(), self.z.copy()
        self.z[j] -= RATE / (N * self.theta) * grads[j]
        self.x = y + N * self.theta * (self.z - before)
        self.theta = (np.sqrt(self.theta**4 + 4 * self.theta**2) - self.theta**2) / 2

    def sent(self, tau):
        """Where y will be after τ updates without gradients, step by step."""
        ghost = Server()
        ghost.x, ghost.z, ghost.theta = self.x.copy(), self.z.copy(), self.theta
        for _ in range(tau):
            ghost.push(np.zeros(N), 0)
        return ghost.y()


class SendsY(Server):
    def sent(self, tau):
        return self.y()


class ThetaStays(Server):
    def push(self, grads, j):
        theta = self.theta
        super().push(grads, j)
        self.theta = theta


class WithoutN(Server):
    def push(self, grads, j):
        y = self.y()
        self.z[j] -= RATE / self.theta * grads[j]
        self.x = y
        self.x[j] -= RATE * grads[j]
        self.theta = (np.sqrt(self.theta**4 + 4 * self.theta**2) - self.theta**2) / 2


def by_hand(kind, tau, coordinates):
    server = kind()
    queue = [server.sent(tau)] * (tau + 1)
    for j in coordinates:
        server.push(gradient(queue.pop(0)), j)
        queue.append(server.sent(tau))
    return server.x


def simulated(tau, coordinates, delay=None):
    coordinates = jnp.asarray(coordinates)
    tx = optax.chain(
        optax.scale_by_learning_rate(RATE),
        rivals.accelerate_coordinates(choose=lambda count: coordinates[count]),
    )
    schedule = sim.make_schedule(sim.RoundRobin(), tau + 1, EVENTS, seed=0)
    loss = lambda w, _: jnp.sum((TRANSFORM @ jnp.concatenate([w["a"], w["b"]]) - TARGET) ** 2) / 12
    send = rivals.sends.coordinate_compensation(tau if delay is None else delay)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(3)}
    result = calls.simulate(loss, params, tx, schedule, jnp.zeros(EVENTS), send=send)
    return np.concatenate([result.params["a"], result.params["b"]])


@pytest.mark.parametrize("tau", [0, 3])
def test_is_the_rule_by_hand(tau, x64):
    expected = by_hand(Server, tau, order())
    np.testing.assert_allclose(simulated(tau, order()), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("wrong", [SendsY, ThetaStays, WithoutN])
def test_wrong_implementations_are_seen(wrong):
    difference = np.abs(by_hand(wrong, 3, order()) - by_hand(Server, 3, order())).max()
    assert difference > VISIBLE


def test_one_coordinate_is_accelerate(x64):
    """With θ's own coefficients a_k = θ_k (1 - θ_{k-1}) / θ_{k-1}."""
    thetas = [1.0]
    for _ in range(30):
        thetas.append(thetas[-1] * (np.sqrt(thetas[-1] ** 2 + 4) - thetas[-1]) / 2)
    factors = jnp.asarray([0.0] + [t * (1 - s) / s for s, t in itertools.pairwise(thetas)])
    schedule = sim.make_schedule(sim.RoundRobin(), 3, 30, seed=0)
    found = []
    for last, send in (
        (rivals.accelerate_coordinates(), rivals.sends.coordinate_compensation(2)),
        (
            rivals.accelerate(lambda k: factors[k]),
            rivals.sends.momentum_compensation(2, lambda k: factors[k]),
        ),
    ):
        tx = optax.chain(optax.scale_by_learning_rate(0.05), last)
        loss = lambda w, _: jnp.sum((w - 1.0) ** 2)
        run = calls.simulate(loss, jnp.zeros(1), tx, schedule, jnp.zeros(30), send=send)
        found.append(run.params)
    np.testing.assert_allclose(*found, rtol=0, atol=ATOL)


def test_random_coordinates_are_uniform_and_follow_the_seed():
    def touched(seed):
        tx = rivals.accelerate_coordinates(seed)
        state, found = tx.init(jnp.zeros(5)), []
        update = jax.jit(tx.update)
        for _ in range(400):
            # Without a lead, x moves only where the coordinate is.
            state = state._replace(lead=jnp.zeros(5))
            updates, state = update(jnp.ones(5), state)
            found.append(int(jnp.argmax(updates)))
            assert float(updates.sum()) == 1.0
        return np.array(found)

    counts = np.bincount(touched(0), minlength=5)
    assert (np.abs(counts - 80) < 40).all()  # 5 standard deviations
    np.testing.assert_array_equal(touched(0), touched(0))
    assert (touched(0) != touched(1)).mean() > 0.5


def test_compensation_lets_an_ill_conditioned_convex_problem_converge():
    """Eight workers in turn: sent y uncompensated, the same race ends further from the optimum."""
    scales = jnp.logspace(-2, 0, 16)
    loss = lambda w, _: 0.5 * jnp.sum(scales * (w - 1.0) ** 2)
    schedule = sim.make_schedule(sim.RoundRobin(), 8, 1500, seed=0)
    tx = optax.chain(optax.scale_by_learning_rate(0.5), rivals.accelerate_coordinates())
    ends = {}
    for delay in (0, 7):
        send = rivals.sends.coordinate_compensation(delay)
        run = calls.simulate(loss, jnp.zeros(16), tx, schedule, jnp.zeros(1500), send=send)
        ends[delay] = float(loss(run.params, None))
    assert ends[7] < 0.5 * ends[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rivals.accelerate_coordinates(-1), "seed must be an integer >= 0"),
        (lambda: rivals.accelerate_coordinates(choose=3), "choose must be a function"),
        (lambda: rivals.sends.coordinate_compensation(-1), "delay must be an integer >= 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_optimizer_is_refused():
    send = rivals.sends.coordinate_compensation(1)
    with pytest.raises(ValueError, match="needs one AccelerateCoordinatesState"):
        send(jnp.zeros(2), optax.sgd(0.1).init(jnp.zeros(2)))
