"""What simulate refuses, before any work starts."""

import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import dcasgd_jax as dc
from dcasgd_jax import sim

SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 3, 20, seed=0)


def simulate(schedule=SCHEDULE, batches=None, loss_fn=problems.softmax_loss, tx=None, **options):
    def untouched(*arguments):
        raise AssertionError("work started")

    options.setdefault("progress", untouched)
    batches = problems.softmax_batches(len(schedule)) if batches is None else batches
    return sim.simulate(
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


@pytest.mark.parametrize(
    ("batches", "message"),
    [({}, "holds no arrays"), ({"x": np.float32(1.0)}, r"batches\['x'\] is a scalar")],
)
def test_batches_without_events(batches, message):
    with pytest.raises(ValueError, match=message):
        simulate(batches=batches)


@pytest.mark.parametrize("stop", [0, 21, -1])
def test_nothing_to_run(stop):
    with pytest.raises(ValueError, match=f"stop is {stop}, and the schedule has 20 events"):
        simulate(stop=stop)


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
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1"):
        make(chunk_size=chunk_size)


@pytest.mark.parametrize(
    "tx",
    [
        dc.dcasgd(0.1, num_workers=2),
        dc.compensate_delay(1.0, ms_decay=0.9, num_workers=2),
        dc.compensate_worker_delay(1.0, num_workers=2),
        optax.masked(
            dc.compensate_delay(1.0, ms_decay=0.9, num_workers=2),
            {"w": True, "b": False},
            mask_compatible_extra_args=True,
        ),
    ],
    ids=["alias", "mean square", "backups", "masked"],
)
@pytest.mark.parametrize("where", ["tx", "per_push"])
def test_an_optimizer_for_fewer_workers(tx, where):
    """A traced worker out of range would silently use the last row."""
    with pytest.raises(ValueError, match="num_workers=2, but the schedule has 3 workers"):
        simulate(**{where: tx})
