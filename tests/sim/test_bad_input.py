"""What simulate refuses, before any work starts."""

import calls
import compensations
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from dcasgd_jax import sim

SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 3, 20, seed=0)


def simulate(schedule=SCHEDULE, batches=None, loss_fn=problems.softmax_loss, tx=None, **options):
    def untouched(*arguments):
        raise AssertionError("work started")

    options.setdefault("progress", untouched)
    batches = problems.softmax_batches(len(schedule)) if batches is None else batches
    return calls.simulate(
        loss_fn, problems.softmax_params(), tx or optax.sgd(0.1), schedule, batches, **options
    )


def test_batches_shorter_than_the_schedule():
    images, labels = problems.softmax_batches(20)
    with pytest.raises(ValueError, match=r"batches\[1\] has 19 rows, but the run has 20 events"):
        simulate(batches=(images, labels[:19]))


def test_synchronous_batches_are_counted_per_push():
    schedule = sim.make_schedule(sim.ExponentialTime(), 3, 20, seed=0, protocol=sim.Synchronous())
    with pytest.raises(ValueError, match="has 20 rows, but the run has 60 events"):
        simulate(schedule, batches=problems.softmax_batches(20))


DATA_SET = (np.zeros((1797, 8, 6)), np.zeros((1797, 8), int))


@pytest.mark.parametrize("stop", [None, 5])
def test_a_data_set_in_the_place_of_batches(stop):
    """Its examples would be trained on one by one."""
    message = r"batches\[0\] has 1797 rows, but there are 20 events in all\. A row is the batch of "
    with pytest.raises(ValueError, match=message + r"one event, .*batches=sim\.Indexed\("):
        simulate(batches=DATA_SET, stop=stop)
    with pytest.raises(ValueError, match=message):
        calls.sweep(
            problems.softmax_loss, problems.softmax_params(), optax.sgd(0.1),
            sim.PerMember([SCHEDULE]), DATA_SET,
        )  # fmt: skip


def test_the_remedy_for_a_data_set():
    """What the message says to write, written."""
    X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    y = X[:, :3].argmax(axis=1)
    rows = sim.ShardedEpochs(len(X), 8, 3, 0).rows(SCHEDULE)
    result = simulate(batches=sim.Indexed((X, y), rows), progress=None)
    expected = simulate(batches=(X[rows], y[rows]), progress=None)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5)
    # Rows for more events than there are say what they are.
    longer = np.concatenate([rows, rows])
    again = simulate(batches=sim.Indexed((X, y), longer), progress=None)
    np.testing.assert_array_equal(again.losses, result.losses)


@pytest.mark.parametrize("stop", [5, 20])
def test_batches_of_all_events_go_with_any_stop(stop):
    assert len(simulate(stop=stop, progress=None).losses) == stop


def test_a_data_set_in_the_place_of_batches_of_shared_memory():
    trace = sim.random_memory_trace(2, num_blocks=1, num_jobs=5, seed=0)
    tx, loss_fn = optax.sgd(0.1), lambda w, x: jnp.sum((w - x) ** 2)
    run = lambda batches: calls.simulate_shared_memory(loss_fn, jnp.zeros(()), tx, trace, batches)
    assert len(run(np.ones(5)).losses) == 5
    with pytest.raises(ValueError, match="batches has 100 rows, but there are"):
        run(np.ones(100))


@pytest.mark.parametrize(
    ("batches", "message"),
    [({}, "holds no arrays"), ({"x": np.float32(1.0)}, r"batches\['x'\] is a scalar")],
)
def test_batches_without_events(batches, message):
    with pytest.raises(ValueError, match=message):
        simulate(batches=batches)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (0, "stop must be an integer >= 1, got 0"),
        (-1, "stop must be an integer >= 1, got -1"),
        (21, "stop=21 is past the end: the schedule has 20 events"),
    ],
)
def test_stops_outside_the_schedule(stop, message):
    with pytest.raises(ValueError, match=message):
        simulate(stop=stop)


