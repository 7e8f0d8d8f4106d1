"""Linen: the train state, and modules in the simulator."""

import functools
from typing import Any

import cases
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core
from flax import linen as nn
from flax.training import train_state

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.integrations import linen as dc_linen
from integrations import models

TX = optax.chain(compensations.explicit(1.0, ms_decay=0.9), optax.sgd(0.1, momentum=0.5))
KEY = jax.random.key(3)


def make_state(tx, cls=dc_linen.TrainState, **fields):
    module = models.LinenNet(0.5)
    variables = models.linen_variables(module)
    return cls.create(apply_fn=module.apply, tx=tx, **variables, **fields)


def gradient(state, batch, key):
    """As the examples of flax have it."""
    images, labels = batch

    def loss_fn(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return models.cross_entropy(logits, labels), updates

    return jax.value_and_grad(loss_fn, has_aux=True)(state.params)


@pytest.mark.parametrize("name", ["explicit_adaptive_per_worker", "dcasgd_everything"])
def test_extra_arguments_arrive(name):
    case = cases.BY_NAME[name]
    tx = optax.chain(case.make(), optax.adam(0.1))
    state = make_state(tx)
    expected, opt_state = state.params, tx.init(state.params)
    num_traces = 0

    @jax.jit
    def train_step(state, batch, key, extra_args, expected, opt_state):
        nonlocal num_traces
        num_traces += 1
        (_, updates), grads = gradient(state, batch, key)
        state = state.apply_gradients(grads=grads, **updates, **extra_args)
        updates, opt_state = tx.update(grads, opt_state, expected, **extra_args)
        return state, optax.apply_updates(expected, updates), opt_state

    for step in range(3):
        extra_args = case.update_kwargs(step, state.params)
        mean_before = state.batch_stats["BatchNorm_0"]["mean"]
        batch = models.examples(step, 8)
        state, expected, opt_state = train_step(
            state, batch, jax.random.key(step), extra_args, expected, opt_state
        )
        cases.assert_same(state.params, expected, rtol=1e-4, atol=1e-6)
        assert (state.batch_stats["BatchNorm_0"]["mean"] != mean_before).all()
    assert int(state.step) == 3
    assert num_traces == 1
    assert state.tx is tx


def test_flax_has_no_such_thing():
    """The reason for our own: when flax forwards extra arguments, this class can go."""
    variables = models.linen_variables(models.LinenNet(norm=False))
    state = train_state.TrainState.create(
        apply_fn=None, params=variables["params"], tx=compensations.dcasgd(0.1, num_workers=2)
    )
    with pytest.raises(TypeError):
        state.apply_gradients(grads=state.params, worker=0)


def test_fields_of_a_subclass_are_fields():
    class WithKey(dc_linen.TrainState):
        key: Any = None

    state = make_state(optax.sgd(0.1), WithKey, key=1)
    # A transformation without extra arguments ignores them.
    grads = jax.tree.map(jnp.ones_like, state.params)
    state = state.apply_gradients(grads=grads, key=2, batch_stats={}, worker=1)
    assert (state.key, state.batch_stats, state.step) == (2, {}, 1)
    state = state.apply_gradients(grads=grads, tx=TX)
    assert state.tx is TX


@pytest.mark.parametrize("cls", [train_state.TrainState, dc_linen.TrainState])
@pytest.mark.parametrize("keyword", ["batch_stat", "cache", "wroker", "updates"])
def test_a_misspelt_keyword_is_an_error_as_in_flax(cls, keyword):
    variables = models.linen_variables(models.LinenNet(norm=False))
    state = cls.create(apply_fn=None, params=variables["params"], tx=optax.sgd(0.1))
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
        state.apply_gradients(grads=state.params, **{keyword: {}})


def test_the_size_of_a_batch_reaches_a_curvature_in_a_chain():
    curvature = dc.curvatures.rows(None)
    tx = optax.chain(dc.compensate_delay(1.0, curvature=curvature), optax.sgd(1.0))
    params = {"w": jnp.ones((2, 3))}
    state = dc_linen.TrainState.create(apply_fn=None, params=params, tx=tx)
    stale = {"w": jnp.zeros((2, 3))}
    after = state.apply_gradients(grads=params, stale_params=stale, batch_size=4)
    expected, _ = tx.update(params, tx.init(params), params, stale_params=stale, batch_size=4)
    np.testing.assert_array_equal(after.params["w"], params["w"] + expected["w"])


def test_extra_arguments_of_any_name():
    def update_fn(updates, state, params=None, *, factor=1.0, **extra_args):
        return jax.tree.map(lambda u: -factor * u, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)
    grads = {"w": jnp.ones(2)}
    create = lambda tx: dc_linen.TrainState.create(apply_fn=None, params={"w": jnp.zeros(2)}, tx=tx)
    # A transformation alone says what it takes; in a chain it can no longer be seen.
    assert create(tx).apply_gradients(grads=grads, factor=3.0).params["w"].tolist() == [-3, -3]
    chained = create(optax.chain(tx, optax.scale(2.0)))
    with pytest.raises(TypeError, match=r"goes into extra_args=\{'factor': \.\.\.\}"):
        chained.apply_gradients(grads=grads, factor=3.0)
    moved = chained.apply_gradients(grads=grads, extra_args={"factor": 3.0})
    assert moved.params["w"].tolist() == [-6, -6]


def test_a_forgotten_worker_is_an_error():
    state = make_state(compensations.dcasgd(0.1, num_workers=2))
    with pytest.raises(TypeError, match="needs worker="):
        state.apply_gradients(grads=state.params)


def test_one_changed_line_makes_a_plain_loop_round_robin():
    """Number for number, dropout included: the simulator's random numbers are a key's per event."""
    num_events, delay = 10, models.NUM_WORKERS - 1
    batches = models.examples(0, num_events, 8)
    state = make_state(dc.delay_gradients(TX, delay))  # the one changed line
    module = models.LinenNet(0.5)
    problem = dc_linen.split_variables(module, models.linen_variables(module), models.linen_loss)

    @jax.jit
    def train_step(state, event):
        batch = jax.tree.map(lambda rows: rows[event], batches)
        key, _ = jax.random.split(jax.random.fold_in(KEY, event))
        (value, updates), grads = gradient(state, batch, jax.random.fold_in(key, 0))
        return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"]), value

    losses = []
    for event in range(num_events):
        state, value = train_step(state, event)
        losses.append(value)
    schedule = models.schedule(num_events - delay, sim.RoundRobin())
    pushed = jax.tree.map(lambda rows: rows[:-delay], batches)
    result = sim.simulate(problem, TX, schedule, pushed, key=KEY)
    np.testing.assert_allclose(result.losses, losses[:-delay], rtol=1e-5)
    cases.assert_same(result.params, state.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "engine"), [("per_worker", sim.ScanEngine()), ("server", sim.HostEngine())]
)
def test_train_and_evaluate(policy, engine):
    module = models.LinenNet(0.3)
    variables = core.freeze(models.linen_variables(module))
    problem = dc_linen.split_variables(module, variables, models.linen_loss, models.linen_evaluate)
    result = sim.simulate(
        problem._replace(model_state_policy=policy),
        TX,
        models.schedule(20),
        models.examples(0, 20, 16),
        key=KEY,
        engine=engine,
    )
    joined = dc_linen.join_variables(result)
    assert set(joined) == {"params", "batch_stats"}
    logits = module.apply(joined, models.TEST_IMAGES, train=False)
    expected = models.cross_entropy(logits, models.TEST_LABELS)
    np.testing.assert_allclose(result.evaluations.values["loss"][-1], expected, rtol=1e-5)
    # An equal module is the same program.
    again = dc_linen.split_variables(
        models.LinenNet(0.3), variables, models.linen_loss, models.linen_evaluate
    )
    assert again.loss_fn is problem.loss_fn
    assert again.eval_fn is problem.eval_fn


