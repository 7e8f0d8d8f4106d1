"""Sums over coordinates: right in blocks too, unbiased as estimates, and nothing written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_same
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dcasgd_jax as dc
from dcasgd_jax.transforms import rows, sums

SHAPES = [(64,), (3, 21), (2, 5, 7), (33,)]


@pytest.fixture(params=["blocks", "at once"])
def small_blocks(request, monkeypatch):
    """Blocks of four coordinates, on the path of a CPU or on that of other devices."""
    monkeypatch.setattr(sums, "BLOCK", 4)
    if request.param == "at once":
        default = lambda *args, default, **others: default(*args)
        monkeypatch.setattr(jax.lax, "platform_dependent", default)


def draw(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def products(a, b):
    return a * b, jnp.abs(a - b)


def exact(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sum(a * b), np.sum(np.abs(a - b))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jit", [False, True])
def test_in_blocks(shape, jit, small_blocks):
    a, many = draw(0, shape), draw(1, (3, *shape))
    summed = lambda number: sums.sum_coordinates(products, [a, rows.Row(many, number)])
    actual = (jax.jit(summed) if jit else summed)(jnp.int32(2))
    np.testing.assert_allclose(actual, exact(a, many[2]), rtol=1e-6, atol=1e-6)
    assert {total.dtype for total in actual} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [2, 3])
def test_estimates_are_right_on_average(shape, stride, small_blocks):
    a, b = draw(0, shape), draw(1, shape)
    estimate = jax.jit(
        lambda first: sums.sum_coordinates(products, [a, b], block_stride=stride, first_block=first)
    )
    estimates = np.asarray([estimate(jnp.int32(first)) for first in range(stride)])
    np.testing.assert_allclose(estimates.mean(axis=0), exact(a, b), rtol=1e-5, atol=1e-5)
    assert np.ptp(estimates, axis=0).min() > 0.01


def test_float64(x64, small_blocks):
    a, b = draw(0, (5, 9), jnp.float64), draw(1, (5, 9), jnp.float64)
    actual = sums.sum_coordinates(products, [a, rows.Row(b[None], 0)])
    np.testing.assert_allclose(actual, exact(a, b), rtol=1e-6)


def test_under_vmap(small_blocks):
    a, b = draw(0, (3, 6, 7)), draw(1, (3, 6, 7))
    of_one = lambda a, b, first: sums.sum_coordinates(
        products, [a, b], block_stride=2, first_block=first
    )
    first = jnp.asarray([0, 1, 1], jnp.int32)
    many = jax.jit(jax.vmap(of_one))(a, b, first)
    for member in range(3):
        one = of_one(a[member], b[member], first[member])
        np.testing.assert_allclose([total[member] for total in many], one, rtol=1e-6)


def mesh(axis_type):
    return jax.make_mesh((2,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:2])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_of_sharded_arrays(axis_type, small_blocks):
    a, b = draw(0, (6, 8)), draw(1, (6, 8))
    of_mesh = mesh(axis_type)
    with jax.set_mesh(of_mesh):
        spread = NamedSharding(of_mesh, PartitionSpec(None, "x"))
        given = jax.device_put((a, b), spread)
        actual = jax.jit(lambda a, b: sums.sum_coordinates(products, [a, b]))(*given)
    np.testing.assert_allclose(actual, exact(a, b), rtol=1e-6, atol=1e-6)


def test_inside_shard_map(small_blocks):
    a, b = draw(0, (2, 33)), draw(1, (2, 33))
    spec = PartitionSpec("x")

    @functools.partial(jax.shard_map, mesh=mesh(AxisType.Auto), in_specs=spec, out_specs=spec)
    def of_device(a, b):
        return jnp.stack(sums.sum_coordinates(products, [a, b]))[None]

    actual = jax.jit(of_device)(a, b)
    expected = [exact(a[i], b[i]) for i in range(2)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


PARAMS = {"a": draw(2, (3, 13)), "b": draw(3, (5,)), "none": draw(4, (20,))}
STALE = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(17 * leaf), PARAMS)
GRADS = {"a": draw(5, (3, 13)), "b": draw(6, (5,)), "none": draw(7, (20,))}
SETTINGS = {
    "adaptive": {"ms_decay": 0.9},
    "g2": {},
    "abs": {"curvature": "abs"},
    "fisher": {"curvature": "fisher"},
    "hvp": {"curvature": "hvp"},
}
TOLD = {
    "fisher_diagonal": jax.tree.map(jnp.square, STALE),
    "hessian_vector_product": lambda tangent: jax.tree.map(lambda leaf: 3 * leaf, tangent),
}


RULES = {
    "ratio": dc.ratio(0.5),
    "ratio of each leaf": dc.ratio(0.5, per_leaf=True),
    "capped share": dc.capped_share(0.3, gain=1.0),
}
# Exact products have no curvature of each coordinate, which the share is one of.
CHOICES = [
    (rule, name) for rule in RULES for name in SETTINGS if (rule, name) != ("capped share", "hvp")
]


@pytest.mark.parametrize(("rule", "name"), CHOICES)
def test_rules_choose_the_same_in_blocks(rule, name, monkeypatch):
    cap = {} if name == "hvp" else {"max_pull": 1.0, "learning_rate": 0.5}
    tx = dc.compensate_delay(RULES[rule], **SETTINGS[name], **cap)

    def train():
        state, outputs = tx.init(PARAMS), []
        for _ in range(3):
            update, state = tx.update(GRADS, state, PARAMS, stale_params=STALE, **TOLD)
            outputs.append(update)
        return outputs

    expected = train()
    monkeypatch.setattr(sums, "BLOCK", 4)
    assert_same(train(), expected, rtol=1e-5, atol=1e-6)


def test_leaves_without_a_gradient_do_not_count(monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 4)
    tx = dc.compensate_delay(dc.ratio(0.5), ms_decay=0.9)
    grads = {**GRADS, "none": None}
    compensated, _ = tx.update(grads, tx.init(PARAMS), PARAMS, stale_params=STALE)
    assert compensated.pop("none") is None
    given = {name: GRADS[name] for name in compensated}
    added = optax.tree.norm(jax.tree.map(jnp.subtract, compensated, given))
    assert float(added / optax.tree.norm(given)) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    "tx",
    [
        dc.dcasgd(0.1, num_workers=2),
        dc.dcasgd(0.1, num_workers=2, lambda0=dc.ratio(0.5)),
        dc.dcasgd(0.1, num_workers=2, lambda0=dc.ratio(0.5, block_stride=4)),
        dc.dcasgd(0.1, num_workers=2, lambda0=dc.ratio(0.5), ms_decay=None, curvature="abs"),
        dc.dcasgd(0.1, num_workers=2, lambda0=dc.capped_share(0.1), max_pull=1.0),
    ],
    ids=["number", "ratio", "part of the ratio", "ratio of abs", "capped share"],
)
def test_a_step_needs_no_memory_of_the_size_of_the_parameters(tx):
    """Large temporaries are what made rules three times as slow as a number."""
    params = {"large": jnp.ones((1100, 1000)), "small": jnp.ones(10)}

    def step(params, state, grads, worker):
        updates, state = tx.update(grads, state, params, worker=worker)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, tx.init(params), params, jnp.int32(0)
    )
    temporary = compiled.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.25 * 4 * params["large"].size
