"""How much of the error of a stale gradient each curvature of the menu can take away."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation
from dcasgd_jax.diagnostics import samples, vectors
from dcasgd_jax.transforms import checks
from dcasgd_jax.transforms import curvature as menu
from dcasgd_jax.transforms import term as terms
from dcasgd_jax.typing import PyTree, Scalar

CURVATURES = (*menu.MENU, "uniform")
"""The menu, and as a control the bare displacement: the same curvature in every direction."""


class Explanation(NamedTuple):
    """What the best multiple of one compensation does; scalars, or trees of one per leaf."""

    r_squared: Any  # share of the change of the gradient that it explains, in [0, 1]
    lambda0: Any  # that multiple, by least squares
    cosine_stale: Any  # of the stale and the true gradient
    cosine_compensated: Any  # of the compensated (with lambda0, at least 0) and the true gradient
    ratio: Any  # |compensation| / |stale gradient| at lambda0
    below_eps: Any  # share of the coordinates whose mean square is below eps; nan unless adaptive
    change_norm: Any  # |d|, of the change of the gradient
    term_norm: Any  # |t|, of the compensation that λ0 = 1 would add


def explain(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    stale_params: PyTree,
    batch: PyTree,
    *,
    key: jax.Array | None = None,
    mean_square: PyTree | None = None,
    eps: Scalar = 1e-7,
    curvatures: Collection[str] = CURVATURES,
    per_leaf: bool = False,
) -> dict[str, Explanation]:
    r"""Says for each curvature how much of the error of a stale gradient it explains.

    .. math:: d = \nabla f(w) - \nabla f(w_{stale}),\quad
              \lambda_0^* = \langle d, t \rangle / \langle t, t \rangle,\quad
              R^2 = 1 - \|d - \lambda_0^* t\|^2 / \|d\|^2

    where t is the compensation that λ0 = 1 would add, on the same batch. Pure: `jax.jit` it (it is
    slow without), `jax.vmap` it over the arrays. It costs two gradients, one Hessian-vector product
    ("hvp") and one gradient per sample ("fisher"); what `curvatures` leaves out costs nothing.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` if `key` is given; returns
        a scalar.
      params: w, the parameters that the gradient would be applied to; a tree of floating-point
        arrays.
      stale_params: Those that it was taken at; a tree like `params`.
      batch: For "fisher" a tree of arrays that share a leading axis of samples.
      key: PRNG key, the same for all gradients.
      mean_square: Of the adaptive strength, *already updated* with this gradient; a tree like
        `params`. `None` is the square of the stale gradient itself, as with `ms_decay=0`.
      eps: ε ≥ 0 of the adaptive strength, inside the root.
      curvatures: Which, of `CURVATURES`: those of `dc.compensate_delay`, and "uniform".
      per_leaf: Explain every leaf by itself, with a λ0 of its own.

    Returns:
      An `Explanation` for each curvature, by name. Fields are scalars of at least float32; with
      `per_leaf` trees of them like `params`. Where the gradient did not change, `r_squared` is nan
      and `lambda0` 0; where only the compensation is zero, both are 0. A cosine with a zero vector
      is nan, and so is the ratio to a zero gradient.

    Raises:
      ValueError: For an unknown curvature, complex parameters, trees shaped unlike `params`, or,
        with "fisher", a batch that is not made of samples.

    Source: this project; the expansion is that of Zheng et al., ICML 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import diagnostics
      >>> loss = lambda w, batch: jnp.sum(jnp.asarray([1.0, 4.0]) * w**2) + 0 * batch.sum()
      >>> found = diagnostics.explain(loss, jnp.asarray([2.0, 1.0]), jnp.asarray([1.0, 2.0]),
      ...                             jnp.zeros(3))
      >>> for name in ("hvp", "g2", "uniform"):
      ...     print(f"{name}: {found[name].r_squared:.2f} with {found[name].lambda0:.3f}")
      hvp: 1.00 with 1.000
      g2: 0.95 with 0.031
      uniform: 0.74 with 5.000
    """
    unknown = [name for name in curvatures if name not in CURVATURES]
    if unknown:
        raise ValueError(f"curvatures must be of {', '.join(CURVATURES)}, got {unknown[0]!r}.")
    checks.check_real(params)
    checks.check_like_params("stale_params", stale_params, params)
    loss = samples.with_key(loss_fn, key)
    gradient_at = jax.grad(lambda at: loss(at, batch))
    grads = vectors.widened(gradient_at(stale_params))
    mean_square = samples.squares(grads) if mean_square is None else mean_square
    checks.check_like_params("mean_square", mean_square, params)
    situation = _Situation(
        grads=grads,
        true_grads=vectors.widened(gradient_at(params)),
        params=params,
        stale_params=stale_params,
        mean_square=mean_square,
        eps=eps,
        hessian_vector_product=lambda tangent: jax.jvp(gradient_at, (stale_params,), (tangent,))[1],
        fisher_diagonal=lambda: samples.mean_squared_gradient(loss, stale_params, batch),
    )
    return {name: _explain_one(situation, name, per_leaf) for name in curvatures}


class _Situation(NamedTuple):
    """One push, and what may be asked about it."""

    grads: PyTree
    true_grads: PyTree
    params: PyTree
    stale_params: PyTree
    mean_square: PyTree
    eps: Scalar
    hessian_vector_product: Callable[[PyTree], PyTree]
    fisher_diagonal: Callable[[], PyTree]


def _explain_one(situation: _Situation, name: str, per_leaf: bool) -> Explanation:
    square = situation.mean_square if name == "adaptive" else None
    term = vectors.widened(_unit_term(situation, name))
    grads, true_grads, eps = situation.grads, situation.true_grads, situation.eps
    if not per_leaf:
        return _explain(grads, true_grads, term, square, eps)
    structure = jax.tree.structure(grads)
    split = structure.flatten_up_to
    squares = [None] * structure.num_leaves if square is None else split(square)
    leaves = zip(split(grads), split(true_grads), split(term), squares, strict=True)
    each = [_explain(grad, true, part, leaf, eps) for grad, true, part, leaf in leaves]
    return Explanation(*(structure.unflatten(field) for field in zip(*each, strict=True)))


def _unit_term(situation: _Situation, name: str) -> PyTree:
    """The compensation that λ0 = 1 adds, as the transformations make it."""
    if name == "uniform":
        return menu.displacement(situation.params, situation.stale_params)
    adaptive = name == "adaptive"
    settings = menu.make_settings(name, 0.0 if adaptive else None, situation.eps, False, None)
    term = terms.make_term(
        settings,
        situation.grads,
        situation.params,
        situation.stale_params,
        situation.mean_square if adaptive else None,
        max_curvature=None,
        hessian_vector_product=situation.hessian_vector_product,
        fisher_diagonal=situation.fisher_diagonal,
    )
    return term.situation().term


def _explain(
    grads: PyTree, true_grads: PyTree, term: PyTree, square: PyTree | None, eps: Scalar
) -> Explanation:
    change = jax.tree.map(jnp.subtract, true_grads, grads)
    lambda0, r_squared = vectors.best_multiple(change, term)
    compensated = compensation.curvature_compensated_gradient(
        grads, term, jnp.maximum(lambda0, 0.0)
    )
    added = jax.tree.map(lambda leaf: lambda0 * leaf, term)
    return Explanation(
        r_squared=r_squared,
        lambda0=lambda0,
        cosine_stale=vectors.cosine(grads, true_grads),
        cosine_compensated=vectors.cosine(compensated, true_grads),
        ratio=vectors.quotient(vectors.norm(added), vectors.norm(grads), jnp.nan),
        below_eps=_share_below(square, eps),
        change_norm=vectors.norm(change),
        term_norm=vectors.norm(term),
    )


def _share_below(square: PyTree | None, eps: Scalar) -> jax.Array:
    """Share of the coordinates below eps; nan if there are none."""
    leaves = jax.tree.leaves(square)
    below = jnp.asarray(sum(jnp.sum(leaf < eps) for leaf in leaves), jnp.result_type(float))
    return vectors.quotient(below, sum(leaf.size for leaf in leaves), jnp.nan)
