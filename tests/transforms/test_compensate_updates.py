"""`compensate_updates`: the pull stands outside the momentum, which sees raw gradients."""

import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same

import dcasgd_jax as dc

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
SETTINGS = {"lr": 0.2, "lambda0": 20.0, "momentum": 0.9, "max_pull": 1.0}


class RepeatedPull(oracle.Server):
    """The pull goes through the velocity, as a compensated gradient does."""

    def direction(self, worker, name, grad):
        return self.accelerate(name, self.decay(name, self.compensate(worker, name, grad)))


class PullAtTheRateOfOneStep(oracle.Server):
    """Takes the learning rate for what a gradient comes to in the long run."""

    def direction(self, worker, name, grad):
        velocity = self.accelerate(name, self.decay(name, grad))
        return velocity + self.compensate(worker, name, grad) - grad


class CurvatureOfTheVelocity(oracle.Server):
    """Squares the velocity in the place of the gradient."""

    def direction(self, worker, name, grad):
        velocity = self.accelerate(name, self.decay(name, grad))
        compensation = self.compensate(worker, name, velocity) - velocity
        return velocity + compensation / (1 - self.momentum)


def train_oracle(server_class, settings):
    server = server_class(PROBLEM.params, 4, **settings)
    return oracle.flatten(oracle.run(server, IRREGULAR, PROBLEM.grad))


def train(tx):
    trace, _ = loops.run_workers(
        tx, PROBLEM.params, IRREGULAR, loops.softmax_grad_fn(), loops.by_worker
    )
    return oracle.flatten(trace)


def ours(lr, **settings):
    return compensations.dcasgd(lr, num_workers=4, **{"ms_decay": None, **settings})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"nesterov": True},
        {"weight_decay": 0.1},
        {"max_pull": 0.3},
        {"ms_decay": 0.95, "lambda0": 4.0},
        {"max_pull": 0.0},
    ],
    ids=lambda more: "-".join(more) or "plain",
)
def test_follows_the_reference(x64, more):
    settings = {**SETTINGS, **more}
    reference = train_oracle(oracle.Server, settings)
    np.testing.assert_allclose(train(ours(**settings)), reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mutant", [RepeatedPull, PullAtTheRateOfOneStep, CurvatureOfTheVelocity])
def test_a_known_wrong_one_would_be_noticed(mutant):
    right = train_oracle(oracle.Server, SETTINGS)
    assert np.abs(train_oracle(mutant, SETTINGS) - right).max() > 1e-3


def test_around_plain_sgd_it_is_compensate_delay_before_it(x64):
    curvature, schedule = dc.curvatures.adaptive(), optax.linear_schedule(0.3, 0.1, 20)
    options = {"curvature": curvature, "max_pull": 0.5, "learning_rate": schedule}
    outside = dc.compensate_updates(optax.sgd(schedule), 3.0, **options)
    before = optax.chain(dc.compensate_delay(3.0, **options), optax.sgd(schedule))
    np.testing.assert_allclose(
        train(dc.remember_pulls(outside, 4)), train(dc.remember_pulls(before, 4)), atol=1e-12
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("nothing", [{"lambda0": 0.0}, {"max_pull": 0.0}])
def test_without_a_pull_it_is_the_optimizer_bit_for_bit(nothing, dtype):
    inner = optax.adam(0.1)
    options = {"lambda0": 1e4, "learning_rate": 0.1, **nothing}
    tx = dc.remember_pulls(dc.compensate_updates(inner, **options), 4)
    grad_fn = lambda params, event: jax.tree.map(lambda p: jnp.sin(p + event), params)
    run = lambda tx: loops.run_workers(
        tx,
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params),
        IRREGULAR,
        grad_fn,
        loops.by_worker,
    )[0]
    assert_same(run(tx), run(optax.with_extra_args_support(inner)))


def test_pulls_back_in_full_where_the_curvature_is_large(x64):
    """Whatever the velocity: the weight ends where the worker had it, plus the plain step."""
    tx = dc.compensate_updates(
        optax.sgd(0.1, momentum=0.9),
        1e9,
        learning_rate=1.0,
        curvature=dc.curvatures.absolute(),
    )
    params, stale_params = jnp.asarray([3.0, -1.0]), jnp.asarray([2.5, 7.0])
    state = tx.init(params)
    velocity = np.zeros(2)
    for grads in (jnp.asarray([0.5, -0.25]), jnp.asarray([1.0, 2.0])):
        velocity = 0.9 * velocity + grads
        updates, state = tx.update(grads, state, params, stale_params=stale_params)
        np.testing.assert_allclose(params + updates, stale_params - 0.1 * velocity, rtol=1e-12)


def test_leaves_without_a_gradient_stay_without_an_update():
    tx = dc.compensate_updates(optax.sgd(0.1, momentum=0.5), learning_rate=0.2)
    params = {"a": jnp.ones(2), "b": None}
    state = tx.init(params)
    updates, _ = tx.update(
        {"a": jnp.ones(2), "b": None}, state, params, stale_params={"a": jnp.zeros(2), "b": None}
    )
    assert updates["b"] is None
    assert np.all(np.isfinite(updates["a"]))


def test_is_measured_as_if_it_were_added_to_the_gradient():
    curvature = dc.curvatures.squared_gradient()
    options = {"curvature": curvature, "max_pull": 0.5, "learning_rate": 0.4}
    params, stale_params = jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, 3.0])
    told = {"stale_params": stale_params, "measure_compensation": True}
    grads = jnp.asarray([0.3, 0.4])
    metrics = []
    for tx in (
        dc.compensate_delay(2.0, **options),
        dc.compensate_updates(optax.sgd(0.1, momentum=0.75), 2.0, **options),
    ):
        _, state = tx.update(grads, tx.init(params), params, **told)
        metrics.append(dc.compensation_metrics(state))
    assert metrics[0].ratio > 0
    assert_same(metrics[0], metrics[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dc.compensate_updates(0.1, learning_rate=0.1), "inner must be an optimizer"),
        (
            lambda: dc.compensate_updates(optax.sgd(0.1), learning_rate=None),
            "needs learning_rate=",
        ),
        (
            lambda: dc.compensate_updates(optax.sgd(0.1), learning_rate=-0.1),
            "learning_rate must be",
        ),
        (
            lambda: dc.compensate_updates(optax.sgd(0.1), -1.0, learning_rate=0.1),
            "lambda0 must be",
        ),
        (
            lambda: dc.compensate_updates(
                optax.sgd(0.1), learning_rate=0.1, curvature=dc.curvatures.hessian()
            ),
            "has none: pass max_pull=None",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_needs_to_know_what_the_gradient_was_taken_at():
    tx = dc.compensate_updates(optax.sgd(0.1), learning_rate=0.1)
    with pytest.raises(TypeError, match="stale_params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match="compensate_updates needs the current parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), stale_params=jnp.ones(2))
