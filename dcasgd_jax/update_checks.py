"""Checks of what a transformation's `init` and `update` are given: workers, stalenesses, trees."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree


def checked_worker(worker, num_workers: int) -> jax.Array:
    """Returns `worker` as an int32 scalar, not the array itself, which the caller may donate.

    A traced worker cannot be checked here: out of range it is clamped.

    Raises:
      TypeError: If it is missing or no integer.
      ValueError: If it lies outside [0, num_workers); whatever is not traced is looked at.
    """
    if worker is None:
        raise TypeError(
            "update() needs worker=: the index in [0, num_workers) of the worker whose gradient "
            "this is. Pass it as a keyword: tx.update(grads, state, params, worker=m)."
        )
    number = integer_scalar("worker", worker)
    if not isinstance(number, jax.core.Tracer) and not 0 <= int(number) < num_workers:
        raise ValueError(
            f"worker {int(number)} is out of range: num_workers is {num_workers}, so workers are "
            f"0 to {num_workers - 1}."
        )
    return jnp.clip(jnp.asarray(number, jnp.int32), 0, num_workers - 1)


def checked_staleness(staleness) -> jax.Array:
    """Returns `staleness` as an int32 scalar; one that is not traced must not be negative."""
    _check_told(staleness)
    return _checked_staleness(staleness)


def checked_staleness_of_leaves(staleness: PyTree) -> PyTree:
    """As `checked_staleness`; also a tree of scalars, where every leaf has its own."""
    _check_told(staleness)
    return jax.tree.map(_checked_staleness, staleness)


def _check_told(staleness) -> None:
    if staleness is None:
        raise TypeError(
            "update() needs staleness=: the number of server updates between the read of the "
            "parameters that this gradient was taken at and its application. Pass it as a "
            "keyword: tx.update(grads, state, params, staleness=2); or let dc.remember_pulls or "
            "dc.assume_delay around the optimizer count it."
        )


def _checked_staleness(staleness) -> jax.Array:
    number = integer_scalar("staleness", staleness)
    if not isinstance(number, jax.core.Tracer) and int(number) < 0:
        raise ValueError(f"staleness must be >= 0 versions, got {int(number)}.")
    return jnp.asarray(number, jnp.int32)


def checked_batch_size(batch_size) -> Any:
    """Returns the number of terms of a mean; one that is not traced must be at least 1.

    Raises:
      TypeError: If it is no integer scalar.
      ValueError: If it is less than 1.
    """
    number = integer_scalar("batch_size", batch_size)
    if not isinstance(number, jax.core.Tracer) and int(number) < 1:
        raise ValueError(f"batch_size must be >= 1, got {int(number)}.")
    return number


def integer_scalar(name: str, value) -> Any:
    """One integer: a Python or NumPy number, or an array of rank 0."""
    if jax.tree.structure(value) != jax.tree.structure(0) or isinstance(value, str):
        raise TypeError(f"{name} must be one integer, got {value!r}.")
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be one integer, got {value!r} ({dtype}{shape}).")
    return value


def check_keywords_only(positional: tuple) -> None:
    """Raises TypeError if `update` was given more than its three positional arguments."""
    if positional:
        raise TypeError(
            "update() takes (updates, state, params) by position and everything else by name: "
            "tx.update(grads, state, params, worker=m)."
        )


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


def check_gradients(grads: PyTree, params: PyTree) -> None:
    """Raises ValueError, naming the leaf, unless gradients are `None` or shaped like `params`."""
    given = jax.tree_util.tree_flatten_with_path(grads, is_leaf=trees.is_none)[0]
    missing = {path for path, leaf in given if leaf is None}
    whole = jax.tree_util.tree_leaves_with_path(params)
    kept = dict(pair for pair in whole if pair[0] not in missing)
    _check_leaves("updates", {path: g for path, g in given if g is not None}, kept, "")


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
    _check_leaves(name, dict(jax.tree_util.tree_leaves_with_path(tree)), expected, hint)
    raise ValueError(
        f"{name} and params have the same leaves in different containers: "
        f"{structure} against {param_structure}.{hint}"
    )


def _check_leaves(name: str, given: dict, expected: dict, hint: str) -> None:
    """Raises ValueError at the first path that only one has, or with another shape."""
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


def _same_shape(one, other) -> bool:
    return jnp.shape(one) == jnp.shape(other)


def _has_masked_node(tree) -> bool:
    return bool(trees.find_states(tree, optax.MaskedNode))


def _name(path) -> str:
    return jax.tree_util.keystr(path) or "(the whole tree)"
