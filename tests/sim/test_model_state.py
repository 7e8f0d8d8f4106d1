"""Mutable model state: one per worker, or one on the server where the last push wins."""

import calls
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import schedule_for

from dcasgd_jax import sim

DECAY = 0.8
ENGINES = [sim.ScanEngine(chunk_size=7), sim.HostEngine()]
MESH = jax.make_mesh((2,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
ALL_ENGINES = [*ENGINES, sim.HostEngine(jit=False), sim.LanesEngine(MESH)]


def normalised_loss(params, model_state, batch):
    """Softmax regression on batch-normalised inputs, with running statistics and a counter."""
    images, labels = batch
    mean = images.mean(axis=0)
    new = {
        "mean": DECAY * model_state["mean"] + (1 - DECAY) * mean,
        "count": model_state["count"] + 1,
    }
    return problems.softmax_loss(params, (images - mean[None], labels)), new


def model_state(dtype=np.float32):
    return {"mean": jnp.ones(6, dtype), "count": jnp.int32(0)}


def simulate(schedule, policy, *, tx=None, dtype=np.float64, loss_fn=normalised_loss, **options):
    return calls.simulate(
        loss_fn,
        problems.softmax_params(dtype),
        tx or problems.adaptive(),
        schedule,
        problems.softmax_batches(len(schedule), dtype),
        model_state=model_state(dtype),
        model_state_policy=policy,
        **options,
    )


def input_mean(schedule, k):
    return problems.softmax_batches(len(schedule), np.float64)[0][k].mean(axis=0)


SCHEDULES = {
    "asynchronous": {},
    "dropping": dict(protocol=sim.DropStale(2)),
    "synchronous": dict(protocol=sim.Synchronous(), num_updates=8),
}


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_worker_keeps_its_own(name, engine, x64):
    schedule = schedule_for(**{"num_updates": 30, **SCHEDULES[name]})
    result = simulate(schedule, "per_worker", engine=engine)
    means = np.ones((4, 6))
    for k in range(len(schedule)):
        worker = schedule.worker[k]
        means[worker] = DECAY * means[worker] + (1 - DECAY) * input_mean(schedule, k)
    np.testing.assert_allclose(result.state.model_state["mean"], means, rtol=1e-12)
    np.testing.assert_allclose(result.model_state["mean"], means.mean(axis=0), rtol=1e-12)
    pushes = np.bincount(schedule.worker, minlength=4)
    assert result.state.model_state["count"].tolist() == pushes.tolist()
    assert int(result.model_state["count"]) == pushes[0]


@pytest.mark.parametrize("engine", ALL_ENGINES, ids=lambda engine: type(engine).__name__)
def test_who_has_not_pushed_does_not_count(engine, x64):
    """Statistics that were never updated would be averaged with those of the model."""
    faults = [sim.LateJoin(0, 6.0), sim.LateJoin(1, 1e6)]
    schedule = sim.make_schedule(sim.ConstantTime(1.0), 4, 20, seed=0, faults=faults)
    assert set(schedule.worker[:10].tolist()) == {2, 3}
    assert set(schedule.worker.tolist()) == {0, 2, 3}
    recording = sim.Recording(eval_versions=1)
    result = simulate(
        schedule, "per_worker", engine=engine, recording=recording,
        eval_fn=lambda params, state: state,
    )  # fmt: skip
    means, counts, has_pushed = np.ones((4, 6)), np.zeros(4, int), np.zeros(4, bool)
    for k, worker in enumerate(schedule.worker.tolist()):
        means[worker] = DECAY * means[worker] + (1 - DECAY) * input_mean(schedule, k)
        counts[worker] += 1
        has_pushed[worker] = True
        told = jax.tree.map(lambda leaf: leaf[k], result.evaluations.values)  # noqa: B023
        np.testing.assert_allclose(told["mean"], means[has_pushed].mean(axis=0), rtol=1e-12)
        assert told["count"] == counts[has_pushed][0]
    np.testing.assert_allclose(result.model_state["mean"], told["mean"], rtol=1e-12)
    assert np.abs(told["mean"] - means.mean(axis=0)).max() > 1e-3  # what it was
    half = simulate(schedule, "per_worker", engine=engine, stop=9)
    whole = simulate(schedule, "per_worker", engine=engine, state=half.state)
    np.testing.assert_allclose(whole.model_state["mean"], told["mean"], rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("name", SCHEDULES)
def test_on_the_server_the_last_push_wins(name, engine, x64):
    schedule = schedule_for(**{"num_updates": 30, **SCHEDULES[name]})
    result = simulate(schedule, "server", engine=engine)
    # versions[v]: the statistics that a worker gets when it pulls version v.
    versions, current, count = [(np.ones(6), 0)], np.ones(6), 0
    for k in range(len(schedule)):
        mean, read_count = versions[schedule.read_version[k]]
        if schedule.applied[k]:
            current = DECAY * mean + (1 - DECAY) * input_mean(schedule, k)
            count = read_count + 1
        if k + 1 == len(schedule) or schedule.version[k + 1] > schedule.version[k]:
            versions.append((current, count))
    np.testing.assert_allclose(result.model_state["mean"], versions[-1][0], rtol=1e-12)
    assert int(result.model_state["count"]) == versions[-1][1]
    if name == "asynchronous":  # most pushes are overwritten by one that did not see them
        assert versions[-1][1] < len(schedule) / 2


def test_the_params_do_not_depend_on_the_policy_when_the_loss_does_not():
    schedule = schedule_for()
    per_worker, server = (simulate(schedule, p, dtype=np.float32) for p in ("per_worker", "server"))
    chex.assert_trees_all_close(per_worker.params, server.params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_going_on_keeps_the_model_state(policy, engine):
    schedule = schedule_for()
    options = dict(dtype=np.float32, engine=engine, tx=problems.adaptive())
    whole = simulate(schedule, policy, **options)
    first = simulate(schedule, policy, **options, stop=28)
    second = simulate(schedule, policy, **options, state=first.state)
    chex.assert_trees_all_close(second.state, whole.state, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_dropout_keys_are_folded_with_the_event(policy):
    keys = []

    def loss_fn(params, state, batch, key):
        jax.debug.callback(lambda k: keys.append(tuple(k.tolist())), jax.random.key_data(key))
        return normalised_loss(params, state, batch)

    schedule = schedule_for(num_updates=9)
    simulate(
        schedule, policy, dtype=np.float32, loss_fn=loss_fn, key=jax.random.key(5),
        engine=sim.ScanEngine(),
    )  # fmt: skip
    jax.effects_barrier()
    fold = lambda k: tuple(jax.random.key_data(jax.random.fold_in(jax.random.key(5), k)).tolist())
    assert sorted(keys) == sorted(fold(k) for k in range(9))


def test_a_push_delivered_twice_has_the_same_key_and_batch():
    schedule = schedule_for(num_updates=12)
    twice = sim.make_schedule(
        sim.ExponentialTime(), 4, 12, seed=0, faults=[sim.DuplicatedPush(0, 0)]
    )
    k = int(np.flatnonzero(twice.batch != np.arange(len(twice)))[0])
    result = calls.simulate(
        problems.noisy_loss, problems.softmax_params(), optax.sgd(0.1), twice,
        problems.softmax_batches(len(twice)), key=jax.random.key(0),
    )  # fmt: skip
    assert result.losses[k] == result.losses[k - 1]
    once = calls.simulate(
        problems.noisy_loss, problems.softmax_params(), optax.sgd(0.1), schedule,
        problems.softmax_batches(12), key=jax.random.key(0),
    )  # fmt: skip
    assert once.losses[k] != once.losses[k - 1]


def doubling_loss(params, factor, batch):
    """Doubles its model state at every gradient, which is the gradient."""
    return 2 * factor * (params + batch), 2 * factor


def double(schedule, engine=None, **options):
    return calls.simulate(
        doubling_loss, jnp.zeros(()), optax.sgd(-1.0), schedule,
        np.ones(len(schedule), np.float32), engine=engine,
        model_state=jnp.ones(()), **options,
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["per_worker", "server"])
@pytest.mark.parametrize("engine", ALL_ENGINES, ids=lambda engine: type(engine).__name__)
def test_a_second_delivery_is_the_same_gradient(engine, policy):
    twice = sim.make_schedule(sim.RoundRobin(), 1, 2, seed=0, faults=[sim.DuplicatedPush(0, 0)])
    result = double(twice, engine, model_state_policy=policy)
    assert (result.losses.tolist(), result.params, result.model_state) == ([2, 2], 4, 2)


def literal_doubling(schedule):
    """Params and model states: a second delivery hands over what the first one did."""
    states, pushes = [1.0] * schedule.num_workers, []
    for k in range(len(schedule)):
        worker, repeated = schedule.worker[k], schedule.batch[k]
        if repeated == k:
            states[worker] *= 2
            pushes.append(states[worker])
        else:
            pushes.append(pushes[repeated])
    return sum(pushes), np.float32(np.mean(states))


@pytest.mark.parametrize("engine", ALL_ENGINES, ids=lambda engine: type(engine).__name__)
def test_second_deliveries_among_others(engine):
    faults = [sim.DuplicatedPush(0, 1), sim.DuplicatedPush(2, 0), sim.DuplicatedPush(2, 1)]
    schedule = sim.make_schedule(sim.ExponentialTime(), 3, 14, seed=1, faults=faults)
    assert schedule.repeats.sum() == 3
    params, model_state = literal_doubling(schedule)
    result = double(schedule, engine)
    assert (result.params, result.model_state) == pytest.approx((params, model_state))


def test_second_deliveries_of_some_members_of_a_sweep():
    twice = [sim.DuplicatedPush(2, 1)]
    schedules = [
        sim.make_schedule(sim.ExponentialTime(), 3, 14, seed=1, faults=faults)
        for faults in ([], twice)
    ]
    result = calls.sweep(
        doubling_loss, jnp.zeros(()), optax.sgd(-1.0), sim.PerMember(schedules),
        np.ones(14, np.float32), model_state=jnp.ones(()),
    )  # fmt: skip
    for i, schedule in enumerate(schedules):
        expected = literal_doubling(schedule)
        assert (result.params[i], result.model_state[i]) == pytest.approx(expected)
        going_on = double(schedule, stop=7).state
        assert double(schedule, state=going_on).params == expected[0]


def test_going_on_between_two_deliveries():
    schedule = sim.make_schedule(
        sim.ExponentialTime(), 3, 9, seed=1, faults=[sim.DuplicatedPush(0, 1)]
    )
    event = int(np.flatnonzero(schedule.repeats)[0])
    whole, first = double(schedule), double(schedule, stop=event)
    second = double(schedule, state=first.state)
    assert second.params == whole.params == literal_doubling(schedule)[0]


def test_only_the_last_gradient_of_a_worker_is_repeated():
    schedule = sim.Schedule([0, 0, 0], [0, 1, 0], batch=[0, 1, 0])
    with pytest.raises(ValueError, match=r"Event 2 repeats event 0, .* since \(event 1\)"):
        double(schedule)
    assert double(schedule, model_state_policy="server").losses.tolist() == [2, 12, 2]


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: {"mean": state["mean"]},
        lambda state: {**state, "mean": state["mean"][:3]},
        lambda state: {**state, "count": state["count"].astype(jnp.float32)},
    ],
    ids=["a leaf is missing", "shape", "dtype"],
)
@pytest.mark.parametrize("engine", [None, *ENGINES], ids=repr)
def test_a_loss_that_returns_another_model_state(broken, engine):
    def loss_fn(params, state, batch):
        loss, new = normalised_loss(params, state, batch)
        return loss, broken(new)

    with pytest.raises(ValueError, match=r"must return .* shaped as it was given"):
        simulate(schedule_for(), "server", dtype=np.float32, loss_fn=loss_fn, engine=engine)


def test_an_unknown_policy():
    with pytest.raises(ValueError, match='must be "per_worker" or "server", got \'last\''):
        simulate(schedule_for(), "last", dtype=np.float32)


def test_a_state_without_model_state_cannot_go_on_with_it():
    schedule = schedule_for()
    bare = problems.run(schedule, optax.sgd(0.1), stop=5).state
    with pytest.raises(ValueError, match="was made without model_state, but this call is with it"):
        simulate(schedule, "server", dtype=np.float32, state=bare)
