"""hessian_vector_product and fisher_diagonal: right, lazy, and refused where there is no answer."""

import functools

import calls
import chex
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import problems
import pytest
from jax.sharding import AxisType
from problems import schedule_for

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.sim import engines as engine_module
from dcasgd_jax.sim import worker as worker_module

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
ENGINES = {"scan": sim.ScanEngine(), "host": sim.HostEngine(), "eager": sim.HostEngine(jit=False)}

KINDS = {"hvp": dc.curvatures.hessian(), "fisher": dc.curvatures.fisher()}


@functools.cache
def compensate(kind, strength):
    """g + strength * H (w - w_stale), or with the diagonal Fisher matrix for H."""

    def update(
        grads,
        state,
        params=None,
        *,
        stale_params,
        hessian_vector_product=None,
        fisher_diagonal=None,
        **extra_args,
    ):
        del extra_args
        moved = jax.tree.map(jnp.subtract, params, stale_params)
        if kind == "hvp":
            if hessian_vector_product is None:
                raise TypeError("update() needs hessian_vector_product=")
            product = hessian_vector_product(moved)
        else:
            if fisher_diagonal is None:
                raise TypeError("update() needs fisher_diagonal=")
            product = jax.tree.map(jnp.multiply, fisher_diagonal(), moved)
        return jax.tree.map(lambda g, p: g + strength * p.astype(g.dtype), grads, product), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def schedule_of(order):
    """Every worker pulls right after its push."""
    last, read = {}, []
    for event, worker in enumerate(order):
        read.append(last.get(worker, 0))
        last[worker] = event + 1
    return sim.Schedule(order, read)


def params_of_every_version(schedule, tx, **options):
    """Params before the first event and after every one [T + 1, 15]."""
    batches = jax.tree.map(np.asarray, [PROBLEM.batch(k) for k in range(len(schedule))])
    batches = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    result = calls.simulate(
        loops.softmax_loss, params, tx, schedule, batches, eval_fn=lambda p: p,
        eval_versions=1, **options,
    )  # fmt: skip
    values = result.evaluations.values
    rows = [jax.tree.map(lambda leaf: leaf[k], values) for k in range(len(schedule))]  # noqa: B023
    return oracle.flatten([PROBLEM.params, *rows])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["hvp_lam1", "hvp_lam0.5", "fisher_lam1"])
@pytest.mark.parametrize("ours", [False, True], ids=["by hand", "compensate_delay"])
def test_reference_runs(name, engine, ours, x64):
    case = oracle.cases("curvature_menu")[name]
    kind = name.split("_")[0]
    stage = (
        dc.compensate_delay(case["lam"], curvature=KINDS[kind])
        if ours
        else compensate(kind, case["lam"])
    )
    tx = optax.chain(stage, optax.sgd(case["lr"]))
    schedule = schedule_of(case.get("order", IRREGULAR))
    trace = params_of_every_version(schedule, tx, engine=ENGINES[engine])
    np.testing.assert_allclose(trace, case["theta_trace"], rtol=0, atol=1e-10)


QUADRATIC = oracle.cases("quadratic_exact")


def quadratic_loss(w, centre):
    moved = w - centre
    return 0.5 * moved @ jnp.asarray(QUADRATIC["H"]) @ moved


@pytest.mark.parametrize("protocol", ["irregular", "dropped", "averaged"])
@pytest.mark.parametrize("engine", ENGINES)
def test_with_the_hessian_stale_training_on_a_quadratic_is_sequential(engine, protocol, x64):
    """A dropped push changes nothing; averaged ones are compensated each for itself."""
    lr, exact = 0.2, compensate("hvp", 1.0)
    options = dict(tx=optax.chain(exact, optax.sgd(lr)))
    schedule = schedule_of(IRREGULAR)
    if protocol == "dropped":
        schedule = sim.make_schedule(
            sim.ExponentialTime(), 4, 12, seed=1, protocol=sim.DropStale(3)
        )
    if protocol == "averaged":
        schedule = schedule_for(sim.Buffered(3), num_updates=8, seed=1)
        options = dict(tx=optax.sgd(lr), per_push=exact)
        assert (schedule.staleness > 0).any()
    centres = np.asarray(QUADRATIC["centres"])
    rows = np.arange(len(schedule)) % len(centres)
    result = calls.simulate(
        quadratic_loss, jnp.asarray(QUADRATIC["w0"]), options.pop("tx"), schedule, centres[rows],
        engine=ENGINES[engine], **options,
    )  # fmt: skip
    w, hessian = np.asarray(QUADRATIC["w0"]), np.asarray(QUADRATIC["H"])
    for version in range(schedule.num_updates):
        events = np.flatnonzero((schedule.version == version) & schedule.applied)
        w = w - lr * hessian @ (w - centres[rows[events]].mean(axis=0))
    np.testing.assert_allclose(result.params, w, rtol=0, atol=1e-12)


