"""One compiled scan against plain loops that keep every past version in a list."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax")

from pipeline import (
    delays,
    methods,
    optimizers,
    settings,
    text,
    training,
)

import dcasgd_jax as dc
from dcasgd_jax.commands import study
from dcasgd_jax.transforms import delays as known_delays

SETTING = settings.Setting(width=4, blocks=1, heads=2, context=4, batch_size=2, updates=16)
PLAIN = training.Numbers(0.02, 0.0, math.inf, False)


def a_tree(seed):
    """Named like the transformer with one block, with a matrix for Muon."""
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    generator = np.random.default_rng(seed)
    return {
        "embedding": {"embedding": draw(2, 3)},
        "blocks": {0: {"up": {"kernel": draw(3, 2) * jnp.asarray([[1.0, 0.2]])}}},
        "head": {"kernel": draw(3, 2)},
    }


def some_gradients(count):
    return [a_tree(100 + index) for index in range(count)]


def trajectory(tx, grads):
    """Params before every update and at the end; the gradients do not depend on them."""
    params = a_tree(0)
    state = tx.init(params)
    update = jax.jit(tx.update)
    found = [params]
    for grad in grads:
        updates, state = update(grad, state, found[-1])
        found.append(optax.apply_updates(found[-1], updates))
    return found


def alone(optimizer, warm_up=4):
    return optimizers.OPTIMIZERS[optimizer].make(optimizers.make_schedule(0.02, warm_up))


def assert_equal(found, expected, **tolerance):
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, **tolerance), found, expected)


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_without_delay_it_is_exactly_the_optimizer(optimizer):
    grads = some_gradients(5)
    tx = training.make_transformation(optimizer, 0, PLAIN, 4)
    assert_equal(trajectory(tx, grads), trajectory(alone(optimizer), grads), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_a_uniform_delay_is_the_optimizer_on_gradients_of_the_past(optimizer):
    grads = some_gradients(6)
    tx = training.make_transformation(optimizer, 2, PLAIN, 4)
    late = trajectory(tx, grads)
    by_hand = trajectory(dc.delay_gradients(alone(optimizer), 2), grads)
    assert_equal(late, by_hand, rtol=0, atol=0)
    assert_equal(late[:3], [late[0]] * 3, rtol=0, atol=0)
    on_time = trajectory(alone(optimizer), grads)
    assert_equal(late[2:], on_time[:-2], rtol=0, atol=0)
    assert np.abs(late[-1]["head"]["kernel"] - on_time[-1]["head"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_a_pull_is_back_to_where_the_gradient_was_taken(optimizer):
    """Its rule has oracles of its own; here, that it is told what is late, and of how many."""
    grads, numbers = some_gradients(6), training.Numbers(0.02, 5.0, 1.0, False)
    found = trajectory(training.make_pull(8, optimizer, 2, numbers, 4), grads)
    pull = dc.compensate_updates(
        alone(optimizer), 5.0, learning_rate=optimizers.make_schedule(0.02, 4),
        curvature=dc.curvatures.rotated(8, sides="both"),
        preconditioner=optimizers.OPTIMIZERS[optimizer].preconditioner,
    )  # fmt: skip
    params = [a_tree(0)] * 3
    state = pull.init(params[0])
    for late, grad in enumerate(grads[:-2]):
        updates, state = pull.update(grad, state, params[-1], stale_params=params[late])
        params.append(optax.apply_updates(params[-1], updates))
    assert_equal(found, params, rtol=1e-4, atol=1e-5)
    uncorrected = trajectory(dc.delay_gradients(alone(optimizer), 2), grads)
    assert np.abs(found[-1]["head"]["kernel"] - uncorrected[-1]["head"]["kernel"]).max() > 1e-3


def test_muon_is_for_the_matrices_of_the_blocks():
    grads = some_gradients(1)
    nadam = optax.nadam(optimizers.make_schedule(0.02, 4))
    muon, others = (trajectory(tx, grads)[-1] for tx in (alone("muon"), nadam))
    for part in ("embedding", "head"):
        assert_equal(muon[part], others[part], rtol=1e-6)
    moved = np.asarray(muon["blocks"][0]["up"]["kernel"] - a_tree(0)["blocks"][0]["up"]["kernel"])
    singular = np.linalg.svd(moved, compute_uv=False)
    assert singular[1] > 0.6 * singular[0], "orthogonalised"
    gradient = np.linalg.svd(np.asarray(grads[0]["blocks"][0]["up"]["kernel"]), compute_uv=False)
    assert gradient[1] < 0.6 * gradient[0]


def test_the_learning_rate_warms_up():
    schedule = optimizers.make_schedule(0.4, 4)
    np.testing.assert_allclose([schedule(n) for n in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.fixture(scope="module")
def workload():
    return training.Workload(SETTING, text.generate(num_characters=2000))


@pytest.fixture(scope="module")
def program_of(workload):
    return functools.cache(functools.partial(training.make_program, workload, "adam"))


class Compiled(NamedTuple):
    """What the loop by hand calls; all else in it is NumPy."""

    gradient: Callable
    validate: Callable
    tx: optax.GradientTransformation


@pytest.fixture(scope="module")
def compiled(workload):
    loss_fn = workload.problem(0).loss_fn
    tx = alone("adam", math.ceil(0.1 * SETTING.updates))
    gradient = jax.jit(jax.value_and_grad(loss_fn))
    return Compiled(gradient, jax.jit(loss_fn), tx._replace(update=jax.jit(tx.update)))


MEMBERS = {
    "uncorrected": study.Member(methods.Numbers(0.02, None, None), 0),
    "dcasgd-a": study.Member(methods.Numbers(0.05, 40.0, None), 1),
    "prediction": study.Member(methods.Numbers(0.01, None, None), 2),
}
"""One of every kind, on different seeds: lanes that mixed would show."""


def by_hand(workload, compiled, delay, method, member):
    """Lists of everything that was; each leaf takes its own entry of them."""
    start, starts = (
        jax.device_get(workload.problem(member.seed).params),
        workload.starts(member.seed),
    )
    horizons = known_delays.delay_of_each_leaf(delays.make_delay(delay, SETTING.blocks), start)
    slowest = max(jax.tree.leaves(horizons))
    state = compiled.tx.init(start)
    params, grads, losses = [start], [], []
    square = jax.tree.map(np.zeros_like, start)
    scale = np.float32(member.numbers.learning_rate / 0.02)  # Adam's steps are proportional to it
    validation = [compiled.validate(start, workload.windows)]
    for t in range(SETTING.updates):
        now, last = params[-1], params[max(t - 1, 0)]
        at = now
        if method == "prediction":
            at = jax.tree.map(lambda h, w, before: w + h * (w - before), horizons, now, last)
        tokens = workload.data.train
        windows = np.stack([tokens[s : s + SETTING.context + 1] for s in starts[t]])
        loss, grad = jax.device_get(compiled.gradient(at, windows))
        losses.append(loss)
        grads.append(grad)
        params.append(now)
        if t >= slowest:
            late = jax.tree.map(lambda h, *past, t=t: past[t - h], horizons, *grads)
            stale = jax.tree.map(lambda h, *past, t=t: past[t - h], horizons, *params)
            if member.numbers.lambda0 is not None:
                square = jax.tree.map(lambda s, g: 0.95 * s + 0.05 * g**2, square, late)
                late = jax.tree.map(
                    lambda g, s, w, old: (
                        g + member.numbers.lambda0 / np.sqrt(s + 1e-7) * g**2 * (w - old)
                    ),
                    *(late, square, now, stale),
                )
            updates, state = jax.device_get(compiled.tx.update(late, state, now))
            params[-1] = jax.tree.map(lambda w, u: w + scale * u, now, updates)
        validation.append(compiled.validate(params[-1], workload.windows))
    return np.array(losses), np.array(validation)  # an evaluation after every step


@pytest.mark.parametrize("delay", ["2", delays.STAGES])
def test_the_compiled_scan_is_the_loop_by_hand(workload, program_of, compiled, delay):
    for method, member in MEMBERS.items():
        (curves,) = training.train_lanes(workload, program_of(delay), method, [member])
        losses, validation = by_hand(workload, compiled, delay, method, member)
        np.testing.assert_allclose(curves.train_loss, losses, atol=2e-4)
        np.testing.assert_allclose(curves.validation_loss, validation, atol=2e-4)
        assert np.ptp(validation) > 0.01


def test_fewer_runs_than_lanes_are_the_same_runs(workload, program_of):
    numbers = methods.Numbers(0.05, 40.0, None)
    members = [study.Member(numbers._replace(lambda0=10.0 * n), n) for n in range(3)]
    together = training.train_lanes(workload, program_of("2"), "dcasgd-a", members)
    for member, expected in zip(members, together, strict=True):
        (found,) = training.train_lanes(workload, program_of("2"), "dcasgd-a", [member])
        assert_equal(found, expected, rtol=1e-6)


def test_members_come_in_order_a_few_at_a_time(workload):
    numbers = methods.Numbers(0.02, None, None)
    members = [study.Member(numbers, seed) for seed in range(training.LANES + 1)]
    heard = []
    found = list(training.train(workload, "adam", "2", "uncorrected", members, heard.append))
    assert heard == [training.LANES, 1]
    starts = [outcome["validation_loss"][0] for outcome in found]
    assert len(set(starts)) == len(members)
    assert len(found[0]["train_loss"]) == settings.EVALUATIONS


def test_windows_are_of_their_part_of_the_text(workload):
    data = workload.data
    validation = "".join(map(chr, data.validation))
    for window in workload.windows:
        assert "".join(map(chr, window)) in validation
    assert workload.windows.shape == (settings.VALIDATION_WINDOWS, SETTING.context + 1)
    starts = workload.starts(0)
    assert starts.shape == (SETTING.updates, SETTING.batch_size)
    assert starts.min() >= 0
    assert starts.max() + SETTING.context < len(data.train)
    assert not np.array_equal(starts, workload.starts(1))


def test_a_cap_that_is_not_there_is_infinite():
    numbers = methods.Numbers(0.02, None, None)
    assert training.numbers_of("uncorrected", numbers) == (0.02, 0.0, math.inf, False)
    capped = methods.Numbers(0.02, 5.0, 0.1)
    assert training.numbers_of("capped", capped) == (0.02, 5.0, 0.1, False)
    assert training.numbers_of("prediction", numbers).predicts
