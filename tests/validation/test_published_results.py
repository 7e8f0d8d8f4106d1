"""Results of training that others have published, against the page `validation`."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import rivals, sim

PAGE = (pathlib.Path(__file__).parents[2] / "notebooks/validation.md").read_text(encoding="utf-8")

# Mishchenko et al. (2022), konstmish/asynchronous_sgd, code.ipynb: F - F* after 32,000 gradients.
WORKERS, GRADIENTS, BATCH = 40, 32_000, 256
MISHCHENKO = {
    "asynchronous": (optax.sgd(0.43), sim.Asynchronous(), 2e-4, 1.89e-4),
    "delay-adaptive": (
        optax.chain(rivals.scale_by_staleness(rivals.delay_adaptive(WORKERS)), optax.sgd(0.43)),
        sim.Asynchronous(),
        3e-4,
        3.86e-4,
    ),
    # The notebook's server adds the gradients up.
    "synchronous": (optax.sgd(0.19 * WORKERS), sim.Synchronous(), 3.3e-3, 3.33e-3),
}


@pytest.fixture(scope="module")
def least_squares():
    """The notebook's data: its seeds are drawn first."""
    rng = np.random.default_rng(42)
    for _ in range(5):
        rng.choice(424242, size=1, replace=False)
    matrix = rng.uniform(size=(10_000, 400)) / np.sqrt(400)
    target = matrix @ rng.normal(size=400)
    target += 1e-5 * rng.normal(size=10_000)
    value = lambda w: 0.5 * np.mean((matrix @ np.asarray(w) - target) ** 2)
    lowest = value(np.linalg.solve(matrix.T @ matrix, matrix.T @ target))
    return (matrix, target), lambda w: value(w) - lowest


@pytest.mark.parametrize("name", MISHCHENKO)
def test_asynchronous_sgd_beats_minibatch_sgd(name, least_squares, x64):
    tx, protocol, published, ours = MISHCHENKO[name]
    examples, above = least_squares
    num_updates = GRADIENTS // (WORKERS if isinstance(protocol, sim.Synchronous) else 1)
    schedule = sim.make_schedule(
        sim.ExponentialTime(), WORKERS, num_updates, seed=0, protocol=protocol
    )
    rows = np.random.default_rng(0).integers(0, 10_000, (GRADIENTS, BATCH), dtype=np.int32)
    problem = sim.Problem(
        lambda w, batch: 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2), jnp.zeros(400)
    )
    result = sim.simulate(problem, tx, schedule, sim.Indexed(examples, rows))
    found = above(result.params)
    assert found == pytest.approx(ours, rel=0.01)  # what the page says
    assert published / 1.5 < found < 1.5 * published  # a figure's one or two digits
    mantissa, exponent = f"{ours:.2e}".split("e")
    assert f"{mantissa}·10⁻{'⁰¹²³⁴⁵'[-int(exponent)]}" in PAGE


def test_asynchrony_begets_momentum(x64):
    """Mitliagkas et al. (2016), theorem 3: the mean over races, on a quadratic."""
    workers, steps, rate, races = 4, 40, 0.2, 400
    schedules = [
        sim.make_schedule(sim.ExponentialTime(), workers, steps, seed=seed) for seed in range(races)
    ]
    problem = sim.Problem(
        lambda w, nothing: 0.5 * w**2 + jnp.sum(nothing), jnp.ones(()), eval_fn=lambda w: w
    )
    swept = sim.sweep(
        problem, optax.sgd(rate), sim.PerMember(schedules), jnp.zeros((steps, 1)),
        recording=sim.Recording(eval_versions=1), at_once=races,
    )  # fmt: skip
    errors = np.asarray(swept.evaluations.values)
    mean = [1.0, 1.0 - rate]
    for t in range(1, steps):
        momentum = (1 - 1 / workers) * (mean[t] - mean[t - 1])
        mean.append(mean[t] + momentum - rate / workers * mean[t])
    spread = errors.std(axis=0) / np.sqrt(races)
    assert np.all(np.abs(errors.mean(axis=0) - mean[1:]) < 4 * spread + 1e-12)
    # Without the momentum the mean would be elsewhere.
    plain = (1 - rate / workers) ** np.arange(1, steps + 1)
    assert np.abs(errors.mean(axis=0) - plain).max() > 20 * spread.max()


def test_how_late_gradients_are_depends_on_the_law():
    """Always-busy workers are M - 1 late on average; the law decides how that is spread."""
    staleness = {
        law: sim.make_schedule(law, 10, 20_000, seed=0).staleness
        for law in (sim.ExponentialTime(), sim.GammaTime(2.0), sim.GammaTime(100.0))
    }
    fresh = [float(np.mean(late == 0)) for late in staleness.values()]
    assert fresh[0] == pytest.approx(0.10, abs=0.005)
    assert fresh[1] == pytest.approx(0.028, abs=0.001)
    assert fresh[2] < 0.001
    assert [int(np.bincount(late).argmax()) for late in staleness.values()] == [0, 3, 9]
    assert all(late.mean() == pytest.approx(9, abs=0.02) for late in staleness.values())