def record(what):
    """Keeps what it asked for in its state."""

    def init(params):
        return optax.tree.cast(optax.tree.zeros_like(params), what(None))

    def update(grads, state, params=None, **extra_args):
        return grads, what({**extra_args, "params": params, "state": state})

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def fisher_recorder(dtype=jnp.float32):
    return record(lambda told: dtype if told is None else told["fisher_diagonal"]())


@functools.cache
def hvp_recorder():
    """Of a tangent that is the params at the server."""
    return record(
        lambda told: None if told is None else told["hessian_vector_product"](told["params"])
    )


NOISE = jax.random.key(3)


@pytest.mark.parametrize("engine", ENGINES)
def test_fisher_is_the_mean_square_of_gradients_of_samples_with_the_key_of_the_event(engine):
    """The last event repeats the batch and the key of the first."""
    schedule = sim.Schedule([0, 1, 0, 0], [0, 0, 1, 0], batch=[0, 1, 2, 0])
    tx = optax.chain(fisher_recorder(), optax.sgd(0.0))
    result = problems.run(
        schedule, tx, loss_fn=problems.noisy_loss, key=NOISE, engine=ENGINES[engine]
    )
    params = problems.softmax_params()
    images, labels = problems.softmax_batches(4)
    squares = [
        jax.tree.map(
            jnp.square,
            jax.grad(problems.noisy_loss)(
                params, (images[0, i : i + 1], labels[0, i : i + 1]), jax.random.fold_in(NOISE, 0)
            ),
        )
        for i in range(8)
    ]
    expected = jax.tree.map(lambda *rows: sum(rows) / 8, *squares)
    chex.assert_trees_all_close(result.opt_state[0], expected, rtol=1e-5, atol=1e-8)
    of_batch = jax.grad(problems.noisy_loss)(
        params, (images[0], labels[0]), jax.random.fold_in(NOISE, 0)
    )
    assert np.abs(of_batch["w"] ** 2 - expected["w"]).max() > 1e-3  # the square of the mean


@pytest.mark.parametrize("policy", ["per_worker", "server"])
@pytest.mark.parametrize("engine", ENGINES)
def test_hvp_is_at_the_params_the_model_state_and_the_key_of_the_gradient(engine, policy, x64):
    """Loss m (noise . w^3) / 3: the Hessian is diagonal, 2 m noise w; m doubles at each push."""

    def loss_fn(w, model_state, batch, key):
        noise = jax.random.uniform(key, (3,), jnp.float64)
        return model_state * jnp.sum(noise * w**3) / 3 + 0 * batch.sum(), 2 * model_state

    # Worker 0 pushes twice before worker 1, whose gradient was taken at version 0.
    schedule = sim.Schedule([0, 0, 1], [0, 1, 0])
    w0 = jnp.asarray([1.0, 2.0, 3.0])
    tx = optax.chain(hvp_recorder(), optax.sgd(0.1))
    result = calls.simulate(
        loss_fn, w0, tx, schedule, np.ones((3, 1)), key=NOISE, model_state=jnp.asarray(1.0),
        model_state_policy=policy, engine=ENGINES[engine],
    )  # fmt: skip
    two = calls.simulate(
        loss_fn, w0, tx, schedule, np.ones((3, 1)), key=NOISE, model_state=jnp.asarray(1.0),
        model_state_policy=policy, stop=2,
    )  # fmt: skip
    noise = jax.random.uniform(jax.random.fold_in(NOISE, 2), (3,), jnp.float64)
    np.testing.assert_allclose(result.opt_state[0], 2 * 1.0 * noise * w0 * two.params, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    schedule = schedule_for(num_updates=6)
    tx = optax.chain(compensate("hvp", 1.0), compensate("fisher", 1.0), optax.sgd(0.1))
    result = problems.run(schedule, tx, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(dtype)}
    wide = problems.run(schedule, optax.chain(fisher_recorder(), optax.sgd(0.1)), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.opt_state[0])} == {jnp.dtype(jnp.float32)}


