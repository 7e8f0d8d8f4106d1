"""A checkpoint belongs to its data: other arrays are refused, whatever the change and where."""

from typing import Any

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import sim
from dcasgd_jax.sim import leaves

NUM_EVENTS = 30
TX = optax.sgd(0.1)
SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 2, NUM_EVENTS, seed=0)
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).integers(0, 12, (NUM_EVENTS, 4))


def loss_fn(w, batch):
    return jnp.mean((batch["x"] - w[None]) ** 2)


def train(directory, batches, stop=None):
    checkpoint = None if directory is None else sim.Checkpoint(directory, every=10)
    return calls.simulate(
        loss_fn, jnp.zeros(3), TX, SCHEDULE, batches, stop=stop, checkpoint=checkpoint
    )


def changed(array, index, by=1):
    array = np.array(array)
    array[index] += by
    return array


def indexed(x: Any = X, rows: Any = ROWS):
    return sim.Indexed({"x": x}, rows)


def arrays(x=X):
    return {"x": x[ROWS]}


def last_bit(array):
    bits = np.array(array)
    bits.view(np.uint32)[-1, -1] ^= 1
    return bits


OTHERS = {
    "all examples": (indexed, indexed(X + 5), r"examples\['x'\] differs"),
    "one bit": (indexed, indexed(last_bit(X)), r"examples\['x'\] differs"),
    "a row of the last event": (indexed, indexed(rows=changed(ROWS, (-1, -1), -1)), "rows differs"),
    "the type of the rows": (
        indexed,
        indexed(rows=ROWS.astype(np.int32)),
        r"rows was int64\[30, 4\] and is int32\[30, 4\] now",
    ),
    "one more example": (
        indexed,
        indexed(np.concatenate([X, X[:1]])),
        r"examples\['x'\] was float32\[12, 3\] and is float32\[13, 3\] now",
    ),
    "an element of the last batch": (
        arrays,
        {"x": changed(X[ROWS], (-1, -1, -1))},
        r"batches\['x'\] differs",
    ),
    "arrays of their own": (indexed, arrays(), r"examples\['x'\] was float32\[12, 3\] and is not"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_is_refused(name, tmp_path):
    make, others, difference = OTHERS[name]
    train(tmp_path / "run", make(), stop=20)
    with pytest.raises(
        ValueError, match=f"a checkpoint of another run. It has other data: {difference}"
    ):
        train(tmp_path / "run", others)
    result = train(tmp_path / "run", make())
    np.testing.assert_array_equal(result.params, train(None, make()).params)
    fresh = train(tmp_path / "new", others)
    np.testing.assert_array_equal(fresh.params, train(None, others).params)


def test_the_same_data_elsewhere_is_the_same(tmp_path):
    """On the device or the host, in another order of memory: what counts are the values."""
    train(tmp_path, indexed(), stop=10)
    train(tmp_path, indexed(jnp.asarray(X)), stop=20)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(X, jax.NamedSharding(mesh, jax.P("x")))
    assert leaves.digest_rows(sharded) == leaves.digest_rows(X)
    result = train(tmp_path, indexed(np.asfortranarray(X), ROWS.copy("F")))
    np.testing.assert_array_equal(result.params, train(None, indexed()).params)


def test_without_a_checkpoint_nothing_is_hashed(monkeypatch):
    monkeypatch.setattr(leaves, "digest_rows", lambda leaf: 1 / 0)
    train(None, indexed())


def test_arrays_in_a_batch_fn_are_compared_with_its_code(tmp_path):
    make = lambda x: lambda event, worker: {"x": jnp.asarray(x)[event % 12][None]}
    train(tmp_path, make(X), stop=10)
    with pytest.raises(ValueError, match="other code or settings: batch_fn differs"):
        train(tmp_path, make(changed(X, (-1, -1))))


@pytest.mark.parametrize("shape", [(1000, 5), (7, 300), (3, 0), (0, 3), (50,), (2, 2, 40)])
def test_every_element_is_in_the_fingerprint(shape, monkeypatch):
    monkeypatch.setattr(leaves, "_PIECE", 64)
    array = np.random.default_rng(0).integers(0, 100, shape).astype(np.int16)
    own = leaves.digest_rows(array)
    assert leaves.digest_rows(jnp.asarray(array)) == own
    assert leaves.digest_rows(np.asfortranarray(array)) == own
    assert leaves.digest_rows(array.astype(np.uint16)) != own
    for index in np.random.default_rng(1).permutation(array.size)[:50]:
        assert leaves.digest_rows(changed(array, np.unravel_index(index, shape))) != own
