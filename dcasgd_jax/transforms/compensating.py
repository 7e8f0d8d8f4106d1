"""Delay compensation of gradients, and of the updates that an optimizer makes of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import compensation, curvatures, preconditioners, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import cap, compensation_of_push
from dcasgd_jax.transforms.compensation_of_push import ADAPTIVE, CompensateDelayState, Strength
from dcasgd_jax.typing import PyTree, Scalar


def compensate_delay(
    lambda0: Strength = 1.0,
    *,
    curvature: curvatures.Curvature = ADAPTIVE,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates stale gradients, given the parameters that they were taken at.

    .. math:: \tilde g = g + \lambda_0 \, c \odot (w - w_{stale})

    It must see the raw gradient: chain it after clipping, and before weight decay, momentum, Adam
    and the learning rate, as in `optax.chain(optax.clip_by_global_norm(1.0),
    dc.compensate_delay(), optax.sgd(0.1))`. Behind the learning rate the compensation has the wrong
    sign and size; `sim.simulate` finds that out, a loop of your own cannot.

    Args:
      lambda0: λ0 ≥ 0, or a schedule of the number of updates so far, or a rule such as
        `dc.strengths.ratio(0.5)`. The published values (0.04 for the squared gradient, 2 adaptive)
        rarely carry over to other models: tune it, or set `max_pull=1`.
      curvature: What stands in for the Hessian, of `dc.curvatures`: the paper's are `adaptive()`
        (DC-ASGD-a) and `squared_gradient()` (DC-ASGD-c).
      max_pull: κ ≥ 0, the largest fraction of the way back to its stale value that one plain SGD
        step may move a weight: the curvature λ0 c is capped at κ/η. This project's addition, not
        the paper's. `None` is the paper; 0 is the inner optimizer without compensation.
      learning_rate: η ≥ 0, the learning rate (or schedule) that the chain applies afterwards; read
        only by `max_pull`, which requires it. With a momentum μ behind it pass η / (1 - μ), which
        is what an impulse comes to in the long run. A schedule is read at the number of *pushes*:
        before an `optax.MultiSteps` of k pass `lambda count: schedule(count // k)`.

    Returns:
      A transformation with `update(updates, state, params, *, stale_params)`; `stale_params` is a
      tree like `params`: the parameters this gradient was taken at. `sim.simulate` passes it;
      around servers that do not know it put `dc.remember_pulls` or `dc.assume_delay`. Some
      curvatures and rules need more, which they name. With `measure_compensation=True` (a Python
      bool) the state also keeps the sums that `compensation_metrics` reads; a function `observe=`
      is called with the `transforms.Arrival` that reached this place of the chain. Unknown extra
      arguments are ignored. Inside `optax.masked` or `optax.partition` set their
      `mask_compatible_extra_args=True`.

    Raises:
      ValueError: For a number out of range, `max_pull` without `learning_rate` or with a curvature
        that cannot be capped, complex parameters, missing `params`, or gradients or `stale_params`
        shaped unlike `params`.
      TypeError: If `stale_params`, or something else that the settings need, is not passed to
        `update`, or something that is no curvature is passed for one.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithm 2. `max_pull` is this project's.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     dc.compensate_delay(2.0, curvature=dc.curvatures.squared_gradient()), optax.sgd(0.1))
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params)
      >>> print(optax.apply_updates(params, updates))  # 1 - 0.1 * (0.2 + 2 * 0.2**2 * 0.5)
      [0.976]
    """
    of_push = compensation_of_push.make(
        lambda0, curvature, max_pull, learning_rate, "compensate_delay"
    )

    def update_fn(updates, state, params=None, *positional, **told) -> Any:
        update_checks.check_keywords_only(positional)
        term, state = of_push.term(updates, state, params, **told)
        return compensation.add(updates, term), state

    return optax.GradientTransformationExtraArgs(of_push.init, update_fn)


@document_fields
class CompensateUpdatesState(NamedTuple):
    """State of `compensate_updates`.

    Attributes:
      compensation: As of a `compensate_delay`.
      inner_state: State of the wrapped optimizer.
    """

    compensation: CompensateDelayState
    inner_state: optax.OptState