def every_step(multi_steps):
    return optax.GradientTransformationExtraArgs(multi_steps.init, multi_steps.update)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: every_step(optax.MultiSteps(tx, 1)),
        lambda tx: optax.conditionally_transform(tx, lambda step: step >= 0),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, {"w": True, "b": True}, mask_compatible_extra_args=True),
        lambda tx: optax.inject_hyperparams(lambda unused: tx)(unused=0.0),
    ],
    ids=["MultiSteps", "conditionally_transform", "apply_if_finite", "masked", "injected"],
)
def test_inside_optax_wrappers(wrap):
    schedule = schedule_for(num_updates=6)
    tx = optax.chain(compensate("hvp", 0.5), compensate("fisher", 0.5), optax.sgd(0.1))
    expected = problems.run(schedule, tx).params
    chex.assert_trees_all_close(
        problems.run(schedule, wrap(tx)).params, expected, rtol=1e-5, atol=1e-6
    )


def test_a_sweep_is_its_members(x64):
    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(compensate("hvp", 1.0), optax.sgd(learning_rate))

    schedule = schedule_for(num_updates=12)
    batches = problems.softmax_batches(12, np.float64)
    result = calls.sweep(
        problems.softmax_loss, problems.softmax_params(np.float64), make(learning_rate=0.0),
        schedule, batches, hyperparams={"learning_rate": [0.1, 0.3]},
    )  # fmt: skip
    tx = optax.chain(compensate("hvp", 1.0), optax.sgd(0.3))
    alone = problems.run(schedule, tx, dtype=np.float64)
    second = jax.tree.map(lambda leaf: leaf[1], result.params)
    chex.assert_trees_all_close(second, alone.params, rtol=0, atol=1e-12)


def test_a_checkpoint_goes_on_and_refuses_another_curvature(tmp_path):
    schedule = schedule_for(num_updates=12)
    txs = {kind: optax.chain(compensate(kind, 1.0), optax.sgd(0.1)) for kind in ("hvp", "fisher")}
    options = dict(checkpoint=sim.Checkpoint(tmp_path, every=6))
    problems.run(schedule, txs["hvp"], stop=6, **options)
    with pytest.raises(ValueError, match=r"another run.*tx differs"):
        problems.run(schedule, txs["fisher"], **options)
    resumed = problems.run(schedule, txs["hvp"], **options)
    with_same_cuts = problems.run(schedule, txs["hvp"], engine=sim.ScanEngine(chunk_size=6))
    chex.assert_trees_all_equal(resumed.params, with_same_cuts.params)


def lowered_programs(monkeypatch, schedule, **options):
    """The programs of the scan and the host engine, before XLA makes them faster."""
    texts = []

    def lower(function, *arguments):
        jitted = jax.jit(function, static_argnums=0)
        texts.append(jitted.lower(*arguments).as_text())
        return function(*arguments)

    for name, function in (
        ("_scan_chunk", engine_module.scan_events),
        ("_compiled_event", engine_module.step.run_event),
    ):
        monkeypatch.setattr(engine_module, name, functools.partial(lower, function))
    for engine in (sim.ScanEngine(), sim.HostEngine()):
        problems.run(schedule, problems.adaptive(), engine=engine, stop=1, **options)
    return texts


@pytest.mark.parametrize(
    ("protocol", "options"),
    [(None, {}), (sim.DropStale(2), {}), (sim.Synchronous(), {"per_push": dc.compensate_delay()})],
    ids=["asynchronous", "dropping", "averaging"],
)
def test_unused_they_add_nothing_to_the_program(protocol, options, monkeypatch):
    schedule = schedule_for(protocol, num_updates=3)
    offered = lowered_programs(monkeypatch, schedule, **options)
    monkeypatch.setattr(worker_module, "about_batch", lambda *arguments: {})
    assert offered == lowered_programs(monkeypatch, schedule, **options)
    assert len(offered) == 2


def lanes():
    kinds = (AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("workers",), axis_types=kinds, devices=jax.devices()[:2])
    return sim.LanesEngine(mesh)


