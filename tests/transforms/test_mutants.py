"""Known wrong implementations: each differs from ours, so each would be noticed."""

import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest

import dcasgd_jax as dc
from transforms import mutants

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
CONSTANT = {"lr": 0.5, "lambda0": 2.0}
ADAPTIVE = {"lr": 0.5, "lambda0": 2.0, "ms_decay": 0.95}
HEAVY_BALL = {"lr": 0.2, "lambda0": 2.0, "momentum": 0.9}

# Our error against the right oracle is float64 rounding, amplified over 24 events.
ROUNDING = 1e-10
# What any mutant must move at least one coordinate by, at some event; coordinates are of order 1.
VISIBLE = 1e-3

MUTANTS = {
    "aliased backup, constant": (mutants.AliasedBackup, CONSTANT),
    "aliased backup, adaptive": (mutants.AliasedBackup, ADAPTIVE),
    "one previous weight, constant": (mutants.OnePreviousWeight, CONSTANT),
    "one previous weight, adaptive": (mutants.OnePreviousWeight, ADAPTIVE),
    "wrong sender, constant": (mutants.WrongSendersBackup, CONSTANT),
    "wrong sender, adaptive": (mutants.WrongSendersBackup, ADAPTIVE),
    "zero start, constant": (mutants.ZeroStartBackup, CONSTANT),
    "zero start, adaptive": (mutants.ZeroStartBackup, ADAPTIVE),
    "backup before own update, constant": (mutants.BackupBeforeOwnUpdate, CONSTANT),
    "backup before own update, adaptive": (mutants.BackupBeforeOwnUpdate, ADAPTIVE),
    # Weak λ0: the three explode at 2.
    "compounding lambda": (mutants.CompoundingLambda, {**ADAPTIVE, "lambda0": 1e-8}),
    "missing root": (mutants.MissingRoot, {**ADAPTIVE, "lambda0": 0.05}),
    "mean square used before update": (mutants.MeanSquareUsedBeforeUpdate, ADAPTIVE),
    # A large eps, as with tiny gradients: at 1e-7 the place of eps moves theta by only 1e-6.
    "eps outside the root": (mutants.EpsOutsideRoot, {**ADAPTIVE, "eps": 1e-2}),
    "squared weight decay": (mutants.SquaredWeightDecay, {**HEAVY_BALL, "weight_decay": 0.01}),
    "decay at stale weights": (mutants.DecayAtStaleWeights, {**HEAVY_BALL, "weight_decay": 0.01}),
    "compensation after momentum": (mutants.CompensateAfterMomentum, HEAVY_BALL),
    "rows of another worker count": (mutants.RowsOfAnotherWorkerCount, CONSTANT),
    "MXNet": (mutants.MXNetStyle, {**HEAVY_BALL, "weight_decay": 0.01}),
}


def train_oracle(server_class, settings):
    server = server_class(PROBLEM.params, 4, **settings)
    return oracle.flatten(oracle.run(server, IRREGULAR, PROBLEM.grad))


def train_ours(settings):
    settings = {"ms_decay": None, **settings}
    tx = compensations.dcasgd(settings.pop("lr"), num_workers=4, **settings)
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, IRREGULAR, grad_fn, loops.by_worker)
    return oracle.flatten(trace)


@pytest.mark.parametrize("name", MUTANTS)
def test_ours_is_the_right_one_and_not_the_mutant(name, x64):
    mutant, settings = MUTANTS[name]
    ours = train_ours(settings)
    np.testing.assert_allclose(ours, train_oracle(oracle.Server, settings), rtol=0, atol=ROUNDING)
    assert np.abs(ours - train_oracle(mutant, settings)).max() > VISIBLE


@pytest.mark.parametrize(
    ("file", "case", "mutant", "settings"),
    [
        ("dc_asgd_c", "irr4_lam0", mutants.AliasedBackup, CONSTANT),
        (
            "dc_asgd_c",
            "WRONG_irr4_lam2_one_global_previous_weight",
            mutants.OnePreviousWeight,
            CONSTANT,
        ),
        ("dc_asgd_c", "WRONG_irr4_lam2_zero_init", mutants.ZeroStartBackup, CONSTANT),
        (
            "dc_asgd_c",
            "WRONG_irr4_lam2_backup_taken_before_own_update",
            mutants.BackupBeforeOwnUpdate,
            CONSTANT,
        ),
        (
            "dc_asgd_a",
            "WRONG_irr4_shared_use_before_update",
            mutants.MeanSquareUsedBeforeUpdate,
            ADAPTIVE,
        ),
        ("dc_asgd_a", "WRONG_irr4_shared_eps_outside_sqrt", mutants.EpsOutsideRoot, ADAPTIVE),
        (
            "dc_momentum",
            "wd_inside_square",
            mutants.SquaredWeightDecay,
            {**HEAVY_BALL, "weight_decay": 0.01},
        ),
        (
            "dc_momentum",
            "wd_at_stale_w",
            mutants.DecayAtStaleWeights,
            {**HEAVY_BALL, "weight_decay": 0.01},
        ),
        (
            "dc_momentum",
            "mxnet_style_wd0.01",
            mutants.MXNetStyle,
            {**HEAVY_BALL, "weight_decay": 0.01},
        ),
        (
            "dc_momentum",
            "WRONG_compensate_after_momentum",
            mutants.CompensateAfterMomentum,
            HEAVY_BALL,
        ),
        (
            "dc_momentum",
            "clip_after_compensation",
            mutants.ClipAfterCompensation,
            {**HEAVY_BALL, "clip": 0.25},
        ),
    ],
)
def test_mutant_reproduces_the_reference_run_of_the_error(file, case, mutant, settings):
    """So the mutants are the published errors, not straw men."""
    expected = oracle.cases(file)[case]
    expected = np.asarray(expected.get("theta_trace") or [expected["theta_final"]])
    trace = train_oracle(mutant, settings)[-len(expected) :]
    np.testing.assert_allclose(trace, expected, rtol=0, atol=ROUNDING)


