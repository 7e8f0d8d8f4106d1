"""What an optimizer divides its steps by, so that a pull can be measured in those steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class Preconditioner(NamedTuple):
    r"""What the steps of an optimizer are divided by; goes where `preconditioner` goes.

    .. math:: u = -\eta \, m / d

    with m some mean of gradients. In coordinates :math:`z = \sqrt d \odot w` these are steps of
    plain SGD with the gradient :math:`g / \sqrt d`, and there `compensate_updates` compensates.

    Args:
      name: As it is written, for messages.
      init: `init(params)` returns the state.
      update: `update(state, grads)` returns d ≥ 0, a tree like params of at least float32, and the
        next state. Where d is a matrix and not one number for each coordinate, its leaf is a
        `MatrixDivisor`.

    Example:
      >>> import dcasgd_jax as dc, jax, jax.numpy as jnp, optax
      >>> double = lambda state, grads: (jax.tree.map(lambda g: 2.0 + 0 * g, grads), state)
      >>> halved = dc.preconditioners.Preconditioner("halved", lambda params: None, double)
      >>> tx = dc.compensate_updates(  # steps of 0.1 / 2
      ...     optax.chain(optax.scale(0.5), optax.sgd(0.1)), 2.0, learning_rate=0.1,
      ...     curvature=dc.curvatures.squared_gradient(), preconditioner=halved)
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.4]), tx.init(params), params, stale_params=stale_params)
      >>> print(f"{updates[0]:.3f}")  # -0.05 * 0.4 - 0.1 * 2 * (0.4**2 / 2) * 0.5
      -0.028
    """

    name: str
    init: Callable[[PyTree], Any]
    update: Callable[[Any, PyTree], tuple[PyTree, Any]]

    def __repr__(self) -> str:
        """As it is written."""
        return self.name


@document_fields
class MatrixDivisor(NamedTuple):
    r"""What a matrix leaf [m, n] is divided by from one side, :math:`D = U \, diag(d) \, U^T`.

    The side is the shorter one, s = min(m, n), and that of the rows if both are equal:
    :math:`u = -\eta \, D^{-1} M` where m ≤ n, else :math:`u = -\eta \, M D^{-1}`.

    Attributes:
      values: d ≥ 0, [s].
      vectors: U, [s, s], orthogonal.
    """

    values: jax.Array
    vectors: jax.Array
