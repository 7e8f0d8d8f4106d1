"""Checks of hyperparameters, workers and trees, shared by the transformations.

Hyperparameters are checked only when they are plain numbers, so that `optax.inject_hyperparams`
can put traced arrays in their place.
"""

import math
import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax.typing import PyTree


def check_non_negative(name: str, value, *, finite: bool = True) -> None:
    """Raises ValueError if the plain number `value` is negative, NaN or (if `finite`) infinite."""
    if not isinstance(value, numbers.Real):
        return
    if not float(value) >= 0 or (finite and math.isinf(value)):
        raise ValueError(f"{name} must be a {'finite ' * finite}number >= 0, got {value!r}.")


def check_ms_decay(ms_decay) -> None:
    """Raises ValueError if the plain number `ms_decay` lies outside [0, 1)."""
    if isinstance(ms_decay, numbers.Real) and not 0 <= float(ms_decay) < 1:
        raise ValueError(
            f"ms_decay must lie in [0, 1), got {ms_decay!r}; None selects the constant strength."
        )


def check_num_workers(num_workers) -> int:
    """Returns `num_workers` as an int, or raises ValueError/TypeError."""
    try:
        count = operator.index(num_workers)
    except TypeError:
        raise TypeError(
            f"num_workers must be a Python int, got {num_workers!r}; under "
            "optax.inject_hyperparams pass static_args=('num_workers',)."
        ) from None
    if count < 1:
        raise ValueError(f"num_workers must be >= 1, got {count}.")
    return count


def checked_worker(worker, num_workers: int) -> jax.Array:
    """Returns `worker` as an int32 scalar; plain ints out of [0, num_workers) raise ValueError.

    A traced or device-resident worker cannot be checked here: out of range it is clamped.
    """
    if worker is None:
        raise TypeError(
            "update() needs worker=: the index in [0, num_workers) of the worker whose gradient "
            "this is. Pass it as a keyword: tx.update(grads, state, params, worker=m)."
        )
    if isinstance(worker, numbers.Real | np.ndarray):
        worker = operator.index(worker)  # type: ignore[arg-type]
        if not 0 <= worker < num_workers:
            raise ValueError(f"worker {worker} is out of range: num_workers is {num_workers}.")
    worker = jnp.asarray(worker)
    if not jnp.issubdtype(worker.dtype, jnp.integer) or worker.ndim:
        raise TypeError(
            f"worker must be one integer, got an array of {worker.dtype}{worker.shape}."
        )
    return worker.astype(jnp.int32)


def check_params(params, transformation: str) -> None:
    """Raises ValueError if `update` was called without params."""
    if params is None:
        raise ValueError(
            f"{transformation} needs the current parameters: call "
            "tx.update(grads, state, params, ...)."
        )


def check_real(params: PyTree) -> None:
    """Raises ValueError, naming the leaf, if a parameter is complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                f"Parameter {_name(path)} is complex ({jnp.result_type(leaf)}): g*g is not a "
                "curvature there. Split it into real and imaginary parts."
            )


def check_like_params(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises ValueError, naming the first differing path, unless `tree` is shaped like `params`."""
    leaves, structure = jax.tree.flatten(tree)
    param_leaves, param_structure = jax.tree.flatten(params)
    if structure == param_structure and all(map(_same_shape, leaves, param_leaves)):
        return
    hint = (
        " Inside optax.masked or optax.partition, pass them mask_compatible_extra_args=True."
        if _has_masked_node(params) and not _has_masked_node(tree)
        else ""
    )
    expected = dict(jax.tree_util.tree_leaves_with_path(params))
    given = dict(jax.tree_util.tree_leaves_with_path(tree))
    for path, leaf in expected.items():
        if path not in given:
            raise ValueError(f"{name} has no leaf {_name(path)}, but params do.{hint}")
        if not _same_shape(given[path], leaf):
            raise ValueError(
                f"{name}{_name(path)} has shape {jnp.shape(given[path])}, but the parameter has "
                f"shape {jnp.shape(leaf)}."
            )
    for path in given:
        if path not in expected:
            raise ValueError(f"{name} has a leaf {_name(path)}, but params do not.{hint}")
    raise ValueError(
        f"{name} and params have the same leaves in different containers: "
        f"{structure} against {param_structure}.{hint}"
    )


def _same_shape(one, other) -> bool:
    return jnp.shape(one) == jnp.shape(other)


def _has_masked_node(tree) -> bool:
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return any(isinstance(node, optax.MaskedNode) for node in nodes)


def _name(path) -> str:
    return jax.tree_util.keystr(path) or "(the whole tree)"
