"""Curvatures that know directions, in everything that runs an optimizer: engines, sweeps, servers.

A leaf has factors that are not shaped like it, and there is a `lax.cond` in every update.
"""

import calls
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.sharding import AxisType
from optax import contrib
from runtime import clients
from runtime.test_server import restored, same

import dcasgd_jax as dc
from dcasgd_jax import digits, sim
from dcasgd_jax.sim import work

RATE, NUM_EVENTS = 0.3, 24
DIGITS_PUSHES = 2520
# A basis of its own at every third push, so that 24 events see old and new ones.
CURVATURES = {
    "rotated": dc.curvatures.rotated(8, every=3, sides="both"),
    "rows": dc.curvatures.rows(8),
}
each = pytest.mark.parametrize("name", CURVATURES)


def explicit(name, lambda0=1.0, learning_rate=RATE):
    compensate = dc.compensate_delay(
        lambda0, curvature=CURVATURES[name], max_pull=1.0, learning_rate=learning_rate
    )
    return optax.chain(compensate, optax.sgd(learning_rate))


def mesh(num_devices):
    kinds, devices = (AxisType.Auto,), jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("workers",), axis_types=kinds, devices=devices)


ENGINES = {
    "host": sim.HostEngine(),
    "sharded": sim.LanesEngine(mesh(3), "sharded"),
    "replicated": sim.LanesEngine(mesh(3), "replicated"),
}


def loss_fn(params, batch):
    """A square matrix, whose factors are shaped like it, and a kernel: 3 devices can cut both."""
    images, labels = batch
    hidden = jnp.concatenate([jnp.tanh(images @ params["square"]), images[:, :3]], axis=1)
    logits = hidden @ params["kernel"].reshape(9, 3) + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def make_params(dtype=np.float64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 2, dtype)
    return {"square": draw(6, 6), "kernel": draw(3, 3, 1, 3), "b": draw(3)}


def run(tx, schedule=None, dtype=np.float64, **options):
    schedule = problems.schedule_for(num_updates=NUM_EVENTS) if schedule is None else schedule
    batches = problems.softmax_batches(len(schedule), dtype)
    return calls.simulate(loss_fn, make_params(dtype), tx, schedule, batches, **options)


def assert_close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-9)


OFFERED = {
    "rotated": dc.curvatures.rotated(every=3, sides="both"),
    "rows": dc.curvatures.rows(),
}


@each
@pytest.mark.parametrize("engine", [sim.ScanEngine(), *ENGINES.values()], ids=repr)
def test_the_simulator_knows_how_many_examples_a_batch_has(name, engine, x64):
    """Labels, one for each: 8 is the size that the written curvatures have."""
    tx = optax.chain(
        dc.compensate_delay(curvature=OFFERED[name], max_pull=1.0, learning_rate=RATE),
        optax.sgd(RATE),
    )
    assert_close(run(tx, engine=engine).params, run(explicit(name)).params)


@pytest.mark.parametrize(
    ("batch", "known"),
    [
        ((jnp.zeros((8, 4)), jnp.zeros(8, jnp.int32)), {"batch_size": 8}),
        (jnp.zeros(8, jnp.int32), {"batch_size": 8}),
        ({"pixels": jnp.zeros((8, 4, 4), jnp.uint8), "label": jnp.zeros(8)}, {"batch_size": 8}),
        (jnp.zeros((8, 33), jnp.int32), {}),
        ((jnp.zeros((8, 33), jnp.int32), jnp.zeros(8)), {}),
        ((jnp.zeros((8, 33), jnp.uint32), jnp.zeros(8)), {}),
        ((jnp.zeros((8, 33), jnp.uint16), jnp.zeros(8)), {}),
        ((jnp.zeros((8, 33), jnp.uint8), jnp.zeros(8)), {}),
        ((jnp.zeros((8, 3, 33), jnp.uint16), jnp.zeros(8)), {}),
        ((jnp.zeros((8, 4)), jnp.zeros((8, 10))), {}),
        ((jnp.zeros((8, 4)), jnp.zeros(9)), {}),
        ((jnp.zeros((8, 4)), jnp.zeros(8), jnp.zeros(())), {}),
        (jnp.zeros(0), {}),
        ((), {}),
    ],
)
def test_a_size_that_the_shapes_do_not_say_is_not_made_up(batch, known):
    assert work.size_of_batch(batch) == known


def test_where_nobody_knows_the_batch_size_the_run_does_not_begin():
    tx = dc.dcasgd(0.1, 4, lambda0=1.0, curvature=dc.curvatures.rotated(), max_pull=1.0)
    problem = sim.Problem(lambda w, tokens: jnp.sum(w * tokens.mean()), jnp.ones((3, 3)))
    schedule = sim.make_schedule(sim.ConstantTime(), 4, num_updates=8, seed=0)
    with pytest.raises(TypeError, match=r"rotated.* needs .*batch_size=\): .*tokens"):
        sim.simulate(problem, tx, schedule, np.ones((8, 2, 5), np.int32))


