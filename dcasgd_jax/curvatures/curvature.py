"""What a curvature is: pure functions, of which a compensating transformation makes its term."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dcasgd_jax import compensation
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class Curvature(NamedTuple):
    r"""A guess at the Hessian, and how it is capped; goes where `curvature` goes.

    A compensating transformation adds the `term` of the estimate that it gets for each gradient:

    .. math:: \tilde g = g + term(estimate, g, w - w_{stale}, \lambda_0, q_{max})

    Args:
      name: As it is written, for messages.
      init: `init(params)` returns the state.
      update: `update(state, grads, **needed)` returns the estimate for these gradients and the next
        state. `needed` are the extra arguments that `needs` names.
      term: `term(estimate, grads, displacement, strength, max_curvature)` returns the compensation,
        a tree like `grads` with `None` where they have it, in at least float32. `displacement` is
        w - w_stale, `strength` a scalar or a tree of scalars, `max_curvature` a scalar or `None`.
        It must be 0 where the strength or the displacement is 0.
      diagonal: `diagonal(estimate, grads, strength)` returns λ0 c, before any cap, for each
        coordinate of the basis in which it is capped; a tree like `grads`. `None`: there is no such
        basis, so it cannot be capped.
      floored: `floored(estimate)` tells where a floor such as `eps` decides and not the gradients:
        a tree of booleans. `None`: there is no floor.
      by_coordinate: Whether diagonal and term of a coordinate depend on that coordinate alone, and
        the estimate is a tree like the gradients or `None`: then the sums of a rule for λ0 take a
        part of a leaf at a time.
      needs: Names of the extra arguments that `update` must be given, and for each what it is and
        who passes it, for the message if it is missing.

    Example:
      >>> import dcasgd_jax as dc, jax, jax.numpy as jnp
      >>> scale = lambda _, grads, strength: jax.tree.map(lambda g: 0.1 * strength + 0 * g, grads)
      >>> tenth = dc.curvatures.elementwise("tenth", scale)  # the same for all coordinates
      >>> tx = dc.compensate_delay(2.0, curvature=tenth)
      >>> grads, params, stale_params = jnp.asarray([0.5]), jnp.asarray([3.0]), jnp.asarray([2.0])
      >>> print(tx.update(grads, tx.init(params), params, stale_params=stale_params)[0])
      [0.7]
    """

    name: str
    init: Callable[[PyTree], Any]
    update: Callable[..., tuple[Any, Any]]
    term: Callable[[Any, PyTree, PyTree, Any, Any], PyTree]
    diagonal: Callable[[Any, PyTree, Any], PyTree] | None = None
    floored: Callable[[Any], PyTree] | None = None
    needs: tuple[tuple[str, str], ...] = ()
    by_coordinate: bool = False

    def __repr__(self) -> str:
        """As it is written."""
        return self.name


def _no_state(params: PyTree) -> None:
    del params


def _nothing(state: None, grads: PyTree) -> tuple[None, None]:
    del grads
    return None, state


def elementwise(
    name: str,
    diagonal: Callable[[Any, PyTree, Any], PyTree],
    *,
    init: Callable[[PyTree], Any] = _no_state,
    update: Callable[..., tuple[Any, Any]] = _nothing,
    floored: Callable[[Any], PyTree] | None = None,
    needs: tuple[tuple[str, str], ...] = (),
) -> Curvature:
    r"""A curvature that acts on each coordinate alone, and is capped there.

    .. math:: term = \min(\lambda_0 c,\; q_{max}) \odot (w - w_{stale})

    Args:
      name: As in `Curvature`; so is every argument below. Default: nothing is kept.
      diagonal: λ0 c.
      init: The state.
      update: The estimate.
      floored: Where a floor decides.
      needs: What `update` must be given.

    Returns:
      A curvature.

    Example:
      >>> import dcasgd_jax as dc
      >>> from dcasgd_jax import compensation
      >>> square = dc.curvatures.elementwise(
      ...     "square", lambda _, grads, strength: compensation.scaled_curvature(grads, strength))
      >>> tx = dc.compensate_delay(2.0, curvature=square)  # what squared_gradient() is
    """

    def term(estimate, grads, displacement, strength, max_curvature):
        scaled = diagonal(estimate, grads, strength)
        return compensation.pull_back(scaled, displacement, max_curvature)

    return Curvature(name, init, update, term, diagonal, floored, needs, by_coordinate=True)