def test_a_module_without_state():
    module = models.LinenNet(norm=False)
    problem = dc_linen.split_variables(
        module, models.linen_variables(module), models.linen_loss, models.linen_evaluate
    )
    assert problem.model_state is None
    result = sim.simulate(problem, TX, models.schedule(4), models.examples(0, 4, 8))
    assert set(dc_linen.join_variables(result)) == {"params"}
    assert result.evaluations.values["loss"].shape == (1,)


def test_every_call_of_the_model_draws_afresh():
    module = models.LinenNet(0.5, norm=False)
    variables = models.linen_variables(module)
    twice = lambda model, x: jnp.abs(model(x, train=True) - model(x, train=True)).sum()
    problem = dc_linen.split_variables(module, variables, twice)
    assert problem.loss_fn(problem.params, jnp.ones((4, 6)), KEY) > 0


def test_statistics_of_all_calls_of_the_model_count():
    """Two calls in one loss: the second goes on from the statistics of the first."""
    module = nn.BatchNorm(use_running_average=False, momentum=0.5)
    variables = module.init(KEY, jnp.ones((2, 1)))
    twice = lambda model, x: (model(x) + model(x)).mean()
    problem = dc_linen.split_variables(module, variables, twice)
    _, state = problem.loss_fn(problem.params, problem.model_state, jnp.full((2, 1), 4.0))
    np.testing.assert_allclose(state["batch_stats"]["mean"], [3.0])  # 0 → 2 → 3


def test_bad_input():
    module = models.LinenNet(0.5)
    variables = models.linen_variables(module)
    split = functools.partial(dc_linen.split_variables, module, variables)
    batch = models.examples(0, 8)
    problem = split(models.linen_loss)
    with pytest.raises(ValueError, match="it needs a key: pass key="):
        problem.loss_fn(problem.params, problem.model_state, batch)
    with pytest.raises(ValueError, match=r"keep the problem.s model_state"):
        problem.loss_fn(problem.params, batch, KEY)
    no_loss = split(lambda model, batch: model(batch[0], train=False))
    with pytest.raises(TypeError, match=r"real scalar, got an array float32\[8, 3\]"):
        no_loss.loss_fn(problem.params, problem.model_state, batch)
    with pytest.raises(TypeError, match=r"callable as loss\(model, batch\)"):
        split(lambda model: model)
    with pytest.raises(ValueError, match='no collection "params" with arrays'):
        dc_linen.split_variables(module, variables["params"], models.linen_loss)