def test_a_live_server_refuses_what_it_cannot_know():
    tx = dc.dcasgd(
        0.1, clients.NUM_WORKERS, lambda0=1.0, curvature=dc.curvatures.rotated(), max_pull=1.0
    )
    with pytest.raises(TypeError, match="batch_size"):
        clients.Clients(tx)


@each
def test_engines_agree(name, x64):
    tx = explicit(name)
    expected = run(tx)
    for engine in ENGINES.values():
        result = run(tx, engine=engine)
        assert_close(result.params, expected.params)
        chex.assert_trees_all_equal_shapes_and_dtypes(result.opt_state, expected.opt_state)
    plain = run(optax.sgd(RATE))
    assert np.abs(plain.params["square"] - expected.params["square"]).max() > 1e-3


def test_the_sharded_server_cuts_only_what_is_shaped_like_a_parameter(x64):
    """So the factors of a kernel are whole on every device; of a square matrix they are slices."""
    engine, seen = ENGINES["sharded"], {}

    def look(grads, state, params=None, **told):
        del params, told
        note = lambda path, leaf: jax.debug.inspect_array_sharding(
            leaf, callback=lambda sharding: seen.update({path: sharding})
        )
        note("square", state.input_basis["square"])
        note("kernel", state.input_basis["kernel"])
        _, state = CURVATURES["rotated"].update(state, grads)
        return grads, state

    watching = optax.GradientTransformationExtraArgs(CURVATURES["rotated"].init, look)
    run(optax.chain(watching, optax.sgd(RATE)), engine=engine)
    assert seen["kernel"].is_fully_replicated
    assert seen["square"].shard_shape((1, 6, 6)) == (1, 2, 6)


@each
def test_a_cap_of_another_rate_is_found(name):
    compensate = dc.compensate_delay(
        1e6, curvature=CURVATURES[name], max_pull=1.0, learning_rate=0.1 * RATE
    )
    with pytest.raises(ValueError, match=r"was told learning_rate=0\.03, but the chain applies 0"):
        run(optax.chain(compensate, optax.sgd(RATE)), dtype=np.float32)


@each
def test_remembered_pulls_are_the_told_ones(name, x64):
    forms = (
        dc.dcasgd(RATE, 4, lambda0=1.0, curvature=CURVATURES[name], max_pull=1.0),
        dc.remember_pulls(explicit(name), 4),
    )
    for protocol in (sim.Asynchronous(), sim.DropStale(2), sim.StaleSynchronous(1)):
        schedule = problems.schedule_for(protocol, num_updates=NUM_EVENTS)
        expected = run(explicit(name), schedule).params
        for tx in forms:
            assert_close(run(tx, schedule).params, expected)


@each
def test_compensated_before_a_mean(name, x64):
    """Of pushes of several versions."""
    schedule = problems.schedule_for(sim.Buffered(3), num_updates=12)
    compensate = dc.compensate_delay(1.0, curvature=CURVATURES[name])
    options = dict(tx=optax.sgd(RATE), per_push=compensate)
    expected = run(schedule=schedule, **options).params
    assert_close(run(schedule=schedule, engine=ENGINES["sharded"], **options).params, expected)


@each
def test_every_member_of_a_sweep_is_its_own_run(name, x64):
    injected = optax.inject_hyperparams(lambda learning_rate, lambda0: explicit(
        name, lambda0, learning_rate
    ))  # fmt: skip
    numbers = {"learning_rate": [0.1, 0.3, 0.3], "lambda0": [1.0, 0.0, 4.0]}
    schedule = problems.schedule_for(num_updates=NUM_EVENTS)
    swept = calls.sweep(
        loss_fn, make_params(), injected(learning_rate=0.1, lambda0=1.0), schedule,
        problems.softmax_batches(NUM_EVENTS, np.float64), hyperparams=numbers,
    )  # fmt: skip
    for i, settings in enumerate(zip(numbers["lambda0"], numbers["learning_rate"], strict=True)):
        assert_close(swept.member(i).params, run(explicit(name, *settings)).params)


@each
@pytest.mark.parametrize("engine", [sim.ScanEngine(chunk_size=20), sim.HostEngine()], ids=repr)
def test_checkpoints_go_on_bit_for_bit(name, engine, tmp_path):
    options = dict(dtype=np.float32, engine=engine)
    expected = run(explicit(name), **options)
    for stop in (20, None):
        saving = sim.Checkpoint(tmp_path, every=20)
        result = run(explicit(name), stop=stop, checkpoint=saving, **options)
    chex.assert_trees_all_equal(result.state, expected.state)
    chex.assert_trees_all_equal(result.losses, expected.losses)


