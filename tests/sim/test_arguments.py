"""Arguments of another kind: the error names the argument and says what to write."""

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from dcasgd_jax import sim

SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 3, 20, seed=0)
MESH = jax.make_mesh((1,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
TX = optax.sgd(0.1)


def generate():
    """Batches one by one."""
    yield from zip(*problems.softmax_batches(20), strict=True)


RIGHT = dict(
    loss_fn=problems.softmax_loss,
    params=problems.softmax_params(),
    tx=TX,
    schedule=SCHEDULE,
    batches=problems.softmax_batches(20),
)
WRONG = {
    "an engine's name": (dict(engine="host"), r"engine must be an engine, such as .*, got 'host'"),
    "an engine's class": (dict(engine=sim.HostEngine), "the class HostEngine itself: call it, Ho"),
    "a directory": (dict(checkpoint="dir"), r"checkpoint must be .*sim\.Checkpoint\(.*got 'dir'"),
    "a checkpoint's class": (dict(checkpoint=sim.Checkpoint), r"call it, Checkpoint\(\.\.\.\)"),
    "tx not called": (dict(tx=optax.sgd), "tx must be .*, got the function sgd itself: call it"),
    "no tx": (dict(tx=None), "tx must be an optax transformation, .* got None"),
    "per_push not called": (dict(per_push=optax.sgd), r"per_push must be .*call it, sgd\(\.\.\.\)"),
    "MultiSteps": (
        dict(tx=optax.MultiSteps(optax.sgd(0.1), 2)),
        r"Call its method gradient_transformation\(\), and compensate before it",
    ),
    "a law": (dict(schedule=sim.GammaTime()), r"schedule must be a sim\.Schedule.*got GammaTime\("),
    "swapped batches": (
        dict(schedule=RIGHT["batches"], batches=SCHEDULE),
        "schedule and batches are swapped",
    ),
    "a generator": (
        dict(batches=generate),
        "is the .* generate itself: call it, batches=",
    ),
    "no metrics": (
        dict(metrics=3),
        "metrics must be a collection of names, .* got 3",
    ),
    "two schedules": (dict(batches=SCHEDULE), "batches is a sim.Schedule"),
    "swapped loss": (
        dict(loss_fn=RIGHT["params"], params=problems.softmax_loss),
        "loss_fn and params are swapped",
    ),
    "swapped tx": (dict(params=TX, tx=RIGHT["params"]), "params is an optax transformation"),
    "integers": (dict(params={"w": jnp.ones(3, int)}), r"params\['w'\] holds int32, which has no"),
    "no array": (dict(params={"w": "one"}), r"params\['w'\] must be an array, got 'one'"),
    "a seed": (dict(key=0), r"key must be one PRNG key, such as jax\.random\.key\(0\), got 0"),
    "keys": (dict(key=jax.random.split(jax.random.key(0), 2)), "key must be one PRNG key"),
    "a result": (dict(state=(1, 2)), r"state must be the state of a result, result\.state"),
    "a number": (dict(eval_fn=3), "eval_fn must be a function, got 3"),
    "progress": (dict(progress=True), "progress must be a function, got True"),
    "send": (dict(send="params"), "send must be a function, got 'params'"),
    "stop": (dict(stop=5.0), r"stop must be an integer >= 1, got 5\.0"),
    "trace_every": (dict(trace_every="2"), "Recording.every must be an integer >= 1, got '2'"),
    "eval_versions": (
        dict(eval_fn=len, eval_versions="all"),
        "eval_versions must be an integer >= 1, got 'all'",
    ),
    "an odd version": (
        dict(eval_fn=len, eval_versions=[1, 2.5]),
        r"eval_versions\[1\] must be .*, got 2\.5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_kind(name):
    wrong, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        calls.simulate(**{**RIGHT, **wrong})
    if {"checkpoint", "state", "stop"} & set(wrong):
        return
    of_members = ("params", "schedule", "batches")
    with pytest.raises(TypeError, match=message):
        calls.sweep(**{
            name: sim.PerMember([value, value]) if name in of_members else value
            for name, value in {**RIGHT, **wrong}.items()
        })  # fmt: skip


def test_an_unknown_policy_without_a_model_state():
    for simulate in (calls.simulate, calls.sweep):
        with pytest.raises(ValueError, match='must be "per_worker" or "server", got \'last\''):
            simulate(**RIGHT, model_state_policy="last")


def test_a_sweep_over_what_is_no_mapping():
    with pytest.raises(TypeError, match="hyperparams must be a dict of names and values"):
        calls.sweep(**RIGHT, hyperparams=[0.1, 0.2])


def test_keys_of_both_kinds():
    given = {**RIGHT, "loss_fn": problems.noisy_loss}
    new = calls.simulate(**given, key=jax.random.key(1))
    old = calls.simulate(**given, key=jax.random.PRNGKey(1))
    np.testing.assert_array_equal(old.losses, new.losses)


def square_loss(w, x):
    return jnp.mean((w - x) ** 2)


@pytest.mark.parametrize(("name", "wrong"), [("loss_fn", 1), ("tx", optax.sgd), ("params", "zero")])
def test_arguments_of_the_other_simulators(name, wrong):
    given = {"loss_fn": square_loss, "params": jnp.zeros(()), "tx": TX, name: wrong}
    trace = sim.random_memory_trace(2, num_blocks=1, num_jobs=5, seed=0)
    with pytest.raises(TypeError, match=f"{name} must be"):
        calls.simulate_shared_memory(**given, reads=trace, batches=np.ones((5, 3)))
    batches = sim.Indexed(np.ones(9), np.ones((20, 1), int))
    with pytest.raises(TypeError, match=f"{name} must be"):
        calls.svrg(**given, schedules=[SCHEDULE], batches=batches)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(law=None), "law must be a worker-time law, such as .*, got None"),
        (dict(law="gamma"), "law must be a worker-time law, such as .*, got 'gamma'"),
        (dict(law=sim.GammaTime), "law must be .* got the class GammaTime itself: call it, Gamma"),
        (dict(upload=1.0), "upload must be a worker-time law"),
        (dict(download="slow"), "download must be a worker-time law"),
        (dict(protocol=sim.Synchronous), "protocol must be .* class Synchronous itself: call it"),
        (dict(protocol="ssp"), "protocol must be a protocol, such as .*, got 'ssp'"),
        (dict(faults=sim.Crash(0, 1.0)), "faults must be .* Of a single one make a list"),
        (dict(faults=sim.Crash), "faults must be a sequence of faults, got the class Crash"),
        (dict(faults=[sim.Crash]), "A fault must be .*got the class Crash itself: call it"),
        (dict(num_workers=2.0), r"num_workers must be an integer >= 1, got 2\.0"),
        (dict(num_updates="9"), "num_updates must be an integer >= 1, got '9'"),
        (dict(seed=True), "seed must be an integer >= 0, got True"),
    ],
)
def test_arguments_of_make_schedule(wrong, message):
    right = dict(law=sim.GammaTime(), num_workers=2, num_updates=9, seed=0)
    with pytest.raises(TypeError, match=message):
        sim.make_schedule(**{**right, **wrong})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sim.GammaTime("fast"), "GammaTime.shape must be a number or one number per work"),
        (lambda: sim.MarkovTime(sim.GammaTime), "MarkovTime.law must be .* class GammaTime itself"),
        (lambda: sim.Crash(0, "noon"), "Crash.time must be a number, got 'noon'"),
        (lambda: sim.SlowDown(0, 0.0, 1.0, None), "SlowDown.factor must be a number, got None"),
        (lambda: sim.Buffered(2.0), r"Buffered\.num_pushes must be an integer >= 1, got 2\.0"),
        (lambda: sim.Schedule(["a"], [0]), "The schedule's worker must be numbers"),
        (lambda: sim.Schedule([0], [0], num_workers="1"), "num_workers must be an integer"),
        (lambda: sim.LanesEngine(MESH, lanes_per_device=1.5), "lanes_per_device must be an integ"),
    ],
)
def test_values_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_integers_of_numpy_are_integers():
    schedule = sim.make_schedule(
        sim.GammaTime(), np.int32(3), np.int64(20), seed=np.uint8(0),
        protocol=sim.DropStale(np.int8(9)),
    )  # fmt: skip
    assert schedule.num_updates == 20
    # Small ones do not overflow.
    buffered = sim.Buffered(np.int8(100))
    long = sim.make_schedule(sim.GammaTime(), np.int8(3), np.int8(100), seed=0, protocol=buffered)
    assert len(long) == 10_000
    result = calls.simulate(
        **{**RIGHT, "schedule": schedule}, stop=np.int32(9), trace_every=np.int64(2),
        engine=sim.ScanEngine(np.int16(4)), eval_fn=lambda w: w["b"][0], eval_versions=np.int32(3),
    )  # fmt: skip
    assert (len(result.losses), result.evaluations.version.tolist()) == (5, [3, 6, 9])
