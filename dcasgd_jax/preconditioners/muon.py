"""Muon's divisor: the size of its mean of gradients, as a matrix."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from dcasgd_jax import checks, matrices, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.preconditioners.adam import adam_divisor
from dcasgd_jax.preconditioners.preconditioner import MatrixDivisor, Preconditioner
from dcasgd_jax.typing import PyTree, Scalar

_STRETCHED = 3.4445**5
"""How much longer Muon's five steps of Newton and Schulz make a small singular value."""


@document_fields
class MuonDivisorState(NamedTuple):
    """State of `muon`: trees like params.

    Attributes:
      num_updates: Int32 scalars: gradients that were finite.
      moment: Like the leaf, at least float32, without the bias correction: the mean of gradients
        where Muon steps, that of squares where Adam does.
      scale: ρ where Muon steps, a scalar; None where Adam does.
      vectors: U where Muon steps, [1, s, s]; None where Adam does.
    """

    num_updates: Any
    moment: Any
    scale: Any
    vectors: Any


def muon(
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    nesterov: bool = True,
    adam_b2: Scalar = 0.999,
    adam_rate_ratio: Scalar = 1.0,
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: Scalar | None = None,
    every: int = 10,
) -> Preconditioner:
    r"""What `optax.contrib.muon` divides its steps by.

    Muon takes all singular values of its mean of gradients M for equal, that is, it divides by a
    matrix that depends on M, here with the rows the shorter side:

    .. math:: u = -\eta \, \rho \, (M M^T)^{-1/2} M = -\eta \, D^{-1} M, \qquad
              D = (M M^T)^{1/2} / \rho

    with ρ the factor that makes steps of all shapes alike. D's eigenvectors are those of
    :math:`M M^T`, computed at the first three pushes and then at every `every`-th; how long M is in
    each is looked at every time. Singular values below :math:`\|M\|_F / 485` count as that much:
    Muon's Newton-Schulz steps make none longer than 485 times.

    Leaves that are no matrices, or that `muon_weight_dimension_numbers` leaves out, are divided as
    `adam` says, as does `optax.contrib.muon`. Pass the arguments that it got. Of those which are
    not here, the number of Newton-Schulz steps, its coefficients and weight decay make no
    difference; `adaptive=True` and an `adam_eps_root` are not supported.

    Args:
      beta: β in [0, 1), that of the optimizer's mean.
      eps: ε ≥ 0, that of Adam for the other leaves.
      nesterov: Whether the optimizer looks ahead by one push.
      adam_b2: β₂ in [0, 1), that of Adam for the other leaves.
      adam_rate_ratio: > 0, the optimizer's `adam_learning_rate`, if it has one, divided by its
        `learning_rate`, which is the one that `dc.compensate_updates` is told.
      muon_weight_dimension_numbers: As of the optimizer: a tree like params, or a function of them
        that returns it, with a `optax.contrib.MuonDimensionNumbers` for each matrix that Muon steps
        and `None` for all other leaves. `None`: every leaf of rank 2.
      consistent_rms: As of the optimizer; `None`: steps are longer by
        :math:`\sqrt{\max(1, outputs / inputs)}`.
      every: Gradients from one computation of eigenvectors to the next, >= 1.

    Returns:
      A preconditioner. It keeps a mean of gradients of its own, and [s, s] for each matrix, whose
      eigenvectors take long where s is several thousands. A leaf whose gradient is not finite, or
      `None`, leaves its state as it is.

    Raises:
      ValueError: For a number out of range; of `init`, for dimension numbers of a leaf that is no
        matrix.
      TypeError: Of `init`, for something else in the place of dimension numbers.

    Source: this project; Jordan et al., *Muon: An optimizer for hidden layers in neural networks*,
    2024.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> of_muon = dc.preconditioners.muon(nesterov=False)
      >>> grads = jnp.diag(jnp.asarray([3.0, 0.1, 5.0, 2.0]))  # the mean, after the first push
      >>> divisor, _ = of_muon.update(of_muon.init(grads), grads)
      >>> print(*(f"{value:.2f}" for value in sorted(divisor.values)))
      0.10 2.00 3.00 5.00
    """
    checks.check_fraction("beta", beta)
    checks.check_fraction("adam_b2", adam_b2)
    checks.check_non_negative("eps", eps)
    checks.check_positive("consistent_rms", consistent_rms)
    checks.check_positive("adam_rate_ratio", adam_rate_ratio)
    every = checks.check_count("every", every)
    settings = _Settings(beta, eps, nesterov, adam_b2, adam_rate_ratio, every)

    def init(params: PyTree) -> MuonDivisorState:
        structure = jax.tree.structure(params)
        numbers = _dimension_numbers(muon_weight_dimension_numbers, params)
        scales = [
            None if number is None else _scale(leaf, number, consistent_rms)
            for leaf, number in zip(jax.tree.leaves(params), numbers, strict=True)
        ]
        return MuonDivisorState(
            jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
            trees.zeros_to_accumulate(params),
            structure.unflatten(scales),
            structure.unflatten(map(_identity, jax.tree.leaves(params), scales)),
        )

    def update(state: MuonDivisorState, grads: PyTree) -> tuple[PyTree, MuonDivisorState]:
        of_leaf = functools.partial(_update_leaf, settings)
        divisors, *new_state = trees.map_columns(of_leaf, grads, *state) or (grads, *state)
        return divisors, MuonDivisorState(*new_state)

    return Preconditioner(
        f"muon(beta={beta!r}, nesterov={nesterov!r}, consistent_rms={consistent_rms!r}, "
        f"every={every})",
        init,
        update,
    )