def compensate_updates(
    inner: optax.GradientTransformation,
    lambda0: Strength = 1.0,
    *,
    learning_rate: optax.ScalarOrSchedule,
    curvature: curvatures.Curvature = ADAPTIVE,
    max_pull: Scalar | None = 1.0,
    preconditioner: preconditioners.Preconditioner | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates the updates of an optimizer with momentum, which itself sees stale gradients.

    .. math:: u = inner(g) - p \odot (w - w_{stale}), \quad
              p = \min(\eta \lambda_0 c,\; \kappa)

    p is the fraction of the way back to its stale value that this step pulls a weight. Where
    `inner` is plain SGD this is `compensate_delay` before it. With momentum it is another method:
    there the compensation of one push would be repeated by the velocity at all pushes that follow,
    each of which brings one of its own. On the digits, with momentum 0.9 and 32 workers, this form
    trains where that one diverges (the documentation's page on directions has the table).

    An optimizer that divides its steps, such as Adam's by d = √v, goes far in some coordinates and
    not in others, and by how much a gradient bears to be late depends on these steps. With a
    preconditioner the compensation is that of plain SGD in the coordinates :math:`z = \sqrt d
    \odot w`, in which the steps are those of plain SGD: the curvature is estimated of
    :math:`g / \sqrt d`, in the basis and with the cap of these coordinates (Muon divides a matrix
    of weights by a matrix, and :math:`\sqrt d` is the root of that),

    .. math:: u = inner(g) - \frac{1}{\sqrt d} \odot U \left(
              \min(\eta \lambda_0 c,\; \kappa) \odot U^T (\sqrt d \odot (w - w_{stale})) \right)

    Clipping goes before it; weight decay, momentum and the learning rate belong into `inner`, as in
    `optax.chain(optax.clip_by_global_norm(1.0), dc.compensate_updates(optax.sgd(0.1, momentum=0.9),
    learning_rate=1.0))`.

    Args:
      inner: A whole optimizer, which ends with the learning rate.
      lambda0: λ0 ≥ 0, or a schedule of the number of updates so far, or a rule of `dc.strengths`.
      learning_rate: η ≥ 0, what `inner` makes of one gradient in the long run, or a schedule of it:
        with a momentum μ of the summing form, as in `optax.sgd`, the learning rate divided by
        1 - μ; with Adam, whose mean has weights that add up to 1, the learning rate.
      curvature: c, of `dc.curvatures`; of the gradient that comes in.
      max_pull: κ ≥ 0. `None`: no cap; 0: `inner` without compensation.
      preconditioner: Of `dc.preconditioners`: what `inner` divides its steps by; with
        `optax.adam(rate)` that is `dc.preconditioners.adam()`, with `optax.contrib.muon(rate)`
        `dc.preconditioners.muon()`. `None`: nothing.

    Returns:
      An optimizer with `update(grads, state, params, *, stale_params)`, told of pushes as
      `compensate_delay` is, and measured in the same way: as if its compensation had been added to
      the gradient; with a preconditioner in the coordinates in which it pulls.

    Raises:
      ValueError: As `compensate_delay`; and without a learning rate.
      TypeError: As `compensate_delay`; or if `inner` is no optimizer.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = dc.compensate_updates(
      ...     optax.sgd(0.1, momentum=0.5), 2.0, learning_rate=0.1 / (1 - 0.5),
      ...     curvature=dc.curvatures.squared_gradient())
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.5]), tx.init(params), params, stale_params=stale_params)
      >>> print(updates)  # -0.1 * 0.5 - 0.2 * 2 * 0.5**2 * 0.5
      [-0.1]
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an optimizer such as optax.sgd(0.1), got {inner!r}.")
    if learning_rate is None:
        raise ValueError(
            "compensate_updates needs learning_rate=: what inner makes of one gradient in the long "
            "run, with a momentum μ the learning rate divided by 1 - μ."
        )
    inner = optax.with_extra_args_support(inner)
    of_push = compensation_of_push.make(
        lambda0, curvature, max_pull, learning_rate, "compensate_updates", preconditioner
    )

    def init_fn(params: PyTree) -> Any:
        return CompensateUpdatesState(of_push.init(params), inner.init(params))

    def update_fn(updates, state, params=None, *positional, **told) -> Any:
        update_checks.check_keywords_only(positional)
        rate = cap.at_count(learning_rate, state.compensation.num_updates)
        term, compensation_state = of_push.term(updates, state.compensation, params, **told)
        updates, inner_state = inner.update(updates, state.inner_state, params, **told)
        back = lambda leaf: None if leaf is None else -jnp.asarray(rate, leaf.dtype) * leaf
        pulls = jax.tree.map(back, term, is_leaf=trees.is_none)
        return compensation.add(updates, pulls), CompensateUpdatesState(
            compensation_state, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
