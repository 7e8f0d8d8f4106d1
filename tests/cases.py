"""One table of every transformation, for the tests that hold for all of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc

NUM_WORKERS = 3
STEPS = range(5)


def params(dtype=jnp.float32):
    """A nested tree with a matrix and a scalar; small, because every test compiles it."""
    return {"dense": {"kernel": _draw(0, (4, 3), dtype)}, "scale": _draw(1, (), dtype)}


def grads(step, like):
    """The gradients of one step: numbers of order 1, the same for every transformation."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [_draw(100 * (step + 1) + i, p.shape, p.dtype) for i, p in enumerate(leaves)]
    return structure.unflatten(drawn)


def stale(step, tree):
    """Some stale parameters: `tree`, moved by an amount that differs from step to step."""
    return jax.tree.map(lambda p: (p - (0.1 * step + 0.1)).astype(p.dtype), tree)


def worker(step):
    """An irregular order of `NUM_WORKERS` workers."""
    return jnp.asarray((0, 1, 0, 2, 2, 1, 0, 1)[step % 8], jnp.int32)


def _draw(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    update_kwargs: Callable[[Any, Any], dict[str, Any]]  # (step, params) -> extra arguments
    static_args: tuple[str, ...] = ()  # of optax.inject_hyperparams

    @property
    def jit(self):
        """Whether a loop is faster jitted: a `lax.cond` outside of jit compiles at every call."""
        return self.name.startswith("delay_gradients") or "rotated" in self.name

    def make(self, **overrides):
        return self.factory(**{**self.kwargs, **overrides})


def _by_argument(step, tree):
    return {"stale_params": stale(step, tree)}


def _by_argument_and_worker(step, tree):
    return {"stale_params": stale(step, tree), "worker": worker(step)}


def _by_worker(step, tree):
    del tree
    return {"worker": worker(step)}


def _by_age(step, tree):
    del step, tree
    return {}


def _delayed_sgd(lambda0, delay, learning_rate=0.1):
    inner = optax.chain(compensations.explicit(lambda0), optax.sgd(learning_rate, momentum=0.9))
    return dc.delay_gradients(inner, delay)


_WORKERS = {"num_workers": NUM_WORKERS}
_CAP = {"max_pull": 0.5, "learning_rate": 0.1}
_PER_LEAF = {"dense": 2, "scale": 1}  # a prefix of the parameter tree

CASES = [
    Case("explicit", compensations.explicit, {"lambda0": 2.0}, _by_argument),
    Case(
        "explicit_adaptive",
        compensations.explicit,
        {"lambda0": 2.0, "ms_decay": 0.9},
        _by_argument,
    ),
    Case(
        "explicit_adaptive_per_worker",
        compensations.explicit,
        {"lambda0": 2.0, "ms_decay": 0.9, **_WORKERS},
        _by_argument_and_worker,
        ("num_workers",),
    ),
    Case(
        "rotated",
        compensations.rotated,
        {"lambda0": 2.0, "batch_size": 2},
        _by_argument,
        ("batch_size", "every", "sides"),
    ),
    Case(
        "rotated_input_capped",
        compensations.rotated,
        {"lambda0": 50.0, "batch_size": 2, "sides": "input", **_CAP},
        _by_argument,
        ("batch_size", "every", "sides"),
    ),
    Case(
        "rows", compensations.rows, {"lambda0": 2.0, "batch_size": 2}, _by_argument, ("batch_size",)
    ),
    Case("explicit_capped", compensations.explicit, {"lambda0": 50.0, **_CAP}, _by_argument),
    Case(
        "worker",
        compensations.per_worker,
        {"lambda0": 2.0, **_WORKERS},
        _by_worker,
        ("num_workers", "per_worker_mean_square"),
    ),
    Case(
        "worker_adaptive",
        compensations.per_worker,
        {"lambda0": 2.0, "ms_decay": 0.9, **_WORKERS},
        _by_worker,
        ("num_workers", "per_worker_mean_square"),
    ),
    Case(
        "worker_adaptive_per_worker",
        compensations.per_worker,
        {"lambda0": 2.0, "ms_decay": 0.9, "per_worker_mean_square": True, **_WORKERS},
        _by_worker,
        ("num_workers", "per_worker_mean_square"),
    ),
    Case(
        "fixed_delay",
        compensations.fixed_delay,
        {"lambda0": 2.0, "delay": 2},
        _by_age,
        ("delay",),
    ),
    Case(
        "fixed_delay_per_leaf",
        compensations.fixed_delay,
        {"lambda0": 2.0, "delay": _PER_LEAF, "ms_decay": 0.9},
        _by_age,
        ("delay",),
    ),
    Case(
        "fixed_delay_callable",
        compensations.fixed_delay,
        {"lambda0": 2.0, "delay": lambda tree: jax.tree.map(lambda p: p.ndim, tree)},
        _by_age,
        ("delay",),
    ),
    Case("delay_gradients", _delayed_sgd, {"lambda0": 2.0, "delay": 2}, _by_age, ("delay",)),
    Case(
        "delay_gradients_per_leaf",
        _delayed_sgd,
        {"lambda0": 2.0, "delay": _PER_LEAF},
        _by_age,
        ("delay",),
    ),
    Case(
        "dcasgd",
        dc.dcasgd,
        {"learning_rate": 0.1, **_WORKERS},
        _by_worker,
        ("num_workers", "nesterov"),
    ),
    Case(
        "rotated_dcasgd",
        compensations.rotated_dcasgd,
        {"learning_rate": 0.1, "max_pull": 1.0, "batch_size": 16, **_WORKERS},
        _by_worker,
        ("num_workers", "batch_size"),
    ),
    Case(
        "rotated_preconditioned",
        compensations.preconditioned,
        {"learning_rate": 0.1, "batch_size": 16, **_WORKERS},
        _by_worker,
        ("num_workers", "batch_size"),
    ),
    Case(
        "dcasgd_everything",
        dc.dcasgd,
        {
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.01,
            "max_pull": 0.5,
            **_WORKERS,
        },
        _by_worker,
        ("num_workers", "nesterov"),
    ),
]

BY_NAME = {case.name: case for case in CASES}
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_same(actual, expected, **tolerance):
    """Equal trees; bit for bit, if no tolerance is given."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda a, b: compare(a, b, **tolerance), actual, expected)


def train(case, tx, steps, tree, state=None, **extra_args):
    """(updates, params) of each step of a loop, the last params and the last state.

    Moves a little along the updates. These tests compare runs: which way they go is no matter.
    """
    update = jax.jit(tx.update) if case.jit else tx.update
    state = tx.init(tree) if state is None else state
    outputs = []
    for step in steps:
        kwargs = {**case.update_kwargs(step, tree), **extra_args}
        updates, state = update(grads(step, tree), state, tree, **kwargs)
        tree = jax.tree.map(lambda p, u: (p - 0.1 * u).astype(p.dtype), tree, updates)
        outputs.append((updates, tree))
    return outputs, tree, state


@functools.cache
def reference(name):
    """`train` of a case as it is in the table, from `params()`, for `STEPS`; do not write to it."""
    case = BY_NAME[name]
    return train(case, case.make(), STEPS, params())
