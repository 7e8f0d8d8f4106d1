"""Going on from a state: with the same schedule, a longer one, and what is refused."""

import calls
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import sim

MESH = jax.make_mesh((2,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
TX = optax.sgd(0.3)
BATCHES = np.random.default_rng(0).normal(size=(400, 2))


def loss_fn(params, batch):
    return jnp.sum(jnp.sin(params - batch) ** 2)


def train(schedule, **options):
    batches = BATCHES[: len(schedule)]
    return calls.simulate(loss_fn, np.ones(2), TX, schedule, batches, **options)


def make(num_updates, seed, num_workers=4, law=None, **options):
    law = law or sim.ExponentialTime()
    return sim.make_schedule(law, num_workers, num_updates, seed=seed, **options)


def go_on(schedule, state, **options):
    """The result; None if the schedule needs what the state does not hold."""
    try:
        return train(schedule, state=state, **options)
    except ValueError as error:
        if "the state no longer holds" in str(error):
            return None
        raise


def assert_equal_runs(result, whole):
    """The end of a run and the whole run."""
    chex.assert_trees_all_close(result.params, whole.params, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(result.losses, whole.losses[-len(result.losses) :], rtol=1e-11)


CASES = {
    "asynchronous": dict(num_workers=2),
    "overlapping": dict(num_workers=2, protocol=sim.Asynchronous(overlap=True)),
    "dropping": dict(num_workers=2, protocol=sim.DropStale(3)),
    "buffered": dict(protocol=sim.Buffered(3)),
    "synchronous": dict(protocol=sim.Synchronous(1)),
    "stale synchronous": dict(protocol=sim.StaleSynchronous(1)),
    "stragglers": dict(num_workers=3, law=sim.ParetoTime(1.1)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_longer_schedule_goes_on_right_or_not_at_all(name, x64):
    gone_on = 0
    for seed in range(15):
        short, long = (make(n, seed, **CASES[name]) for n in (20, 40))
        result, whole = go_on(long, train(short).state), train(long)
        gone_on += result is not None
        if result is None:
            result = train(long, state=train(long, stop=len(short)).state)
        assert_equal_runs(result, whole)
    assert 0 < gone_on < 15


WAITING = CASES["stale synchronous"]


def more_slots(seed):
    short, long = (make(n, seed, **WAITING) for n in (20, 40))
    return short.num_slots < long.num_slots


@pytest.mark.parametrize("engine", [sim.HostEngine(), sim.LanesEngine(MESH)], ids=["host", "lanes"])
def test_a_longer_schedule_may_need_more_slots(engine, x64):
    gone_on = 0
    for seed in filter(more_slots, range(30)):
        short, long = (make(n, seed, **WAITING) for n in (20, 40))
        result = go_on(long, train(short, engine=engine).state, engine=engine)
        if result is not None:
            gone_on += 1
            assert_equal_runs(result, train(long))
    assert gone_on


def test_schedules_of_several_lengths(x64):
    """What the slots hold is known after every one of them."""
    steps = 0
    for seed in range(20):
        state = None
        for length in (10, 14, 19, 30, 45):
            schedule = make(length, seed, **WAITING)
            result = go_on(schedule, state)
            if result is None:
                break
            steps += state is not None
            state = result.state
            assert_equal_runs(result, train(schedule))
    assert steps > 10


def test_members_of_a_sweep_go_on_with_longer_schedules(x64):
    schedules = [(make(20, seed, **WAITING), make(40, seed, **WAITING)) for seed in range(12)]
    short = sim.PerMember([short for short, _ in schedules])
    result = calls.sweep(loss_fn, np.ones(2), TX, short, BATCHES[:20])
    gone_on = 0
    for i, (_, long) in enumerate(schedules):
        rest = go_on(long, result.member(i).state)
        if rest is not None:
            gone_on += 1
            assert_equal_runs(rest, train(long))
    assert gone_on


def test_another_schedule_with_as_many_slots_is_refused():
    one, other = make(40, 0), make(40, 1)
    assert one.num_slots == other.num_slots
    with pytest.raises(ValueError, match="the first 20 events of this one are not those"):
        train(other, state=train(one, stop=20).state)


def test_a_state_without_its_origin_is_refused():
    schedule = make(40, 0)
    state = train(schedule, stop=20).state._replace(origin=None)
    with pytest.raises(ValueError, match="pass the state of a result as it is"):
        train(schedule, state=state)


def test_a_state_may_travel_as_a_tree():
    """Saved by other means, it comes back as arrays of some kind."""
    schedule = make(40, 0)
    state = jax.tree.map(jnp.asarray, train(schedule, stop=20).state)
    chex.assert_trees_all_close(train(schedule, state=state).params, train(schedule).params)


def test_the_origin_is_not_carried_through_the_events():
    seen = []

    class Engine(sim.ScanEngine):
        def run(self, run, state, progress):
            seen.append(state.origin)
            return super().run(run, state, progress)

    schedule = make(10, 0)
    state = train(schedule, stop=5, engine=Engine()).state
    train(schedule, state=state, engine=Engine())
    assert seen == [None, None]


def test_a_repetition_of_what_the_state_does_not_hold():
    plain = sim.Schedule([0, 1], [0, 0])
    twice = sim.Schedule([0, 1, 1], [0, 0, 0], batch=[0, 1, 1])
    options = dict(model_state=np.ones(()))
    loss = lambda params, factor, batch: (jnp.sum(params * batch) * factor, factor * 2)
    run = lambda schedule, **more: calls.simulate(
        loss, np.ones(2), TX, schedule, BATCHES[: len(schedule)], **options, **more
    )
    with pytest.raises(ValueError, match="Event 2 repeats event 1, but the state does not hold"):
        run(twice, state=run(plain).state)
    whole = run(twice)
    chex.assert_trees_all_close(run(twice, state=run(twice, stop=2).state).params, whole.params)
