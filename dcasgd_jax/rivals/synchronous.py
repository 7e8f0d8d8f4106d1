"""Delay compensation inside one synchronous round."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, compensation, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class DCSSGDState(NamedTuple):
    """State of `dc_ssgd`.

    Attributes:
      num_updates: Int32 scalar: rounds so far, what schedules are read at.
    """

    num_updates: chex.Array


def dc_ssgd(
    learning_rate: optax.ScalarOrSchedule, lambda0: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""DC-SSGD: the gradients of one synchronous round, applied one after the other.

    All M gradients were taken at the same parameters. Applied in sequence, each but the first is
    late by the others' steps, and is compensated for them:

    .. math::
        \tilde w_0 = w, \qquad \tilde w_j = \tilde w_{j-1} - \eta \, (g_j + \lambda_0 g_j \odot g_j
        \odot (\tilde w_{j-1} - w)), \qquad w \leftarrow \tilde w_M

    With `lambda0=0` it is a step with the *sum* of the gradients. The result depends on the order
    of the workers. It is a whole optimizer: chain nothing behind it that scales.

    Args:
      learning_rate: η ≥ 0, the step of *one* gradient, or a schedule of the number of rounds. The
        paper writes it as the learning rate of the round divided by M.
      lambda0: λ0 ≥ 0 or a schedule of the number of rounds.

    Returns:
      An optimizer with `update(updates, state, params)`, where `updates` is like `params` with a
      leading axis of workers, `[num_workers, ...]`, the same M for all leaves. What it returns is
      like `params`. Unknown extra arguments are ignored.

    Raises:
      ValueError: For a negative hyperparameter, complex parameters, missing `params`, or gradients
        that are not `params` with one more leading axis.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, supplement (delay-compensated synchronous SGD).

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> optimizer = rivals.dc_ssgd(0.1, lambda0=2.0)
      >>> params = jnp.ones(())
      >>> grads = jnp.asarray([1.0, 1.0])  # of two workers
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> print(updates)  # -0.1 * (1 + (1 + 2 * 1**2 * -0.1))
      -0.18
    """
    for name, value in (("learning_rate", learning_rate), ("lambda0", lambda0)):
        if not callable(value):
            checks.check_non_negative(name, value)

    def init_fn(params: PyTree) -> Any:
        update_checks.check_real(params)
        return DCSSGDState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del extra_args
        update_checks.check_params(params, "dc_ssgd")
        if not jax.tree.leaves(updates):
            return updates, state
        _check_stacked(updates, params)
        at_count = lambda value: value(state.num_updates) if callable(value) else value
        rate, strength = at_count(learning_rate), at_count(lambda0)
        origin = jax.tree.map(lambda p: jnp.zeros_like(p, trees.wide_dtype(p)), params)

        def apply_one(moved, grads):
            widen = lambda g, m: None if g is None else g.astype(m.dtype)
            grads = jax.tree.map(widen, grads, moved, is_leaf=trees.is_none)
            compensated = compensation.compensated_gradient(grads, moved, origin, strength)
            step = lambda m, g: m - jnp.asarray(rate, m.dtype) * g
            return trees.map_accumulators(step, moved, compensated), None

        # The motion is summed by itself: added to the parameters, small steps would be rounded.
        moved, _ = jax.lax.scan(apply_one, origin, updates)
        like_gradient = lambda g, m: None if g is None else m.astype(jnp.result_type(g))
        moved = jax.tree.map(like_gradient, updates, moved, is_leaf=trees.is_none)
        return moved, DCSSGDState(jnp.asarray(optax.safe_increment(state.num_updates)))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_stacked(updates: PyTree, params: PyTree) -> None:
    """Raises ValueError, naming the leaf, unless gradients are `[num_workers, *param.shape]`."""
    num_workers = None
    grads = jax.tree_util.tree_flatten_with_path(updates, is_leaf=trees.is_none)[0]
    structure = jax.tree.structure(updates, is_leaf=trees.is_none)
    for (path, grad), param in zip(grads, structure.flatten_up_to(params), strict=True):
        if grad is None:
            continue
        where = f"The gradient{jax.tree_util.keystr(path)}"
        shape = jnp.shape(grad)
        if not shape or shape[1:] != jnp.shape(param):
            raise ValueError(
                f"{where} has shape {shape}: dc_ssgd needs one of {jnp.shape(param)} per worker, "
                "stacked along a leading axis."
            )
        if num_workers not in (None, shape[0]):
            raise ValueError(f"{where} is of {shape[0]} workers, others are of {num_workers}.")
        num_workers = shape[0]
