"""The empirical Fisher's diagonal, in the eigenbasis of a Kronecker-factored Fisher."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, compensation, matrices, trees
from dcasgd_jax.curvatures import directions
from dcasgd_jax.curvatures.curvature import Curvature
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar

_HAS_OUTPUT = {"input": False, "both": True}  # sides -> whether the output side is turned too


@document_fields
class RotatedState(NamedTuple):
    """State of `rotated`: trees like params with one array for each; at least float32.

    Attributes:
      num_updates: Int32 scalars: how many gradients of the leaf have entered.
      mean_square: S, shaped like the leaf: the mean square of the gradient in its basis.
      input_moment: L, [1, m, m] for a leaf [m, n]; [m / b, b, b] where the side is cut into
        blocks of b; [1, 1, 1] where it is not rotated.
      input_basis: U, likewise.
      output_moment: R of the other side; None with `sides="input"`.
      output_basis: V, likewise.
    """

    num_updates: Any
    mean_square: Any
    input_moment: Any
    input_basis: Any
    output_moment: Any
    output_basis: Any


class _Estimate(NamedTuple):
    """B S and its basis; trees like params."""

    curvature: PyTree
    bases: tuple[PyTree, ...]  # U, and V if the output side is rotated


def rotated(
    batch_size: int | None = None,
    *,
    decay: Scalar = 0.95,
    every: int = 50,
    sides: Literal["input", "both"] = "input",
    max_side: int = 1024,
) -> Curvature:
    r"""The empirical Fisher in directions of its own, which a diagonal does not know.

    .. math:: L \leftarrow \beta L + (1 - \beta) \, G G^T, \quad P = U^T G V, \quad
              S \leftarrow \beta S + (1 - \beta) \, P \odot P

    .. math:: term = U \left( \min\left(\frac{\lambda_0 B S}{1 - \beta^{k + 1}},\; q_{max}\right)
              \odot U^T \Delta V \right) V^T, \quad \Delta = w - w_{stale}

    where U are the eigenvectors of L, and V is the identity or, with `sides="both"`, the
    eigenvectors of the same mean of :math:`G^T G`. B S estimates the diagonal of the Fisher in this
    basis, because the noise in a mean of B terms has 1/B of their variance: λ0 = 1 is its natural
    value. Cap it with `max_pull=1`; the cap acts in the basis.

    Leaves with more than two axes are matrices [all but the last, last], as convolution kernels
    [height * width * in, out] are. Vectors and scalars have the identity for a basis. A leaf whose
    gradient is not finite, or `None`, leaves its state as it is. Where parameters are sharded, each
    device has whole L, U, R and V; with automatic axes XLA may cut them. The `LanesEngine` has
    them on every device, but for those of square leaves, which it cuts as it cuts these.

    Args:
      batch_size: B ≥ 1, the number of terms in the mean that the gradient is: images, or all
        *tokens* (not sequences), without those that are masked. A wrong B is a wrong λ0. `None`:
        it comes with each push, `update(..., batch_size=)`, and may vary. `sim.simulate` passes it
        where the shapes say it: an array of the batch has one entry per example, such as a label,
        and none can be tokens. A number here is used whatever `update` is told.
      decay: β in [0, 1).
      every: A basis is computed anew at each of the first three pushes and at every `every`-th.
      sides: "input" or "both".
      max_side: A longer side is cut into equal blocks, with an eigenbasis each: as long as possible
        and at most `max_side`. The side of a prime length above it is not rotated.

    Returns:
      A curvature. A leaf [m, n] has a state of 2m² + mn numbers, of 2m² + 2n² + mn with both sides;
      a push takes about 8m²n operations, or 8mn(m + n). With blocks of b it is b in the place of
      one of the m, and likewise n.

    Raises:
      ValueError: For a number out of range, or other sides; from `init`, for a leaf whose bases
        are larger than the memory of the device.
      TypeError: If `batch_size`, `every` or `max_side` is no integer.

    Source: this project. The basis is that of Shampoo (Gupta et al., 2018) and SOAP (Vyas et al.,
    2024), the Fisher's diagonal in it that of EKFAC (George et al., 2018).

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(
      ...     curvature=dc.curvatures.rotated(16), max_pull=1.0, learning_rate=0.5)
      >>> grads = jnp.asarray([[0.3, 0.0], [0.4, 0.0]])  # in the direction (0.6, 0.8) of inputs
      >>> params = jnp.ones((2, 2))
      >>> updates, _ = tx.update(
      ...     grads, tx.init(params), params, stale_params=jnp.zeros((2, 2)))
      >>> print(*(f"{added:.2f}" for added in (updates - grads).ravel()))
      1.68 0.00 2.24 0.00

    That is min(16 * 0.5**2, 2) * 1.4 * (0.6, 0.8) for the first output, and nothing for the other.
    """
    directions.check_batch_size(batch_size)
    checks.check_fraction("decay", decay)
    every, max_side = checks.check_count("every", every), checks.check_count("max_side", max_side)
    if not isinstance(sides, str) or sides not in _HAS_OUTPUT:
        raise ValueError(f'sides must be "input" or "both", got {sides!r}.')
    has_output = _HAS_OUTPUT[sides]

    def init(params: PyTree) -> RotatedState:
        _check_room(params, 1 + has_output, max_side)
        of_side = lambda make, side: jax.tree.map(lambda p: make(p, side, max_side), params)
        return RotatedState(
            num_updates=jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
            mean_square=trees.zeros_to_accumulate(params),
            input_moment=of_side(_no_moment, 0),
            input_basis=of_side(_identity, 0),
            output_moment=of_side(_no_moment, 1) if has_output else None,
            output_basis=of_side(_identity, 1) if has_output else None,
        )

    def update(state: RotatedState, grads: PyTree, **told) -> tuple[_Estimate, RotatedState]:
        num_terms = directions.num_terms(batch_size, **told)
        kept = [tree for tree in state if tree is not None]
        of_leaf = functools.partial(_update_leaf, decay, every)
        new = trees.map_columns(of_leaf, grads, *kept) or kept
        new_state = RotatedState(*new, *[None] * (len(state) - len(new)))

        def estimate(count, mean_square):
            weight = 1 - jnp.asarray(decay, mean_square.dtype) ** count
            return jnp.asarray(num_terms, mean_square.dtype) * trees.quotient(mean_square, weight)

        curvature = jax.tree.map(estimate, new_state.num_updates, new_state.mean_square)
        bases = (new_state.input_basis, new_state.output_basis)[: 1 + has_output]
        return _Estimate(curvature, bases), new_state

    name = f"rotated({batch_size}, decay={decay!r}, every={every}, sides={sides!r}"
    return Curvature(
        f"{name}, max_side={max_side})",
        init,
        update,
        _term,
        _diagonal,
        needs=directions.needs(batch_size),
    )


def _factor_shape(param: Any, side: int, max_side: int) -> tuple[int, int, int]:
    """[blocks, length, length]; [1, 1, 1] if the side is not rotated."""
    length = matrices.sides(jnp.shape(param))[side] if jnp.ndim(param) > 1 else 1
    block = matrices.block_length(max(length, 1), max_side)
    return (length // block if block > 1 else 1, block, block)


def _check_room(params: PyTree, num_sides: int, max_side: int) -> None:
    """Raises ValueError for a leaf whose factors no memory of this machine can hold."""
    there = directions.memory_bytes()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shapes = [_factor_shape(leaf, side, max_side) for side in range(num_sides)]
        needed = 2 * sum(map(math.prod, shapes)) * jnp.dtype(trees.wide_dtype(leaf)).itemsize
        if needed > there:
            raise ValueError(
                f"rotated needs {needed / 2**30:.3g} GiB for the bases of params"
                f"{jax.tree_util.keystr(path)} {list(jnp.shape(leaf))}, and there are "
                f"{there / 2**30:.3g} GiB in all: pass a smaller max_side than {max_side}"
                f"{', or sides=' + repr('input') if num_sides > 1 else ''}."
            )


def _no_moment(param: Any, side: int, max_side: int) -> jax.Array:
    return jnp.zeros(_factor_shape(param, side, max_side), trees.wide_dtype(param))


def _identity(param: Any, side: int, max_side: int) -> jax.Array:
    shape = _factor_shape(param, side, max_side)
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=trees.wide_dtype(param)), shape)


def _update_leaf(decay, every, grad, count, mean_square, *factors) -> tuple[Any, ...]:
    """The state of one leaf after a gradient; `factors` are moment and basis of each side."""
    if grad is None:
        return count, mean_square, *factors
    grad = jnp.asarray(grad).astype(mean_square.dtype)
    is_usable = jnp.isfinite(jnp.sum(grad * grad))
    is_due = is_usable & matrices.is_due(count, every)

    def average(old, new):
        following = (decay * old + (1 - decay) * new).astype(old.dtype)
        return jnp.where(is_usable, following, old)

    matrix = matrices.matrix(grad)
    new_factors, bases = [], []
    sides = (matrix, matrix.T)
    for rows, moment, basis in zip(sides, factors[::2], factors[1::2], strict=False):
        if moment.shape[-1] > 1:
            blocks = matrices.row_blocks(rows, moment)
            moment = average(moment, matrices.multiply(blocks, blocks.mT))
            basis = matrices.refreshed(is_due, moment, basis)
        new_factors += [moment, basis]
        bases.append(basis)
    turned = _to_basis(grad, *bases)
    new_count = jnp.where(is_usable, jnp.asarray(optax.safe_increment(count)), count)
    return new_count, average(mean_square, turned * turned), *new_factors


def _to_basis(leaf: jax.Array, left: jax.Array, right: jax.Array | None = None) -> jax.Array:
    return matrices.turn(leaf, left.mT, right)


def _from_basis(leaf: Any, left: jax.Array, right: jax.Array | None = None) -> Any:
    if leaf is None:
        return None
    return matrices.turn(leaf, left, None if right is None else right.mT)


def _diagonal(estimate: _Estimate, grads: PyTree, strength: Any) -> PyTree:
    return compensation.scaled_curvature(grads, strength, estimate.curvature)


def _term(estimate: _Estimate, grads, displacement, strength, max_curvature) -> PyTree:
    scaled = _diagonal(estimate, grads, strength)
    turned = jax.tree.map(_to_basis, displacement, *estimate.bases)
    pulled = compensation.pull_back(scaled, turned, max_curvature)
    return jax.tree.map(_from_basis, pulled, *estimate.bases, is_leaf=trees.is_none)