def test_a_stop_that_has_been_passed():
    state = simulate(progress=None, stop=9).state
    with pytest.raises(ValueError, match="the state is at event 9, stop is 9, and the schedule"):
        simulate(state=state, stop=9)


def test_a_finished_state_cannot_go_on():
    finished = simulate(progress=None).state
    with pytest.raises(ValueError, match="the state is at event 20"):
        simulate(state=finished)


def test_a_state_of_another_schedule():
    state = simulate(progress=None, stop=5).state
    other = sim.make_schedule(sim.ExponentialTime(), 6, 20, seed=0)
    with pytest.raises(ValueError, match="belongs to another schedule: the first 5 events"):
        simulate(other, state=state)


def test_averaged_pushes_of_different_versions():
    mixed = sim.Schedule([0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"averaged into update 1 .*\(event 3\)"):
        simulate(mixed, tx=problems.adaptive())


def test_measuring_without_a_compensating_transformation():
    with pytest.raises(ValueError, match="holds no compensating transformation"):
        simulate(metrics=["compensation_ratio"])


def test_an_unhashable_loss():
    class Loss:
        __hash__ = None

        def __call__(self, params, batch):
            return jnp.zeros(())

    with pytest.raises(TypeError, match="loss_fn cannot be hashed"):
        simulate(loss_fn=Loss())


@pytest.mark.parametrize("make", [sim.ScanEngine, sim.HostEngine])
@pytest.mark.parametrize("chunk_size", [0, -3, 2.5])
def test_chunk_sizes(make, chunk_size):
    with pytest.raises((TypeError, ValueError), match="chunk_size must be an integer >= 1"):
        make(chunk_size=chunk_size)


@pytest.mark.parametrize(
    "tx",
    [
        compensations.dcasgd(0.1, num_workers=2),
        compensations.explicit(1.0, ms_decay=0.9, num_workers=2),
        compensations.per_worker(1.0, num_workers=2),
        optax.masked(
            compensations.explicit(1.0, ms_decay=0.9, num_workers=2),
            {"w": True, "b": False},
            mask_compatible_extra_args=True,
        ),
    ],
    ids=["alias", "mean square", "backups", "masked"],
)
@pytest.mark.parametrize("where", ["tx", "per_push"])
def test_an_optimizer_for_fewer_workers(tx, where):
    """A traced worker out of range would silently use the last row."""
    with pytest.raises(ValueError, match="num_workers=2, but there are 3 workers"):
        simulate(**{where: tx})


@pytest.mark.parametrize(
    ("loss_fn", "given", "message"),
    [
        (
            lambda w, x, key: w.sum(),
            {},
            r"called with \(params, batch\), .* its \(w, x, key\)\. A rand",
        ),
        (lambda w: w.sum(), {}, r"called with \(params, batch\), which does not fit its \(w\)"),
        (lambda w, x: w.sum(), {"model_state": {}}, r"called with \(params, model_state, batch\)"),
        (
            lambda w, x: (w.sum(), {}),
            {},
            "must return a scalar alone, as its Problem has no model st",
        ),
        (
            lambda w, s, x: w.sum(),
            {"model_state": {}},
            "must return the loss and the model state, as",
        ),
    ],
)
def test_a_loss_of_another_form_is_told_its_own(loss_fn, given, message):
    problem = sim.Problem(loss_fn, jnp.zeros(3), **given)
    schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=4, seed=0)
    with pytest.raises(TypeError, match=message):
        sim.simulate(problem, optax.sgd(0.1), schedule, jnp.ones((4, 3)))


def test_a_list_of_batches_is_a_tree():
    problem = sim.Problem(lambda w, x: ((w - x) ** 2).sum(), jnp.zeros(3))
    schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=4, seed=0)
    batches = [jnp.ones(3)] * 4
    with pytest.raises(ValueError, match=r"of a list of batches pass iter\(batches\)"):
        sim.simulate(problem, optax.sgd(0.1), schedule, batches)
    assert sim.simulate(problem, optax.sgd(0.1), schedule, iter(batches)).losses[-1] < 3