def test_one_worker_is_plain_sgd_bit_for_bit():
    schedule = sim.make_schedule(sim.ExponentialTime(), 1, 20, seed=0)
    options = dict(dtype=np.float32, engine=sim.HostEngine())
    compensated, plain = (
        run(tx, schedule, **options).params for tx in (explicit("rotated"), optax.sgd(RATE))
    )
    chex.assert_trees_all_equal(compensated, plain)


def digits_loss(tx):
    """Final train loss of an MLP on 2520 pushes of 16 digits by 8 workers."""
    law = sim.GammaTime(shape=100.0, mean=1.0)
    schedule = sim.make_schedule(law, 8, DIGITS_PUSHES, seed=0)
    rows = digits.batch_rows(digits.NUM_TRAIN, 16, DIGITS_PUSHES, seed=0)
    problem = digits.problem("mlp", seed=0)
    result = sim.simulate(problem, tx, schedule, rows)
    assert problem.eval_fn is not None
    return float(problem.eval_fn(result.params).train_loss)


def digits_rate(peak):
    """Linear in the first tenth, divided by 10 at 1/2 and at 3/4."""

    def rate(count):
        share = count / DIGITS_PUSHES
        decay = jnp.where(share >= 0.75, 0.01, jnp.where(share >= 0.5, 0.1, 1.0))
        return peak * jnp.minimum(1.0, 10 * (count + 1) / DIGITS_PUSHES) * decay

    return rate


def test_directions_close_the_gap_on_digits():
    """At sequential SGD's rate, which ends at 0.003; asynchronous SGD at its own best one."""
    pytest.importorskip("sklearn")
    rate = digits_rate(1.114)
    compensate = dc.compensate_delay(
        1.0, curvature=dc.curvatures.rotated(16), max_pull=1.0, learning_rate=rate
    )
    assert digits_loss(optax.chain(compensate, optax.sgd(rate))) < 0.005
    assert digits_loss(optax.sgd(digits_rate(0.1669))) > 0.05


def outside_of_momentum(name):
    return dc.compensate_updates(
        optax.sgd(RATE, momentum=0.5),
        curvature=CURVATURES[name],
        learning_rate=RATE / (1 - 0.5),
    )


def in_the_steps_of(make, preconditioner, name):
    return dc.compensate_updates(
        make(RATE / 10),
        curvature=CURVATURES[name],
        learning_rate=RATE / 10,
        preconditioner=preconditioner,
    )


def outside_of_adam(name):
    return in_the_steps_of(optax.adam, dc.preconditioners.adam(), name)


def outside_of_muon(name):
    return in_the_steps_of(contrib.muon, dc.preconditioners.muon(every=2), name)


PLAIN = {
    outside_of_momentum: optax.sgd(RATE, momentum=0.5),
    outside_of_adam: optax.adam(RATE / 10),
    outside_of_muon: contrib.muon(RATE / 10),
}
outside_of_each = pytest.mark.parametrize("outside", PLAIN, ids=lambda make: make.__name__)


@each
@outside_of_each
def test_engines_agree_on_a_pull_outside(name, outside, x64):
    expected = run(outside(name))
    for engine in ENGINES.values():
        assert_close(run(outside(name), engine=engine).params, expected.params)
    told = run(dc.remember_pulls(outside(name), 4))
    assert_close(told.params, expected.params)
    plain = run(PLAIN[outside])
    assert np.abs(plain.params["square"] - expected.params["square"]).max() > 1e-3


def live(name, momentum=None):
    tx = dc.dcasgd(
        RATE, clients.NUM_WORKERS, curvature=CURVATURES[name], momentum=momentum, max_pull=1.0
    )
    return clients.Clients(tx)


@each
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_a_live_server_is_what_the_simulator_repeats(name, momentum):
    alive = live(name, momentum).run()
    assert alive.recorded().schedule.staleness.max() > 1
    same(alive.replay().params, alive.server.model.state.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outside", [outside_of_adam, outside_of_muon])
def test_a_live_server_pulls_in_the_steps_of(outside):
    tx = dc.remember_pulls(outside("rotated"), clients.NUM_WORKERS)
    alive = clients.Clients(tx).run()
    assert alive.recorded().schedule.staleness.max() > 1
    same(alive.replay().params, alive.server.model.state.params, rtol=1e-4, atol=1e-5)


@each
def test_a_live_server_is_saved_bit_for_bit(name):
    alive = live(name).run(until=13)
    again = restored(alive, alive.saved())
    chex.assert_trees_all_equal(again.model.state, alive.server.model.state)
    alive.server = again
    for worker in range(clients.NUM_WORKERS):
        alive.join(worker)
    alive.run(seed=2)
    assert alive.server.done
