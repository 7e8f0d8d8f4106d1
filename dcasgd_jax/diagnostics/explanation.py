"""How much of the error of a stale gradient each curvature can take away."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, curvatures, samples, trees, update_checks
from dcasgd_jax.diagnostics import vectors
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar

CURVATURES = ("squared_gradient", "adaptive", "absolute", "fisher", "hessian", "uniform")
"""Those of `dc.curvatures`, and as a control the bare displacement: the same in every direction."""

DIRECTIONS = ("rows", "rotated", "frozen_jacobian")
"""Explained where they are asked for: they need to be told more."""


@document_fields
class Explanation(NamedTuple):
    """What the best multiple of one compensation does; scalars, or trees of one per leaf.

    Attributes:
      r_squared: Share of the change of the gradient that it explains, in [0, 1].
      lambda0: That multiple, by least squares.
      cosine_stale: Of the stale and the true gradient.
      cosine_compensated: Of the compensated (with lambda0, at least 0) and the true gradient.
      ratio: |compensation| / |stale gradient| at lambda0.
      below_eps: Share of the coordinates whose mean square is below eps; nan unless adaptive.
      change_norm: |d|, of the change of the gradient.
      term_norm: |t|, of the compensation that λ0 = 1 would add.
    """

    r_squared: Any
    lambda0: Any
    cosine_stale: Any
    cosine_compensated: Any
    ratio: Any
    below_eps: Any
    change_norm: Any
    term_norm: Any


def explain(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    stale_params: PyTree,
    batch: PyTree,
    *,
    key: jax.Array | None = None,
    mean_square: PyTree | None = None,
    eps: Scalar = 1e-7,
    names: Collection[str] = CURVATURES,
    per_leaf: bool = False,
    batch_size: int = 1,
    rotated_state: curvatures.RotatedState | None = None,
    outputs: tuple[Callable[..., Any], Callable[..., jax.Array]] | None = None,
) -> dict[str, Explanation]:
    r"""Says for each curvature how much of the error of a stale gradient it explains.

    .. math:: d = \nabla f(w) - \nabla f(w_{stale}),\quad
              \lambda_0^* = \langle d, t \rangle / \langle t, t \rangle,\quad
              R^2 = 1 - \|d - \lambda_0^* t\|^2 / \|d\|^2

    where t is the compensation that λ0 = 1 would add, on the same batch. Pure: `jax.jit` it (it is
    slow without), `jax.vmap` it over the arrays. It costs two gradients, one Hessian-vector product
    ("hessian") and one gradient per sample ("fisher"); what `names` leaves out costs nothing.

    A faithful gradient and a good run are different things: what training needs is a full pull in
    a few steep directions, which is a small part of the error of a gradient. In a prototype
    "rotated" explained less of it than exact products did, and trained better.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` if `key` is given; returns
        a scalar.
      params: w, the parameters that the gradient would be applied to; a tree of floating-point
        arrays.
      stale_params: Those that it was taken at; a tree like `params`.
      batch: For "fisher" a tree of arrays that share a leading axis of samples.
      key: PRNG key, the same for all gradients.
      mean_square: Of the adaptive curvature, *already updated* with this gradient; a tree like
        `params`. `None` is the square of the stale gradient itself, as with `ms_decay=0`.
      eps: ε ≥ 0 of the adaptive curvature, inside the root.
      names: Which, of `CURVATURES`: those of `dc.curvatures`, and "uniform"; and of `DIRECTIONS`:
        "rows", "rotated" and "frozen_jacobian", the gradient of a model that is linear in its
        parameters from here on, which bounds what second order can explain.
      per_leaf: Explain every leaf by itself, with a λ0 of its own.
      batch_size: B of "rows" and "rotated", so that their λ0 is that of `dc.compensate_delay`.
      rotated_state: Of a `dc.curvatures.rotated` before this gradient; `None`: there was none.
      outputs: For "frozen_jacobian" `(outputs_fn(params, batch), loss_of(outputs, batch))`, which
        one after the other are the loss.

    Returns:
      An `Explanation` for each curvature, by name. Fields are scalars of at least float32; with
      `per_leaf` trees of them like `params`. Where the gradient did not change, `r_squared` is nan
      and `lambda0` 0; where only the compensation is zero, both are 0. A cosine with a zero vector
      is nan, and so is the ratio to a zero gradient.

    Raises:
      ValueError: For an unknown curvature, "frozen_jacobian" without `outputs`, complex
        parameters, trees shaped unlike `params`, or, with "fisher", a batch that is not made of
        samples.

    Source: this project; the expansion is that of Zheng et al., ICML 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import diagnostics
      >>> loss = lambda w, batch: jnp.sum(jnp.asarray([1.0, 4.0]) * w**2) + 0 * batch.sum()
      >>> found = diagnostics.explain(loss, jnp.asarray([2.0, 1.0]), jnp.asarray([1.0, 2.0]),
      ...                             jnp.zeros(3))
      >>> for name in ("hessian", "squared_gradient", "uniform"):
      ...     print(f"{name}: {found[name].r_squared:.2f} with {found[name].lambda0:.3f}")
      hessian: 1.00 with 1.000
      squared_gradient: 0.95 with 0.031
      uniform: 0.74 with 5.000
    """
    there = (*CURVATURES, *DIRECTIONS)
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"names must be of {', '.join(there)}, got {unknown[0]!r}.")
    if "frozen_jacobian" in names and outputs is None:
        raise ValueError("frozen_jacobian needs outputs=(outputs_fn, loss_of).")
    update_checks.check_real(params)
    update_checks.check_like_params("stale_params", stale_params, params)
    loss = samples.with_key(loss_fn, key)
    gradient_at = jax.grad(lambda at: loss(at, batch))
    grads = trees.widened(gradient_at(stale_params))
    mean_square = samples.squares(grads) if mean_square is None else mean_square
    update_checks.check_like_params("mean_square", mean_square, params)
    situation = _Situation(
        grads=grads,
        true_grads=trees.widened(gradient_at(params)),
        displacement=compensation.displacement(params, stale_params),
        mean_square=mean_square,
        eps=eps,
        offered={
            "hessian_vector_product": lambda t: jax.jvp(gradient_at, (stale_params,), (t,))[1],
            "fisher_diagonal": lambda: samples.mean_squared_gradient(loss, stale_params, batch),
            "linear_change": lambda moved: _linear_change(outputs, stale_params, batch, moved),
            "batch_size": batch_size,
        },
        rotated_state=rotated_state,
        like=params,
    )
    return {name: _explain_one(situation, name, per_leaf) for name in names}


class _Situation(NamedTuple):
    """One push, and what may be asked about it."""

    grads: PyTree
    true_grads: PyTree
    displacement: PyTree
    mean_square: PyTree
    eps: Scalar
    offered: dict[str, Any]
    rotated_state: curvatures.RotatedState | None
    like: PyTree  # parameters, for their dtypes


def _uniform(situation: _Situation) -> curvatures.Curvature:
    del situation
    ones = lambda _, grads, strength: jax.tree.map(lambda g: strength + 0 * g, grads)
    return curvatures.elementwise("uniform", ones)


def _adaptive(situation: _Situation) -> curvatures.Curvature:
    """Its mean square is there already."""
    keep = lambda state, grads: (situation.mean_square, state)
    return curvatures.adaptive(0.0, situation.eps)._replace(update=keep)


def _rotated(situation: _Situation) -> curvatures.Curvature:
    """From the state that it is in."""
    curvature, state = curvatures.rotated(), situation.rotated_state
    return curvature if state is None else curvature._replace(init=lambda _: state)


def _frozen_jacobian(situation: _Situation) -> curvatures.Curvature:
    """Another function of the displacement in the place of the product with the Hessian."""
    change = situation.offered["linear_change"]
    return curvatures.hessian()._replace(needs=(), update=lambda state, grads: (change, state))


def _linear_change(outputs: Any, stale_params: PyTree, batch: PyTree, moved: PyTree) -> PyTree:
    """How the gradient would change if the outputs moved along their Jacobian."""
    outputs_fn, loss_of = outputs
    at = lambda params: outputs_fn(params, batch)
    there, change = jax.jvp(at, (stale_params,), (moved,))
    slope = jax.grad(lambda found: loss_of(found, batch))
    moved_outputs = jax.tree.map(jnp.add, there, change)
    _, pull_back = jax.vjp(at, stale_params)
    (found,) = pull_back(jax.tree.map(jnp.subtract, slope(moved_outputs), slope(there)))
    return found


_MAKERS: dict[str, Callable[[_Situation], curvatures.Curvature]] = {
    "squared_gradient": lambda _: curvatures.squared_gradient(),
    "adaptive": _adaptive,
    "absolute": lambda _: curvatures.absolute(),
    "fisher": lambda _: curvatures.fisher(),
    "hessian": lambda _: curvatures.hessian(),
    "uniform": _uniform,
    "rows": lambda _: curvatures.rows(),
    "rotated": _rotated,
    "frozen_jacobian": _frozen_jacobian,
}


def _explain_one(situation: _Situation, name: str, per_leaf: bool) -> Explanation:
    curvature, grads = _MAKERS[name](situation), situation.grads
    needed = {need: situation.offered[need] for need, _ in curvature.needs}
    # Products are taken at the parameters, whose dtypes a tangent must have.
    narrow = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, situation.like)
    estimate, _ = curvature.update(curvature.init(situation.like), grads, **needed)
    unit = curvature.term(estimate, narrow, situation.displacement, 1.0, None)
    term = trees.widened(unit)
    floored = None if curvature.floored is None else curvature.floored(estimate)
    if not per_leaf:
        return _explain(grads, situation.true_grads, term, floored)
    structure = jax.tree.structure(grads)
    split = structure.flatten_up_to
    floors = [None] * structure.num_leaves if floored is None else split(floored)
    leaves = zip(split(grads), split(situation.true_grads), split(term), floors, strict=True)
    each = [_explain(*of_leaf) for of_leaf in leaves]
    return Explanation(*(structure.unflatten(field) for field in zip(*each, strict=True)))


def _explain(
    grads: PyTree, true_grads: PyTree, term: PyTree, floored: PyTree | None
) -> Explanation:
    change = jax.tree.map(jnp.subtract, true_grads, grads)
    lambda0, r_squared = vectors.best_multiple(change, term)
    added = jax.tree.map(lambda leaf: jnp.maximum(lambda0, 0.0) * leaf, term)
    compensated = compensation.add(grads, added)
    fitted = jax.tree.map(lambda leaf: lambda0 * leaf, term)
    return Explanation(
        r_squared=r_squared,
        lambda0=lambda0,
        cosine_stale=vectors.cosine(grads, true_grads),
        cosine_compensated=vectors.cosine(compensated, true_grads),
        ratio=trees.quotient(vectors.norm(fitted), vectors.norm(grads), jnp.nan),
        below_eps=_share(floored),
        change_norm=vectors.norm(change),
        term_norm=vectors.norm(term),
    )


def _share(floored: PyTree | None) -> jax.Array:
    """Share of the coordinates where that is so; nan if there are none."""
    leaves = jax.tree.leaves(floored)
    together = jnp.asarray(sum(jnp.sum(leaf) for leaf in leaves), jnp.result_type(float))
    return trees.quotient(together, sum(leaf.size for leaf in leaves), jnp.nan)
