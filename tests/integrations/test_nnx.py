"""NNX modules in the simulator, and back."""

import functools

import calls
import cases
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcasgd_jax import sim
from dcasgd_jax.integrations import nnx as dc_nnx
from integrations import models

TX = optax.chain(compensations.explicit(1.0, ms_decay=0.9), optax.sgd(0.1, momentum=0.5))
KEY = jax.random.key(3)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_train_write_back_and_evaluate(policy, monkeypatch):
    """Convolution, batch normalisation and dropout, four workers, on the engine chosen for it."""
    used, run = [], sim.HostEngine.run
    spy = lambda self, *arguments: used.append(self) or run(self, *arguments)
    monkeypatch.setattr(sim.HostEngine, "run", spy)
    model = models.ConvNet()
    before = nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    problem = dc_nnx.split_model(model, models.loss, models.evaluate)
    schedule = models.schedule(60)
    result = sim.simulate(
        problem._replace(model_state_policy=policy),
        TX,
        schedule,
        models.examples(0, 60, 16),
        key=KEY,
    )
    assert used == [sim.HostEngine()]
    assert result.losses[-10:].mean() < result.losses[:10].mean()
    now = nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    cases.assert_same(now, before)  # not changed so far

    dc_nnx.update_model(model, result)
    assert (model.norm.mean[...] != 0).all()
    assert isinstance(model.norm.mean, nnx.BatchStat)
    assert isinstance(model.last.kernel, nnx.Param)
    assert not model.norm.use_running_average  # still in the mode that it was in
    model.eval()
    evaluated = models.evaluate(model)["loss"]
    np.testing.assert_allclose(result.evaluations.values["loss"][-1], evaluated, rtol=1e-5)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_equals_a_loop_of_modules(policy):
    """One module per worker, each with parameters and statistics as it pulled them."""
    schedule = models.schedule(10)
    batches = models.examples(0, 10, 8)
    problem = dc_nnx.split_model(models.Net(), models.loss)
    result = sim.simulate(
        problem._replace(model_state_policy=policy), optax.sgd(0.2), schedule, batches
    )

    @nnx.jit
    def worker_step(worker, server, batch):
        value, grads = nnx.value_and_grad(models.loss)(worker, batch)
        move = lambda p, g: p - 0.2 * g
        nnx.update(server, jax.tree.map(move, nnx.state(server, nnx.Param), grads))
        if policy == "server":
            nnx.update(server, nnx.state(worker, nnx.BatchStat))
        return value

    server = models.Net()
    workers = [models.Net() for _ in range(models.NUM_WORKERS)]
    pulled = (nnx.Param, nnx.BatchStat) if policy == "server" else (nnx.Param,)
    losses = []
    for event, index in enumerate(schedule.worker):
        batch = jax.tree.map(lambda rows: rows[event], batches)  # noqa: B023
        losses.append(worker_step(workers[index], server, batch))
        for kind in pulled:
            nnx.update(workers[index], nnx.state(server, kind))
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    params = nnx.to_pure_dict(nnx.state(server, nnx.Param))
    cases.assert_same(result.params, params, rtol=1e-4, atol=1e-6)
    means = [worker.norm.mean[...] for worker in workers]
    expected = np.mean(means, axis=0) if policy == "per_worker" else server.norm.mean[...]
    np.testing.assert_allclose(result.model_state["norm"]["mean"], expected, rtol=1e-4, atol=1e-6)


def test_local_steps_of_a_module():
    """Two steps of one worker, as a loop on the module takes them; statistics see both batches."""
    schedule = sim.Schedule(worker=[0], read_version=[0])
    batches = models.examples(0, 2, 8)
    problem = dc_nnx.split_model(models.Net(), models.loss)
    in_row = jax.tree.map(lambda leaf: leaf[None], batches)
    worker = sim.LocalSteps(optax.sgd(0.2), 2)
    result = sim.simulate(problem, optax.sgd(1.0), schedule, in_row, worker=worker)

    model, losses = models.Net(), []
    for step in range(2):
        batch = jax.tree.map(lambda leaf: leaf[step], batches)  # noqa: B023
        value, grads = nnx.value_and_grad(models.loss)(model, batch)
        move = lambda p, g: p - 0.2 * g
        nnx.update(model, jax.tree.map(move, nnx.state(model, nnx.Param), grads))
        losses.append(value)
    np.testing.assert_allclose(result.losses, [np.mean(losses)], rtol=1e-5)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    cases.assert_same(result.params, params, rtol=1e-4, atol=1e-6)
    mean = result.model_state["norm"]["mean"]
    np.testing.assert_allclose(mean, model.norm.mean[...], rtol=1e-4, atol=1e-6)


