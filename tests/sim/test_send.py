"""send: what workers get when they pull, for every engine, protocol and way to run."""

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import problems
import pytest
from jax.sharding import AxisType
from problems import schedule_for

from dcasgd_jax import sim
from dcasgd_jax.sim import engines as engine_module

NUM_EVENTS = 24
LEARNING_RATE, MOMENTUM = 0.2, 0.6
TX = optax.chain(compensations.explicit(2.0), optax.sgd(LEARNING_RATE, momentum=MOMENTUM))


def look_ahead(params, opt_state):
    """Two steps along the velocity."""
    velocity = optax.tree.get(opt_state, "trace")
    return jax.tree.map(lambda w, v: w - 2 * LEARNING_RATE * v, params, velocity)


def shifted(params, opt_state):
    del opt_state
    return jax.tree.map(lambda w: w + 1, params)


def lanes(num_devices=4):
    mesh = jax.make_mesh(
        (num_devices,), ("workers",), axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )  # fmt: skip
    return sim.LanesEngine(mesh)


ENGINES = {
    "scan": sim.ScanEngine(),
    "scan in chunks": sim.ScanEngine(chunk_size=7),
    "host": sim.HostEngine(),
    "operation by operation": sim.HostEngine(jit=False),
    "lanes": lanes(),
}


def numpy_loop(schedule, params, batches, **server_options):
    """The oracle's server, whose workers and backups get what is sent."""
    grad_fn = jax.jit(jax.grad(problems.softmax_loss))
    server = oracle.Server(params, schedule.num_workers, **server_options)

    def sent():
        return {
            name: leaf - 2 * LEARNING_RATE * server.velocity[name]
            for name, leaf in server.params.items()
        }

    versions = [sent()]
    for k in range(len(schedule)):
        worker = int(schedule.worker[k])
        server.backups[worker] = versions[schedule.read_version[k]]
        batch = jax.tree.map(lambda rows: rows[k], batches)  # noqa: B023
        grads = grad_fn(server.backups[worker], batch)
        server.push(worker, {name: np.asarray(grad) for name, grad in grads.items()})
        versions.append(sent())
    return server.params


def run(schedule, tx=TX, send=look_ahead, **options):
    return problems.run(schedule, tx, send=send, **options)


@pytest.mark.parametrize("name", ENGINES)
def test_gradients_and_stale_points_are_what_was_sent(name, x64):
    schedule = schedule_for(num_updates=NUM_EVENTS)
    params = problems.softmax_params(np.float64)
    batches = problems.softmax_batches(NUM_EVENTS, np.float64)
    expected = numpy_loop(
        schedule, params, batches, lr=LEARNING_RATE, momentum=MOMENTUM, lambda0=2.0
    )
    result = run(schedule, engine=ENGINES[name], dtype=np.float64)
    chex.assert_trees_all_close(result.params, expected, rtol=0, atol=1e-12)
    plain = run(schedule, send=None, dtype=np.float64)
    assert np.abs(plain.params["w"] - expected["w"]).max() > 1e-3


@pytest.mark.parametrize(
    "protocol",
    [sim.Buffered(3), sim.DropStale(3), sim.Synchronous(), sim.Asynchronous(overlap=True)],
    ids=repr,
)
def test_engines_agree_for_every_way_to_take_pushes(protocol, x64):
    schedule = schedule_for(protocol, num_updates=8)
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    options = dict(tx=tx, per_push=compensations.explicit(2.0), dtype=np.float64)
    expected = run(schedule, **options, engine=sim.HostEngine(jit=False))
    for name in ("scan", "lanes"):
        result = run(schedule, **options, engine=ENGINES[name])
        chex.assert_trees_all_close(result.params, expected.params, rtol=0, atol=1e-12)
    without = run(schedule, **{**options, "send": None})
    moved = np.abs(without.params["w"] - expected.params["w"]).max()
    assert moved > 1e-4


@pytest.mark.parametrize("engine", [None, sim.HostEngine()], ids=["together", "one by one"])
def test_a_sweep_is_its_members(engine, x64):
    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(compensations.explicit(2.0), optax.sgd(learning_rate, momentum=MOMENTUM))

    def send(params, opt_state):
        rate = opt_state.hyperparams["learning_rate"]
        velocity = optax.tree.get(opt_state, "trace")
        return jax.tree.map(lambda w, v: w - 2 * rate * v, params, velocity)

    tx, rates = make(learning_rate=0.0), [0.1, LEARNING_RATE]
    schedule = schedule_for(num_updates=NUM_EVENTS)
    batches = problems.softmax_batches(NUM_EVENTS, np.float64)
    result = calls.sweep(
        problems.softmax_loss, problems.softmax_params(np.float64), tx, schedule, batches,
        hyperparams={"learning_rate": rates}, send=send, engine=engine,
    )  # fmt: skip
    alone = run(schedule, dtype=np.float64)
    of_second = jax.tree.map(lambda leaf: leaf[1], result.params)
    chex.assert_trees_all_close(of_second, alone.params, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"send\(...\) has no leaf \['b'\]"):
        calls.sweep(
            problems.softmax_loss, problems.softmax_params(), tx, schedule, batches,
            hyperparams={"learning_rate": rates}, send=lambda p, s: {"w": p["w"]},
        )  # fmt: skip


