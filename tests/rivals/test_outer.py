"""Momentum look-ahead and HeLoCo: servers in NumPy, with local steps, and their wrong forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from sim import local_loop

from dcasgd_jax import rivals, sim

STEPS, RATE, MOMENTUM = 3, 0.4, 0.8


def heloco_correction(push, m, *, turned=True, own_length=True, sign=1.0, caution=3.0):
    """Of one leaf; the options are wrong forms."""
    length, pace = np.linalg.norm(push), np.linalg.norm(m)
    if not length or not pace:
        return push
    cosine = np.sum(push * m) / length / pace
    confidence = length / (length + caution * pace)
    if cosine >= 0.2:
        return push
    if cosine < 0:
        share = min(-0.5 * cosine * confidence, 0.5)
        return push - sign * share * cosine * length * m / pace
    if not turned:
        return push
    share = min((1 - cosine) * confidence, 1.0)
    between = (1 - share) * push / length + share * m / pace
    return between * (length / np.linalg.norm(between) if own_length else length)


def server(schedule, correct, *, ahead=True, old=False, summing=False, momentum=MOMENTUM):
    """The params after every push, and the pushes themselves; local steps of plain SGD."""
    params = jax.tree.map(np.asarray, problems.softmax_params(np.float64))
    images, labels = batches_for(schedule)
    m = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    sent, trace = [], [params]
    for k in range(len(schedule)):
        look = momentum if ahead else 0.0
        sent.append({n: trace[-1][n] - RATE * look * m[n] for n in params})
        here = start = sent[schedule.read_version[k]]
        for i in range(STEPS):
            grads, _ = local_loop.gradient(here, images[k, i], labels[k, i])
            here = {n: here[n] - 0.3 * grads[n] for n in here}
        push = {n: correct(start[n] - here[n], m[n]) for n in here}
        before = m
        weight = 1.0 if summing else 1 - momentum
        m = {n: momentum * m[n] + weight * push[n] for n in m}
        steer = before if old else m
        trace.append({n: w - RATE * (push[n] + momentum * steer[n]) for n, w in trace[-1].items()})
    return trace


def batches_for(schedule):
    flat = problems.softmax_batches(len(schedule) * STEPS, np.float64)
    return [leaf.reshape(len(schedule), STEPS, *leaf.shape[1:]) for leaf in flat]


def ours(schedule, tx, send):
    problem = sim.Problem(problems.softmax_loss, problems.softmax_params(np.float64))
    worker = sim.LocalSteps(optax.sgd(0.3), STEPS)
    given = problem, sim.Server(tx, send=send), schedule, tuple(batches_for(schedule))
    return sim.simulate(*given, worker=worker).params


def unchanged(push, m):
    del m
    return push


SCHEDULE = dict(num_workers=4, num_updates=30, seed=0)
METHODS = {
    "look-ahead": (rivals.momentum_look_ahead(RATE, MOMENTUM), unchanged),
    "heloco": (rivals.heloco(RATE, MOMENTUM), heloco_correction),
}
SEND = rivals.sends.multi_step_nesterov(1, MOMENTUM, RATE)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_server_in_numpy_finds_the_same(name, ahead, x64):
    tx, correct = METHODS[name]
    schedule = sim.make_schedule(sim.ExponentialTime(), **SCHEDULE)
    params = ours(schedule, tx, SEND if ahead else None)
    wanted = server(schedule, correct, ahead=ahead)[-1]
    chex.assert_trees_all_close(params, wanted, rtol=0, atol=1e-10)


WRONG = {
    "no look-ahead": (unchanged, dict(ahead=False)),
    "the momentum before the push": (unchanged, dict(old=True)),
    "a momentum that adds up": (unchanged, dict(summing=True)),
    "nothing is corrected": (unchanged, {}),
    "nothing is turned": (lambda *a: heloco_correction(*a, turned=False), {}),
    "turned without its length": (lambda *a: heloco_correction(*a, own_length=False), {}),
    "opposition is made larger": (lambda *a: heloco_correction(*a, sign=-1.0), {}),
    "no caution": (lambda *a: heloco_correction(*a, caution=0.0), {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_forms_are_seen(name, x64):
    schedule = sim.make_schedule(sim.ExponentialTime(), **SCHEDULE)
    correct, options = WRONG[name]
    right = server(schedule, unchanged if options else heloco_correction)[-1]
    wrong = server(schedule, correct, **options)[-1]
    assert max(np.abs(right[n] - wrong[n]).max() for n in right) > 1e-3


def test_without_momentum_both_are_plain_steps(x64):
    schedule = sim.make_schedule(sim.ExponentialTime(), **SCHEDULE)
    wanted = ours(schedule, optax.sgd(RATE), None)
    found = ours(schedule, rivals.momentum_look_ahead(RATE, 0.0), None)
    chex.assert_trees_all_equal(found, wanted)
    uncorrected = ours(schedule, rivals.heloco(RATE, 0.0, aligned=-1), None)
    chex.assert_trees_all_equal(uncorrected, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_change_nothing_and_nothing_becomes_nan(dtype):
    tx = rivals.heloco(0.1)
    params = {"w": jnp.ones(3, dtype), "frozen": jnp.ones(2, dtype), "empty": jnp.ones((0,), dtype)}
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = {**jax.tree.map(jnp.ones_like, params), "frozen": None}
    for updates in (zeros, ones, zeros, jax.tree.map(jnp.negative, ones)):
        steps, state = tx.update(updates, state, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((steps, state)))
        assert steps["w"].dtype == dtype
    assert steps["frozen"] is None


@pytest.mark.parametrize("name", METHODS)
def test_the_momentum_of_a_leaf_without_a_push_waits(name):
    tx = METHODS[name][0]
    ones = {"w": jnp.ones(3), "frozen": jnp.linspace(0.1, 1.0, 50)}
    _, before = tx.update(ones, tx.init(ones))
    state = before
    for _ in range(3):
        _, state = tx.update({"w": ones["w"], "frozen": None}, state)
    chex.assert_trees_all_equal(state[0].ema["frozen"], before[0].ema["frozen"])


def test_a_push_whose_norm_overflows_is_left_as_it_is():
    tx = rivals.heloco(1.0, momentum=0.0)
    _, state = tx.update(jnp.full(4, 1e25), tx.init(jnp.zeros(4)))
    np.testing.assert_array_equal(tx.update(jnp.full(4, -1e25), state)[0], jnp.full(4, 1e25))


def test_a_complex_leaf_is_turned_as_its_two_real_parts(x64):
    tx, generator = rivals.heloco(1.0, momentum=0.5), np.random.default_rng(0)
    both = lambda z: np.stack([z.real, z.imag])
    state, parts = tx.init(jnp.zeros(5, complex)), tx.init(jnp.zeros((2, 5)))
    for _ in range(8):
        push = generator.normal(size=5) + 1j * generator.normal(size=5)
        found, state = tx.update(jnp.asarray(push), state)
        wanted, parts = tx.update(jnp.asarray(both(push)), parts)
        np.testing.assert_allclose(both(found), wanted, rtol=1e-12)


BAD = {
    "momentum": (dict(momentum=1.0), r"momentum must lie in \[0, 1\)"),
    "shrink": (dict(shrink=-1.0), "shrink must be"),
    "turn": (dict(turn=-1.0), "turn must be"),
    "caution": (dict(caution=-1.0), "caution must be"),
    "eps": (dict(eps=0.0), "eps must be"),
    "aligned": (dict(aligned=1.5), r"aligned must lie in \[-1, 1\], got 1.5"),
    "max_shrink": (dict(max_shrink=-0.1), r"max_shrink must lie in \[0, 1\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_out_of_range(name):
    arguments, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        rivals.heloco(0.1, **arguments)
    if name == "momentum":
        with pytest.raises(ValueError, match=words):
            rivals.momentum_look_ahead(0.1, 1.0)