def test_dropout_is_drawn_afresh_at_every_event_whatever_the_engine():
    problem = dc_nnx.split_model(models.Net(0.5), models.loss)
    batch = models.examples(0, 8)
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 6), batch)
    run = functools.partial(sim.simulate, problem, optax.sgd(0.0), models.schedule(6), batches)
    losses = run(key=KEY).losses
    assert len({float(loss) for loss in losses}) == 6
    np.testing.assert_allclose(losses, run(key=KEY, engine=sim.HostEngine()).losses, rtol=1e-6)
    assert (losses != run(key=jax.random.key(4)).losses).all()
    # Random streams are no model state.
    assert set(problem.model_state) == {"norm"}


def test_every_random_stream_is_another():
    class Two(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.weight = nnx.Param(jnp.ones(()))
            self.one, self.other = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))
            # In stacked layers a stream has several keys.
            self.stacked = nnx.Rngs(noise=1).split(3)

    def loss(model, batch):
        differ = (model.one(batch) != model.other(batch)).any()
        keys = jax.random.key_data(model.stacked.noise.key[...])
        distinct = (keys[0] != keys[1]).any() & (keys[1] != keys[2]).any()
        return jnp.where(differ & distinct, model.weight[...], jnp.nan)

    problem = dc_nnx.split_model(Two(), loss)
    for key in (KEY, jax.random.PRNGKey(0)):  # of both kinds
        assert problem.loss_fn(problem.params, jnp.ones(64), key) == 1


def test_a_loss_with_random_numbers_of_its_own():
    def loss(model, batch, key):
        images, labels = batch
        return models.loss(model, (images + jax.random.normal(key, images.shape), labels))

    problem = dc_nnx.split_model(models.Net(), loss)
    schedule, batches = models.schedule(4), models.examples(0, 4, 8)
    one, again = (sim.simulate(problem, TX, schedule, batches, key=KEY) for _ in range(2))
    cases.assert_same(one.losses, again.losses)
    other = sim.simulate(problem, TX, schedule, batches, key=jax.random.key(9))
    assert (one.losses != other.losses).all()
    with pytest.raises(ValueError, match="The loss takes a key: pass key= to simulate"):
        sim.simulate(problem, TX, schedule, batches)


def test_a_model_without_state():
    problem = dc_nnx.split_model(models.Net(norm=False), models.loss, models.evaluate)
    assert problem.model_state is None
    model = models.Net(norm=False, seed=1)
    result = sim.simulate(problem, TX, models.schedule(4), models.examples(0, 4, 8))
    assert result.model_state is None
    dc_nnx.update_model(model, result)
    np.testing.assert_allclose(
        result.evaluations.values["loss"][-1], models.evaluate(model)["loss"], rtol=1e-6
    )


def test_models_of_one_structure_share_a_program():
    num_traces = 0

    def loss(model, batch):
        nonlocal num_traces
        num_traces += 1
        return models.loss(model, batch)

    evaluating = models.Net(seed=1)
    evaluating.eval()  # trained in training mode all the same
    for model in (models.Net(), evaluating):
        problem = dc_nnx.split_model(model, loss, models.evaluate)
        sim.simulate(problem, TX, models.schedule(4), models.examples(0, 4, 8))
        traced, num_traces = num_traces, 0
    assert traced == 0
    first = dc_nnx.split_model(models.Net(), loss, models.evaluate)
    assert first.loss_fn is problem.loss_fn
    assert first.eval_fn is problem.eval_fn
    wider = dc_nnx.split_model(models.ConvNet(), loss, models.evaluate)
    assert wider.loss_fn is not problem.loss_fn


