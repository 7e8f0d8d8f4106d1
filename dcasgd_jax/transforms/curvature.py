"""What stands in for the Hessian: the menu of curvatures, and the mean square of "adaptive"."""

import math
import numbers
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dcasgd_jax import compensation
from dcasgd_jax.transforms import checks, rows
from dcasgd_jax.typing import PyTree, Scalar

MENU = ("g2", "adaptive", "abs", "fisher", "hvp")


class Squares(NamedTuple):
    """Running mean of squared gradients: on the server, or one for each worker."""

    mean_square: PyTree | None  # like params, or [num_workers, ...]; None if none is kept
    weight: chex.Array | None  # what `bias_correction` divides by: a scalar, or [num_workers]


class Settings(NamedTuple):
    """Which curvature, and the mean square that it may need; checked by `make_settings`."""

    kind: str  # of MENU
    ms_decay: Scalar | None
    eps: Scalar
    bias_correction: bool
    num_workers: int | None  # None: one mean square on the server


def make_settings(
    kind: str | None,
    ms_decay: Scalar | None,
    eps: Scalar,
    bias_correction: bool,
    num_workers: int | None,
) -> Settings:
    """Checks the settings and chooses the curvature that was not named.

    Raises:
      ValueError: For a number out of range or settings that contradict each other.
    """
    checks.check_non_negative("eps", eps)
    checks.check_ms_decay(ms_decay)
    if num_workers is not None:
        num_workers = checks.check_num_workers(num_workers)
    if kind is None:
        kind = "g2" if ms_decay is None else "adaptive"
    if kind not in MENU:
        raise ValueError(f"curvature must be one of {', '.join(MENU)}, got {kind!r}.")
    if kind == "adaptive" and ms_decay is None:
        raise ValueError('curvature="adaptive" needs ms_decay=, such as 0.95.')
    if kind != "adaptive" and ms_decay is not None:
        raise ValueError(
            f"curvature={kind!r} keeps no mean square: leave ms_decay out, or curvature."
        )
    if bias_correction and kind != "adaptive":
        raise ValueError("bias_correction is of the mean square: pass ms_decay= as well.")
    return Settings(kind, ms_decay, eps, bias_correction, num_workers)


def init_squares(settings: Settings, params: PyTree) -> Squares:
    """Zeros, where there is a mean square."""
    if settings.ms_decay is None:
        return Squares(None, None)
    mean_square = jax.tree.map(lambda p: _zero_square(p, settings.num_workers), params)
    shape = () if settings.num_workers is None else (settings.num_workers,)
    return Squares(
        mean_square, jnp.zeros(shape, jnp.result_type(float)) if settings.bias_correction else None
    )


def update_squares(
    settings: Settings, squares: Squares, grads: PyTree, worker: Any
) -> tuple[PyTree | None, Squares]:
    """The mean square to use for this gradient, and those to keep; both None if there is none."""
    if settings.ms_decay is None:
        return None, squares
    row = (
        None
        if settings.num_workers is None
        else checks.checked_worker(worker, settings.num_workers)
    )
    read = lambda kept: kept if row is None else rows.read_row(kept, row)
    write = lambda kept, new: new if row is None else rows.write_row(kept, new, row)
    current = compensation.update_mean_square(
        jax.tree.map(read, squares.mean_square), grads, settings.ms_decay
    )
    kept = jax.tree.map(write, squares.mean_square, current)
    if squares.weight is None:
        return current, Squares(kept, None)
    # The mean square of ones: what the zeros at the start have left of it.
    weight = settings.ms_decay * read(squares.weight) + (1 - settings.ms_decay)
    corrected = jax.tree.map(lambda square: (square / weight).astype(square.dtype), current)
    return corrected, Squares(kept, write(squares.weight, weight))


def stand_in(settings: Settings, grads: PyTree, given: PyTree | None) -> PyTree | None:
    """What takes the place of the squared gradient; None if nothing does.

    Args:
      settings: Names the curvature.
      grads: Gradients; a tree.
      given: `fisher_diagonal` of `update`: a tree like `grads`, or a function without arguments
        that returns it.

    Raises:
      TypeError: If a Fisher diagonal is needed and was not given.
      ValueError: If it is not shaped like the gradients.
    """
    if settings.kind == "abs":
        return jax.tree.map(jnp.abs, grads)
    if settings.kind != "fisher":
        return None
    if given is None:
        raise TypeError(
            'curvature="fisher" needs update(..., fisher_diagonal=): the mean over the samples of '
            "the batch of their squared gradients, a tree like params or a function that returns "
            "it. sim.simulate passes it, except on the LanesEngine."
        )
    diagonal = given() if callable(given) else given
    checks.check_like_params("fisher_diagonal", diagonal, grads)
    return diagonal


def product(given: Any, displacement: PyTree) -> PyTree:
    """H(w - w_stale), by the function that `update` was given.

    Raises:
      TypeError: If it was not given.
      ValueError: If what it returns is not shaped like the displacement.
    """
    if given is None:
        raise TypeError(
            'curvature="hvp" needs update(..., hessian_vector_product=): a function of a tangent '
            "tree, the product with the Hessian of the loss at the stale parameters on the "
            "gradient's batch. sim.simulate passes it, except on the LanesEngine."
        )
    result = given(displacement)
    checks.check_like_params("hessian_vector_product(...)", result, displacement)
    return result


def displacement(params: PyTree, stale_params: PyTree) -> PyTree:
    """How far the params have moved, in the dtype of the params: a tangent for `jax.jvp`."""
    return jax.tree.map(lambda p, stale: (p - stale).astype(p.dtype), params, stale_params)


def max_curvature(max_pull: Scalar | None, learning_rate: Any, count: jax.Array) -> Any:
    """The cap on the curvature at the present learning rate; None if there is none."""
    if max_pull is None:
        return None
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    # At rate 0 nothing moves, so any curvature obeys the cap; 0/0 must not become NaN.
    return jnp.where(max_pull == 0, 0.0, max_pull / jnp.asarray(rate, jnp.result_type(float)))


def check_cap(kind: str, max_pull: Any, learning_rate: Any) -> None:
    """Raises ValueError for a cap that cannot be computed."""
    if not callable(learning_rate):
        checks.check_non_negative("learning_rate", learning_rate)
    checks.check_non_negative("max_pull", max_pull, finite=False)
    if max_pull is None:
        return
    if learning_rate is None:
        raise ValueError(
            "max_pull caps the curvature at max_pull / learning_rate: pass learning_rate=, the "
            "value or schedule that the rest of the chain applies."
        )
    no_cap = isinstance(max_pull, numbers.Real) and math.isinf(float(max_pull))
    if kind == "hvp" and not no_cap:
        raise ValueError(
            'max_pull caps the curvature of each coordinate, and curvature="hvp" has none: '
            "leave max_pull out."
        )


def _zero_square(param, num_workers: int | None) -> jax.Array:
    """Zero mean square for one parameter; built from it so that it inherits its sharding."""
    wide = jnp.zeros_like(param, dtype=jnp.promote_types(jnp.result_type(param), jnp.float32))
    return wide if num_workers is None else rows.repeat_row(wide, num_workers)
