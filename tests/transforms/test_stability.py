"""One-dimensional quadratics with a constant delay: the stability window, in theory and for real.

With curvature h, rate η and curvature guess q = λ g² the weights obey

    w_{t+1} = (1 - η q) w_t - η (h - q) w_{t-τ},

stable for *every* delay iff ηh < 2 and h/2 < q < h/2 + 1/η. A huge λ0 under the cap q <= κ/η makes
the real transformation use any given q = κ/η exactly.
"""

import functools

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest


def spectral_radius(eta_h, eta_q, delay):
    """Of the companion matrix of the recursion, η being absorbed in both curvatures."""
    companion = np.eye(delay + 1, k=-1)
    companion[0, 0] += 1 - eta_q
    companion[0, -1] -= eta_h - eta_q
    return np.abs(np.linalg.eigvals(companion)).max()


def stable_for_every_delay(eta_h, eta_q):
    return eta_h < 2 and eta_h / 2 < eta_q < eta_h / 2 + 1


@functools.partial(jax.jit, static_argnums=(2, 3))
def growth(eta_h, eta_q, delay, num_steps):
    """Per-step growth of the real transformation over half of a run, and its last size."""
    eta = 0.5
    tx = optax.chain(
        # λ0 g² stays above the cap down to |g| = 1e-120, so q is exactly max_pull / learning_rate.
        compensations.fixed_delay(1e250, delay, max_pull=eta_q, learning_rate=eta),
        optax.sgd(eta),
    )

    def step(carry, t):
        w, past, state = carry
        grad = eta_h / eta * past[t % (delay + 1)]  # taken at w_{max(t-τ, 0)}
        updates, state = tx.update(grad, state, w)
        w = w + updates
        past = past.at[t % (delay + 1)].set(w)
        return (w, past, state), w

    start = jnp.asarray(1e100)
    init = (start, jnp.full(delay + 1, start), tx.init(start))
    _, w = jax.lax.scan(step, init, jnp.arange(num_steps))
    half, size = num_steps // 2, jnp.abs(w)
    # The largest over a whole window each: single values of an oscillation may be near 0.
    window = num_steps // 8
    ratio = size[-window:].max() / size[half - window : half].max()
    return ratio ** (1.0 / (num_steps - half)), size[-window:].max()


DELAYS = (1, 2, 3, 5, 8)
# (η h, η q): inside, near each border from both sides, outside by each inequality. Not η h = 1: one
# step would reach 0 exactly, and a gradient of exactly 0 is not compensated.
POINTS = [
    (0.5, 0.5),
    (0.5, 0.30),
    (0.5, 0.20),
    (0.5, 0.0),
    (0.5, 1.20),
    (0.5, 1.35),
    (1.05, 0.60),
    (1.05, 0.40),
    (1.05, 1.45),
    (1.05, 1.65),
    (1.9, 1.00),
    (1.9, 1.90),
    (1.9, 2.05),
    (2.1, 1.10),
    (2.1, 2.00),
]


def test_points_lie_on_both_sides():
    inside = [stable_for_every_delay(*point) for point in POINTS]
    assert 5 <= sum(inside) <= len(POINTS) - 5


def test_window_is_exact_over_a_grid():
    """Stable for all of the delays 0 to 60 iff inside; 0.02 away from the border, both ways."""
    checked = 0
    for eta_h in np.arange(0.1, 2.6, 0.2):
        for eta_q in np.arange(0.0, 3.0, 0.25) + 0.02:
            margin = min(abs(eta_h - 2), abs(eta_q - eta_h / 2), abs(eta_q - eta_h / 2 - 1))
            if margin < 0.02:
                continue
            # Eigenvalues of a 61 x 61 companion matrix are good to far better than 1e-6.
            radius = max(spectral_radius(eta_h, eta_q, tau) for tau in (*range(12), 30, 60))
            assert (radius < 1 - 1e-6) == stable_for_every_delay(eta_h, eta_q), (eta_h, eta_q)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("delay", DELAYS)
def test_real_transformation_grows_as_the_spectral_radius_says(delay, x64):
    num_steps = 1200
    eta_h, eta_q = np.transpose(POINTS)
    rates, sizes = jax.vmap(lambda h, q: growth(h, q, delay, num_steps))(eta_h, eta_q)
    for point, rate, size in zip(POINTS, np.asarray(rates), np.asarray(sizes), strict=True):
        expected = spectral_radius(*point, delay)
        if expected > 0.65:
            # Beating of two equally large eigenvalues: at most a factor e^3 over 600 steps.
            np.testing.assert_allclose(rate, expected, rtol=5e-3)
        else:  # so stable that |g| reaches 1e-120, where the cap no longer binds
            assert size < 1e-100


LIMITS = oracle.cases("quadratic_exact")["limits"]


@pytest.mark.parametrize("delay", [1, 3, 7, 15])
def test_largest_stable_rate_is_that_of_the_reference(delay, x64):
    """The table of limits η h for given q/h: 2 % below it is stable, 2 % above it is not."""
    table = LIMITS[f"tau={delay}"]
    theory = 2 * np.sin(np.pi / (2 * (2 * delay + 1)))  # without compensation
    np.testing.assert_allclose(table["theory"], theory, rtol=1e-12)
    limits = {0.0: theory}
    for name, limit in table.items():
        if name.startswith("q="):
            limits[float(name[2:-1])] = limit
    assert len(limits) == 7
    ratios = np.asarray(list(limits))
    below, above = (
        factor * np.asarray(list(limits.values()), np.float64) for factor in (0.98, 1.02)
    )
    rate = jax.vmap(lambda h, q: growth(h, q, delay, 3000)[0])
    for eta_h, stable in ((below, True), (above, False)):
        radii = [spectral_radius(h, h * q, delay) for h, q in zip(eta_h, ratios, strict=True)]
        assert all((radius < 1) == stable for radius in radii)
        assert all((np.asarray(rate(eta_h, eta_h * ratios)) < 1) == stable)


def test_cap_of_one_keeps_the_paper_stable_where_it_diverges(x64):
    """A strong λ0 overshoots where asynchronous SGD is stable; with max_pull=1 it does not."""

    def train(**cap):
        tx = optax.chain(compensations.fixed_delay(1e4, 3, **cap), optax.sgd(0.3))
        update = jax.jit(tx.update)
        versions = [jnp.asarray(1.0)]
        state = tx.init(versions[0])
        for t in range(100):
            updates, state = update(versions[max(t - 3, 0)], state, versions[-1])  # h = 1
            versions.append(versions[-1] + updates)
            if abs(float(versions[-1])) > 1e6:
                break
        return abs(float(versions[-1]))

    assert train() > 1e6
    assert train(max_pull=1.0, learning_rate=0.3) < 1e-3