def test_records_of_a_call_are_no_state():
    class Recording(models.Net):
        def __call__(self, x):
            self.seen = nnx.Intermediate(x)
            return super().__call__(x)

    model = Recording()
    model(jnp.ones((2, 6)))
    problem = dc_nnx.split_model(model, models.loss)
    assert set(problem.model_state) == {"norm"}
    batch = models.examples(0, 8)
    _, state = problem.loss_fn(problem.params, problem.model_state, batch)
    assert set(state) == {"norm"}


def test_checkpoints_and_going_on(tmp_path):
    problem = dc_nnx.split_model(models.Net(0.5), models.loss)
    schedule, batches = models.schedule(8), models.examples(0, 8, 8)
    run = functools.partial(
        sim.simulate, problem, TX, schedule, batches, key=KEY, engine=sim.HostEngine()
    )
    whole = run()
    half = run(stop=4)
    cases.assert_same(run(state=half.state).params, whole.params)
    checkpoint = sim.Checkpoint(tmp_path)
    run(checkpoint=checkpoint, stop=4)
    cases.assert_same(run(checkpoint=checkpoint).params, whole.params)


def test_masks_by_path():
    """Parameters are plain nested dicts, so that optax finds them by name."""
    labels = lambda params: {name: "train" if name == "last" else "keep" for name in params}
    tx = optax.partition({"train": optax.sgd(0.1), "keep": optax.set_to_zero()}, labels)
    problem = dc_nnx.split_model(models.Net(), models.loss)
    result = sim.simulate(problem, tx, models.schedule(4), models.examples(0, 4, 8))
    cases.assert_same(result.params["first"], problem.params["first"])
    assert (result.params["last"]["kernel"] != problem.params["last"]["kernel"]).all()


def simulate(loss, model=None, **options):
    problem = dc_nnx.split_model(model or models.Net(), loss)
    return sim.simulate(problem, TX, models.schedule(2), models.examples(0, 2, 8), **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch[0]), r"real scalar, got an array float32\[8, 3\]"),
        (lambda model, batch: (model(batch[0]).mean(), {}), "got a tuple; return the loss alone"),
        (lambda model, batch: None, "got a NoneType"),
        (lambda model: 0.0, r"callable as loss\(model, batch\) or .* signature is \(model\)"),
    ],
)
def test_what_is_no_loss(loss, message):
    with pytest.raises(TypeError, match=message):
        simulate(loss)


def test_dropout_needs_a_key():
    with pytest.raises(ValueError, match=r"\(model.dropout.rngs\), so it needs a key: pass key="):
        simulate(models.loss, models.Net(0.5))


def test_a_forgotten_model_state():
    problem = dc_nnx.split_model(models.Net(), models.loss)
    batches = models.examples(0, 2, 8)
    for key in (None, KEY):
        with pytest.raises(ValueError, match="keep the problem's model_state"):
            calls.simulate(
                problem.loss_fn, problem.params, TX, models.schedule(2), batches, key=key
            )


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"needs an nnx.Module, got dict"):
        dc_nnx.split_model({"w": jnp.ones(3)}, models.loss)
    with pytest.raises(ValueError, match="nothing to train"):
        dc_nnx.split_model(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), models.loss)
    model = models.Net()
    model.sizes = nnx.static([8, 3])
    with pytest.raises(TypeError, match=r"model cannot be hashed .* static attributes"):
        dc_nnx.split_model(model, models.loss)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (models.ConvNet, r"params\['convolution'\]\['bias'\] is not there, in the module it is"),
        (lambda: models.Net(norm=False), r"params\['norm'\]\['bias'\] is float32\[8\], in the"),
    ],
)
def test_a_result_of_another_model(other, message):
    result = simulate(models.loss)
    with pytest.raises(ValueError, match=message):
        dc_nnx.update_model(other(), result)
    with pytest.raises(ValueError, match=r"model_state\['norm'\]\['mean'\] is not there"):
        dc_nnx.update_model(models.Net(), result._replace(model_state=None))