@pytest.mark.parametrize("kind", ["hvp", "fisher"])
@pytest.mark.parametrize("protocol", [None, sim.Buffered(2)], ids=["asynchronous", "averaged"])
def test_the_lanes_engine_says_which_engines_can(kind, protocol):
    schedule = schedule_for(protocol, num_updates=4)
    name = "tx" if protocol is None else "per_push"
    transformations = {"tx": optax.sgd(0.1), name: compensate(kind, 1.0)}
    with pytest.raises(ValueError, match=r"asks for \w+, .* lanes engine .* use ScanEngine"):
        problems.run(schedule, **transformations, engine=lanes())
    transformations[name] = dc.compensate_delay(1.0, curvature=KINDS[kind])
    with pytest.raises(ValueError, match=r"asks for \w+, .* lanes engine .* use ScanEngine"):
        problems.run(schedule, **transformations, engine=lanes())


def test_a_mean_of_pushes_has_no_curvature():
    tx = optax.chain(compensate("hvp", 1.0), optax.sgd(0.1))
    with pytest.raises(TypeError, match="needs hessian_vector_product"):
        problems.run(schedule_for(sim.Synchronous(), num_updates=2), tx)
    with pytest.raises(ValueError, match="pass it as per_push="):
        problems.run(schedule_for(sim.Buffered(3), num_updates=4), tx)


def ask(name, *arguments):
    def update(grads, state, params=None, **extra_args):
        del params
        extra_args[name](*arguments)
        return grads, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


@pytest.mark.parametrize(
    ("asking", "options", "message"),
    [
        (ask("hessian_vector_product", {"w": np.ones((6, 3))}), {}, r"tangent has no leaf \['b'\]"),
        (
            ask("hessian_vector_product", {"w": np.ones((3, 6)), "b": np.ones(3)}),
            {},
            r"tangent\['w'\] has shape \(3, 6\)",
        ),
        (
            ask("fisher_diagonal"),
            dict(
                loss_fn=lambda p, s, batch: (problems.softmax_loss(p, batch), s),
                model_state=jnp.zeros(()),
            ),
            "a sample alone does not have",
        ),
    ],
    ids=["missing leaf", "shape", "model state"],
)
@pytest.mark.parametrize("engine", ["scan", "eager"])
def test_bad_questions(asking, options, message, engine):
    with pytest.raises(ValueError, match=message):
        problems.run(schedule_for(num_updates=2), asking, engine=ENGINES[engine], **options)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (np.ones(1, np.float32), "batch is a scalar"),
        ({"x": np.ones((1, 3)), "y": np.ones((1, 4))}, r"lengths are .*\['x'\]"),
        ({"x": np.ones((1, 3)), "y": np.ones(1)}, r"batch\['y'\] is a scalar"),
    ],
    ids=["scalar", "lengths", "one scalar"],
)
def test_batches_without_samples(batches, message):
    loss_fn = lambda w, batch: w * sum(leaf.sum() for leaf in jax.tree.leaves(batch))
    with pytest.raises(ValueError, match=message):
        calls.simulate(loss_fn, jnp.float32(1.0), ask("fisher_diagonal"), sim.Schedule([0], [0]),
                     batches)  # fmt: skip


def test_a_sample_of_weight_0_is_none(x64):
    """A batch filled up, whose loss divides by the sum of the weights: alone it is 0/0."""
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(1, 5, 3)), np.ones((1, 5))

    def loss_fn(w, batch):
        values, weights = batch
        losses = ((values - w[None]) ** 2).sum(-1)
        return (weights * losses).sum() / weights.sum()

    def fisher(x, weight):
        tx = optax.GradientTransformationExtraArgs(
            lambda params: optax.EmptyState(),
            lambda updates, state, params=None, *, fisher_diagonal, **_: (
                fisher_diagonal(), state
            ),
        )  # fmt: skip
        result = calls.simulate(loss_fn, jnp.zeros(3), tx, sim.Schedule([0], [0]), (x, weight))
        return result.params

    filled = np.concatenate([x, np.zeros((1, 2, 3))], 1), np.concatenate([weight, [[0, 0]]], 1)
    np.testing.assert_allclose(fisher(*filled), fisher(x, weight), rtol=1e-12)