class _Settings(NamedTuple):
    beta: Scalar
    eps: Scalar
    nesterov: bool
    adam_b2: Scalar
    adam_rate_ratio: Scalar
    every: int


def _dimension_numbers(numbers: Any, params: PyTree) -> list[contrib.MuonDimensionNumbers | None]:
    """Of each leaf of params; `None` where Adam steps."""
    if numbers is None:
        default = contrib.MuonDimensionNumbers()
        is_matrix = lambda leaf: jnp.ndim(leaf) == 2 and jnp.size(leaf) > 0
        return [default if is_matrix(leaf) else None for leaf in jax.tree.leaves(params)]
    if callable(numbers) and not isinstance(numbers, contrib.MuonDimensionNumbers):
        numbers = numbers(params)
    is_one = lambda node: node is None or isinstance(node, contrib.MuonDimensionNumbers)
    named, structure = jax.tree.flatten(numbers, is_leaf=is_one)
    if wrong := [number for number in named if not is_one(number)]:
        raise TypeError(
            "muon_weight_dimension_numbers must be a tree of optax.contrib.MuonDimensionNumbers "
            f"and None, and one of its leaves is {wrong[0]!r}."
        )
    parts = zip(named, structure.flatten_up_to(params), strict=True)
    return [number for number, part in parts for _ in jax.tree.leaves(part)]


def _scale(leaf: Any, number: contrib.MuonDimensionNumbers, consistent_rms: Any) -> jax.Array:
    """ρ, by which Muon's steps are longer than a matrix of singular values 1."""
    shape = jnp.shape(leaf)
    if len(shape) != 2:
        raise ValueError(
            f"preconditioners.muon is for matrices, but muon_weight_dimension_numbers names a leaf "
            f"of shape {list(shape)}: give it None there."
        )
    (inputs,) = np.ravel(number.reduction_axis)
    longer = shape[1 - inputs % 2] / shape[inputs]
    rate = max(1, longer) ** 0.5 if consistent_rms is None else max(shape) ** 0.5 * consistent_rms
    return jnp.asarray(rate, trees.wide_dtype(leaf))


def _identity(leaf: Any, scale: Any) -> jax.Array | None:
    return None if scale is None else jnp.eye(min(jnp.shape(leaf)), dtype=scale.dtype)[None]


def _update_leaf(settings: _Settings, grad, count, moment, scale, vectors) -> tuple[Any, ...]:
    """What a leaf is divided by, and its state after a gradient."""
    if scale is None:
        divisor, count, moment = adam_divisor(settings.adam_b2, settings.eps, grad, count, moment)
        if divisor is not None:  # a longer step is one of a smaller divisor
            divisor = divisor / jnp.asarray(settings.adam_rate_ratio, divisor.dtype)
        return divisor, count, moment, None, None
    if grad is None:
        return None, count, moment, scale, vectors
    grad = jnp.asarray(grad).astype(moment.dtype)
    is_usable = jnp.isfinite(jnp.sum(grad * grad))
    is_due = is_usable & matrices.is_due(count, settings.every)
    beta = jnp.asarray(settings.beta, moment.dtype)
    averaged = (beta * moment + (1 - beta) * grad).astype(moment.dtype)
    moment = jnp.where(is_usable, averaged, moment)
    count = jnp.where(is_usable, jnp.asarray(optax.safe_increment(count)), count)
    mean = moment / (1 - beta**count)
    if settings.nesterov:
        ahead = beta * moment / (1 - beta ** (count + 1)) + (1 - beta) * grad / (1 - beta**count)
        mean = jnp.where(is_usable, ahead, mean)
    mean = jnp.where(count > 0, mean, 0)
    rows = matrices.lying(matrices.matrix(mean))
    vectors = matrices.refreshed(is_due, matrices.multiply(rows, rows.T)[None], vectors)
    lengths = jnp.linalg.norm(matrices.multiply(vectors[0].T, rows), axis=1)
    lengths = jnp.maximum(lengths, jnp.linalg.norm(lengths) / _STRETCHED)
    return MatrixDivisor(lengths / scale, vectors[0]), count, moment, scale, vectors