@pytest.mark.parametrize("policy", ["per_worker", "server"])
@pytest.mark.parametrize("name", ["scan", "host", "lanes"])
def test_model_state_comes_from_gradients_at_what_was_sent(name, policy):
    """The model state notes the bias that each gradient was taken at."""

    def loss_fn(params, model_state, batch):
        del model_state
        return problems.softmax_loss(params, batch), params["b"]

    schedule = schedule_for(law=sim.RoundRobin(), num_updates=4)
    result = problems.run(
        schedule, optax.sgd(0.0), loss_fn=loss_fn, model_state=jnp.zeros(3), send=shifted,
        model_state_policy=policy, engine=ENGINES[name],
    )  # fmt: skip
    np.testing.assert_array_equal(result.model_state, np.ones(3))


def test_the_server_and_its_evaluations_keep_the_params():
    schedule = schedule_for(num_updates=NUM_EVENTS)
    result = run(
        schedule, optax.sgd(0.0), send=shifted, eval_fn=lambda params: params["b"],
        eval_versions=8, metrics=["gap"],
    )  # fmt: skip
    np.testing.assert_array_equal(result.evaluations.values, np.zeros((3, 3)))
    np.testing.assert_array_equal(result.params["b"], np.zeros(3))
    np.testing.assert_allclose(result.trace.gap, np.ones(NUM_EVENTS))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_what_is_sent_has_the_dtype_of_the_params(dtype):
    """A look-ahead in float32 must not widen 16-bit snapshots."""
    seen = []

    def loss_fn(params, batch):
        seen.append({leaf.dtype for leaf in jax.tree.leaves(params)})
        return problems.softmax_loss(params, batch)

    wide = lambda params, opt_state: jax.tree.map(
        lambda w: w.astype(jnp.float32), look_ahead(params, opt_state)
    )
    result = run(schedule_for(num_updates=NUM_EVENTS), send=wide, loss_fn=loss_fn, dtype=dtype)
    assert all(dtypes == {jnp.dtype(dtype)} for dtypes in seen)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.state.snapshots)} == {jnp.dtype(dtype)}
    assert result.losses[-6:].mean() < result.losses[:6].mean()


def test_going_on_changes_no_bit():
    schedule = schedule_for(num_updates=NUM_EVENTS)
    half = run(schedule, stop=11)
    rest = run(schedule, state=half.state)
    chex.assert_trees_all_equal(rest.params, run(schedule).params)


def test_a_checkpoint_goes_on_and_refuses_what_is_sent_otherwise(tmp_path):
    schedule = schedule_for(num_updates=NUM_EVENTS)
    options = dict(checkpoint=sim.Checkpoint(tmp_path, every=8))
    run(schedule, stop=8, **options)
    with pytest.raises(ValueError, match=r"another run.*other code or settings: send"):
        run(schedule, send=None, **options)
    farther = lambda params, opt_state: jax.tree.map(
        lambda w, v: w - 3 * LEARNING_RATE * v, params, optax.tree.get(opt_state, "trace")
    )
    with pytest.raises(ValueError, match=r"another run.*other code or settings: send differs"):
        run(schedule, send=farther, **options)
    resumed = run(schedule, **options)
    with_same_cuts = run(schedule, engine=sim.ScanEngine(chunk_size=8))
    chex.assert_trees_all_equal(resumed.params, with_same_cuts.params)


def of_other_shape(params, opt_state):
    del opt_state
    return {**params, "w": params["w"].T}


def of_integers(params, opt_state):
    del opt_state
    return {**params, "b": jnp.zeros(3, jnp.int32)}


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, params, opt_state):
        return params


@pytest.mark.parametrize(
    ("send", "tx", "error", "message"),
    [
        (of_other_shape, TX, ValueError, r"send\(...\)\['w'\] has shape \(3, 6\)"),
        (lambda p, s: {"w": p["w"]}, TX, ValueError, r"send\(...\) has no leaf \['b'\]"),
        (lambda p, s: {**p, "c": p["b"]}, TX, ValueError, r"send\(...\) has a leaf \['c'\]"),
        (of_integers, TX, ValueError, r"send\(...\)\['b'\] is int32"),
        (Unhashable(), TX, TypeError, "send cannot be hashed"),
    ],
    ids=["shape", "missing", "too many", "integers", "unhashable"],
)
@pytest.mark.parametrize("engine", [None, lanes()], ids=["any", "lanes"])
def test_bad_sends_are_refused_before_any_work(send, tx, error, message, engine):
    def loss_fn(params, batch):
        raise AssertionError("work has begun")

    with pytest.raises(error, match=message):
        run(schedule_for(num_updates=4), tx, send=send, loss_fn=loss_fn, engine=engine)


def program_size(monkeypatch, **options):
    """Characters of the compiled program."""
    texts = []

    def compile_it(program, state, events, batches, shared):
        jitted = jax.jit(engine_module.scan_events, static_argnames="program")
        texts.append(jitted.lower(program, state, events, batches, shared).compile().as_text())
        return engine_module.scan_events(program, state, events, batches, shared)

    monkeypatch.setattr(engine_module, "_scan_chunk", compile_it)
    problems.run(schedule_for(num_updates=6), TX, engine=sim.ScanEngine(), **options)
    return len(texts[0])


@pytest.mark.usefixtures("compiled_afresh")
def test_no_send_costs_nothing(monkeypatch):
    nothing = program_size(monkeypatch)
    assert nothing == program_size(monkeypatch, send=lambda params, opt_state: params)
    assert nothing < program_size(monkeypatch, send=look_ahead)


def test_send_is_traced_once_for_a_look_and_once_for_the_program():
    traces = []

    def send(params, opt_state):
        traces.append(None)
        return look_ahead(params, opt_state)

    schedule = schedule_for(num_updates=NUM_EVENTS)
    run(schedule, send=send, engine=sim.ScanEngine())
    assert len(traces) == 2
    run(schedule, send=send, engine=sim.ScanEngine())
    assert len(traces) == 2
