"""Every transformation through `nnx.Optimizer`, in plain training loops."""

import cases
import compensations
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.integrations import nnx as dc_nnx
from integrations import models

# Per-leaf delays are a prefix of what `nnx.Optimizer` initialises with: of an `nnx.State`.
DELAYS = {"delay": nnx.State({"first": 2, "norm": 1, "last": 0})}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
CASES = {
    name: cases.BY_NAME[name]
    for name in (
        *("explicit_adaptive_per_worker", "worker_adaptive", "fixed_delay_per_leaf"),
        *("delay_gradients", "delay_gradients_per_leaf", "dcasgd_everything"),
    )
}
IN_CHAINS = {
    "adam after clipping": optax.chain(
        optax.clip_by_global_norm(1.0),
        compensations.per_worker(
            optax.linear_schedule(0.0, 2.0, 3), cases.NUM_WORKERS, ms_decay=0.9
        ),
        optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    ),
    "weight decay of kernels": optax.chain(
        compensations.per_worker(2.0, cases.NUM_WORKERS),
        optax.masked(
            optax.add_decayed_weights(0.1), lambda p: jax.tree.map(lambda w: w.ndim > 1, p)
        ),
        optax.sgd(0.1, momentum=0.9),
    ),
}


def pure_params(model):
    return nnx.as_pure(nnx.state(model, nnx.Param))


def check_loop(tx, update_kwargs):
    """Three steps on a network with dropout: what `tx` says is what the module gets."""
    model = models.Net(0.5)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    expected, state = pure_params(model), tx.init(pure_params(model))
    num_traces = 0

    @nnx.jit
    def train_step(model, optimizer, batch, extra_args, expected, state):
        nonlocal num_traces
        num_traces += 1
        grads = nnx.grad(models.loss)(model, batch)
        optimizer.update(model, grads, **extra_args)
        updates, state = tx.update(nnx.as_pure(grads), state, expected, **extra_args)
        return optax.apply_updates(expected, updates), state

    for step in range(3):
        extra_args = update_kwargs(step, expected)
        mean_before = model.norm.mean[...]
        batch = models.examples(step, 8)
        expected, state = train_step(model, optimizer, batch, extra_args, expected, state)
        cases.assert_same(pure_params(model), expected, **TOLERANCE)
        assert (model.norm.mean[...] != mean_before).all()
    assert num_traces == 1
    assert int(optimizer.step[...]) == 3


@pytest.mark.parametrize("name", CASES)
def test_every_transformation(name):
    delays = DELAYS if name.endswith("per_leaf") else {}
    check_loop(CASES[name].make(**delays), CASES[name].update_kwargs)


@pytest.mark.parametrize("name", IN_CHAINS)
def test_in_chains(name):
    check_loop(IN_CHAINS[name], lambda step, tree: {"worker": cases.worker(step)})


def test_a_forgotten_worker_is_an_error():
    model = models.Net()
    optimizer = nnx.Optimizer(model, compensations.dcasgd(0.1, num_workers=2), wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    with pytest.raises(TypeError, match="needs worker="):
        optimizer.update(model, grads)


def test_tools_that_read_the_optimizer_state():
    model = models.Net(norm=False)
    tx = optax.chain(compensations.per_worker(2.0, 2), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for worker in (0, 1):
        optimizer.update(model, grads, worker=worker, measure_compensation=True)
    assert float(dc.compensation_metrics(nnx.as_pure(optimizer.opt_state)).ratio) > 0
    # A pull that follows no push: the documented way to write it into the optimizer.
    pulled = dc.record_pull(nnx.as_pure(optimizer.opt_state), 0, pure_params(model))
    nnx.update(optimizer.opt_state, nnx.state(pulled))
    backups = nnx.as_pure(optimizer.opt_state)[0].backups.rows
    cases.assert_same(jax.tree.map(lambda rows: rows[0], backups), pure_params(model))


def test_one_changed_line_makes_a_plain_loop_round_robin():
    """Number for number: `delay_gradients` in a loop, and the simulator's round robin."""
    num_events, delay = 10, models.NUM_WORKERS - 1
    inner = optax.chain(compensations.explicit(1.0, ms_decay=0.9), optax.sgd(0.1, momentum=0.5))
    batches = models.examples(0, num_events, 8)

    model = models.Net()
    problem = dc_nnx.split_model(model, models.loss)
    tx = dc.delay_gradients(inner, delay)  # the one changed line
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, batch):
        value, grads = nnx.value_and_grad(models.loss)(model, batch)
        optimizer.update(model, grads)
        return value

    losses = [
        train_step(model, optimizer, jax.tree.map(lambda rows: rows[k], batches))  # noqa: B023
        for k in range(num_events)
    ]
    schedule = models.schedule(num_events - delay, sim.RoundRobin())
    pushed = jax.tree.map(lambda rows: rows[: len(schedule)], batches)
    result = sim.simulate(problem, inner, schedule, pushed)
    cases.assert_same(result.losses, jnp.stack(losses[:-delay]), rtol=1e-5)
    cases.assert_same(result.params, nnx.to_pure_dict(nnx.state(model, nnx.Param)), **TOLERANCE)
