"""One table of every rival, for the tests that hold for all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import rivals

NUM_WORKERS = 3
STEPS = range(6)


def _draw(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def told(step):
    """Everything a loop may tell; each rival takes what it needs."""
    return {
        "staleness": jnp.asarray((0, 2, 1, 0, 5, 1)[step % 6], jnp.int32),
        "worker": jnp.asarray((0, 1, 0, 2, 2, 1)[step % 6], jnp.int32),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    needs: tuple[str, ...] = ()  # of `told`
    static_args: tuple[str, ...] = ()  # of optax.inject_hyperparams
    stacked: str = "nothing"  # what has a leading axis of workers: "grads", or "all"
    wraps: bool = False  # an optimizer, with a state and hyperparameters of its own

    def make(self, **overrides):
        return self.factory(**{**self.kwargs, **overrides})

    def params(self, dtype=jnp.float32):
        lead = (NUM_WORKERS,) if self.stacked == "all" else ()
        return {
            "dense": {"kernel": _draw(0, (*lead, 4, 3), dtype)},
            "scale": _draw(1, lead, dtype),
        }

    def grads(self, step, dtype=jnp.float32):
        lead = () if self.stacked == "nothing" else (NUM_WORKERS,)
        return {
            "dense": {"kernel": _draw(10 * step + 2, (*lead, 4, 3), dtype)},
            "scale": _draw(10 * step + 3, lead, dtype),
        }

    def told(self, step):
        return {name: value for name, value in told(step).items() if name in self.needs}


def _sgd(make):
    """A rival that wraps an optimizer, around one with a state."""

    def factory(**kwargs):
        return make(optax.sgd(0.1, momentum=0.9), **kwargs)

    return factory


def _dc_ssgd(lambda0):
    return rivals.dc_ssgd(0.1, lambda0)


_BY_STALENESS = ("staleness",)
_BY_WORKER = ("worker",)
_PER_LEAF = {"dense": 2, "scale": 0}

CASES = [
    Case(
        "scale_by_staleness",
        rivals.scale_by_staleness,
        {"rule": rivals.inverse_one_plus_staleness},
        _BY_STALENESS,
    ),
    Case(
        "wu_adaptive1",
        rivals.adaptive_step_sizes,
        {"step_bound": 1.0, "max_delay": 4},
        _BY_STALENESS,
        ("max_delay", "flip_sign"),
    ),
    Case(
        "wu_adaptive2",
        rivals.adaptive_step_sizes,
        {"step_bound": 1.0, "max_delay": 4, "alpha": None},
        _BY_STALENESS,
        ("max_delay", "flip_sign"),
    ),
    Case("drop_stale", _sgd(rivals.drop_stale), {"bound": 2}, _BY_STALENESS, wraps=True),
    Case(
        "drop_stale_by_worker",
        _sgd(rivals.drop_stale),
        {"bound": 2, "num_workers": NUM_WORKERS},
        _BY_WORKER,
        wraps=True,
    ),
    Case("fedbuff", _sgd(rivals.fedbuff), {"buffer_size": 2}, _BY_STALENESS, wraps=True),
    Case(
        "fedbuff_by_worker",
        _sgd(rivals.fedbuff),
        {"buffer_size": 2, "num_workers": NUM_WORKERS},
        _BY_WORKER,
        wraps=True,
    ),
    Case(
        "delayed_nesterov",
        rivals.delayed_nesterov,
        {"learning_rate": 0.1, "num_steps": 3, "momentum": 0.9, "smoothing": 0.2},
        (),
        ("num_steps",),
    ),
    Case(
        "spike_compensation",
        rivals.spike_compensation,
        {"momentum": 0.9, "delay": 3},
        (),
        ("delay",),
    ),
    Case(
        "spike_compensation_per_leaf",
        rivals.spike_compensation,
        {"momentum": 0.9, "delay": _PER_LEAF},
        (),
        ("delay",),
    ),
    Case(
        "ordered_momentum",
        rivals.ordered_momentum,
        {"momentum": 0.9, "num_workers": NUM_WORKERS, "bucket_size": 2},
        _BY_WORKER,
        ("num_workers", "bucket_size"),
    ),
    Case(
        "pipemare_rescale",
        rivals.pipemare_rescale,
        {"delay": 3, "num_steps": 4},
        (),
        ("delay", "num_steps"),
    ),
    Case(
        "pipemare_rescale_per_leaf",
        rivals.pipemare_rescale,
        {"delay": lambda tree: jax.tree.map(jnp.ndim, tree), "num_steps": 4},
        (),
        ("delay", "num_steps"),
    ),
    Case("momentum_look_ahead", rivals.momentum_look_ahead, {"learning_rate": 0.1}),
    Case("heloco", rivals.heloco, {"learning_rate": 0.1, "momentum": 0.8}),
    Case(
        "last_gradients",
        rivals.last_gradients,
        {"num_workers": NUM_WORKERS},
        _BY_WORKER,
        ("num_workers",),
    ),
    Case("dc_ssgd", _dc_ssgd, {"lambda0": 2.0}, stacked="grads"),
    Case("dc_s3gd", _sgd(rivals.dc_s3gd), {"lambda0": 0.2}, stacked="all", wraps=True),
]


def those(predicate):
    """Parametrizes a test over the cases that a predicate is true of."""
    chosen = [case for case in CASES if predicate(case)]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


every = those(lambda case: True)


def train(case, tx, dtype=jnp.float32, told=None, grads=None):
    """The updates of each step of a jitted loop, and the last state.

    Parameters without a gradient stay where they are.
    """
    told = told or case.told
    grads = grads or case.grads
    update = jax.jit(tx.update)
    params = case.params(dtype)
    state, outputs = tx.init(params), []
    for step in STEPS:
        updates, state = update(grads(step, dtype), state, params, **told(step))
        params = move(params, updates)
        outputs.append(updates)
    return outputs, state


def move(params, updates):
    keep = lambda u, p: p if u is None else (p - 0.1 * u).astype(p.dtype)
    return jax.tree.map(keep, updates, params, is_leaf=lambda leaf: leaf is None)