def test_missing_root_reproduces_its_diverging_reference_run():
    expected = np.asarray(oracle.cases("dc_asgd_a")["WRONG_irr4_shared_no_sqrt"]["theta_trace"])
    trace = train_oracle(mutants.MissingRoot, ADAPTIVE)
    assert np.abs(expected).max() > 1e4
    np.testing.assert_allclose(trace, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("WRONG_irr4_lam2_one_global_previous_weight", CONSTANT),
        ("WRONG_irr4_lam2_zero_init", CONSTANT),
        ("WRONG_irr4_lam2_backup_taken_before_own_update", CONSTANT),
        ("WRONG_irr4_shared_use_before_update", ADAPTIVE),
        ("WRONG_irr4_shared_no_sqrt", ADAPTIVE),
        ("WRONG_compensate_after_momentum", HEAVY_BALL),
        ("wd_inside_square", {**HEAVY_BALL, "weight_decay": 0.01}),
        ("mxnet_style_wd0.01", {**HEAVY_BALL, "weight_decay": 0.01}),
    ],
)
def test_ours_does_not_match_the_reference_run_of_the_error(case, settings, x64):
    files = ("dc_asgd_c", "dc_asgd_a", "dc_momentum")
    expected = next(oracle.cases(file)[case] for file in files if case in oracle.cases(file))
    expected = expected.get("theta_final") or expected["theta_trace"][-1]
    assert np.abs(train_ours(settings)[-1] - np.asarray(expected)).max() > VISIBLE


def test_eps_lies_inside_the_root_for_tiny_gradients(x64):
    """At |g| = 1e-4 the two places of eps differ by a factor 14."""
    mean_square = dc.update_mean_square(jnp.zeros(()), jnp.asarray(1e-4), 0.95)
    strength = dc.adaptive_strength(mean_square, 2.0, 1e-7)
    # Two correctly rounded operations away from the reference value.
    np.testing.assert_allclose(strength, 6308.802978765118, rtol=1e-14)


def drive(server_class, offers, rejects):
    """The oracle's side of a loop in which some gradients are taken elsewhere, others refused."""
    server = server_class(PROBLEM.params, 4, **CONSTANT)
    trace, held = [server.params], [server.params] * 4
    for event, worker in enumerate(IRREGULAR):
        if event in offers:
            held[worker] = trace[max(0, len(trace) - 4)]
            server.offer(worker, held[worker])
        if event in rejects:
            server.reject(worker)
        else:
            server.push(worker, PROBLEM.grad(held[worker], event))
            server.pull(worker)
        held[worker] = server.params
        trace.append(server.params)
    return oracle.flatten(trace)


def drive_ours(offers, rejects):
    inner = optax.apply_if_finite(
        optax.chain(compensations.explicit(CONSTANT["lambda0"]), optax.sgd(CONSTANT["lr"])), 99
    )
    tx = dc.remember_pulls(inner, 4)
    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    state, update, grad_fn = tx.init(params), jax.jit(tx.update), loops.softmax_grad_fn()
    trace, held = [params], [params] * 4
    for event, worker in enumerate(IRREGULAR):
        told = {"worker": jnp.int32(worker)}
        if event in offers:
            held[worker] = told["stale_params"] = trace[max(0, len(trace) - 4)]
        grads = grad_fn(held[worker], event)
        if event in rejects:
            grads = jax.tree.map(lambda g: g * jnp.nan, grads)
        updates, state = update(grads, state, params, **told)
        params = held[worker] = optax.apply_updates(params, updates)
        trace.append(params)
    return oracle.flatten(trace)


@pytest.mark.parametrize(
    ("mutant", "offers", "rejects"),
    [
        (mutants.IgnoredOffer, {5, 9, 10, 17}, set()),
        (mutants.PullSkippedWithARejectedPush, set(), {4, 8, 13}),
    ],
)
def test_offers_are_used_and_refused_pushes_are_pulls(mutant, offers, rejects, x64):
    ours = drive_ours(offers, rejects)
    right = drive(oracle.Server, offers, rejects)
    np.testing.assert_allclose(ours, right, rtol=0, atol=ROUNDING)
    assert np.abs(ours - drive(mutant, offers, rejects)).max() > VISIBLE
