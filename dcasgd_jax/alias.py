"""Ready-made optimizers."""

from typing import Any

import optax

from dcasgd_jax import checks, curvatures, transforms
from dcasgd_jax.transforms import cap, compensation_of_push
from dcasgd_jax.typing import Scalar


def dcasgd(
    learning_rate: optax.ScalarOrSchedule,
    num_workers: int,
    *,
    lambda0: transforms.Strength = 2.0,
    curvature: curvatures.Curvature = compensation_of_push.ADAPTIVE,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    max_pull: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DC-ASGD: asynchronous SGD whose server compensates each worker's staleness.

    .. math::
        MS &\leftarrow m \, MS + (1 - m) g \odot g \\
        \tilde g &= g + \frac{\lambda_0}{\sqrt{MS + \epsilon}} \odot g \odot g
                    \odot (w - w_{backup}(m)) \\
        w &\leftarrow w - \eta \tilde g

    then weight decay at the current weights and momentum on :math:`\tilde g`, if asked for. With
    one worker, or `lambda0=0`, it is `optax.sgd` exactly. It is `remember_pulls` around a chain
    with `compensate_delay`: where the server says `stale_params=` itself, as `sim.simulate` does,
    that is what is used. With momentum and `max_pull` both, it is `compensate_updates` around the
    momentum instead, which trains where a capped compensation before the momentum diverges.

    Args:
      learning_rate: η, a float or a schedule of the number of updates.
      num_workers: M ≥ 1. The state holds M copies of the parameters, plus the curvature's.
      lambda0: λ0 ≥ 0, a schedule, or a rule such as `dc.strengths.ratio(0.5)`. Published values
        rarely carry over to another model.
      curvature: Of `dc.curvatures`: `adaptive()` is DC-ASGD-a, `squared_gradient()` DC-ASGD-c.
      momentum: μ in [0, 1), decay of a momentum on the compensated gradient, with `max_pull` on the
        raw one; `None` is none.
      nesterov: Nesterov's form of that momentum.
      weight_decay: Decay added after compensation, so that it is not squared.
      max_pull: κ ≥ 0: the compensation moves no weight by more than the fraction κ of the way back
        to its stale value. This project's addition; 1 is a good first choice, `None` is the paper.

    Returns:
      An optimizer with `update(grads, state, params, *, worker)`.

    Raises:
      ValueError: For a hyperparameter out of range.
      TypeError: If `num_workers` is no integer, or there is no learning rate.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithms 1 and 2; `max_pull` is ours.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> optimizer = dc.dcasgd(0.1, num_workers=4)
      >>> params = {"w": jnp.ones(3)}
      >>> state = optimizer.init(params)
      >>> grads = {"w": jnp.full(3, 0.5)}  # pushed by worker 2
      >>> updates, state = optimizer.update(grads, state, params, worker=2)
      >>> print(optax.apply_updates(params, updates)["w"])
      [0.95 0.95 0.95]
    """
    plain = plain_sgd(learning_rate, momentum, nesterov, weight_decay)
    chain = compensated(plain, learning_rate, lambda0, curvature, momentum, max_pull)
    return transforms.remember_pulls(chain, num_workers)


def plain_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None,
    nesterov: bool,
    weight_decay: float,
) -> optax.GradientTransformationExtraArgs:
    """Weight decay, momentum and the learning rate, in this order."""
    if learning_rate is None:
        raise TypeError("learning_rate must be a number or a schedule, got None.")
    stages: list[optax.GradientTransformation] = []
    if not callable(weight_decay):
        checks.check_non_negative("weight_decay", weight_decay)
    if not isinstance(weight_decay, float | int) or weight_decay:
        stages.append(optax.add_decayed_weights(weight_decay))
    if momentum is not None:
        checks.check_fraction("momentum", momentum)
        stages.append(optax.trace(momentum, nesterov))
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def compensated(
    plain: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    lambda0: transforms.Strength,
    curvature: curvatures.Curvature,
    momentum: float | None,
    max_pull: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """A `plain_sgd` of that learning rate and momentum, compensated as `dcasgd` says."""
    settings: Any = {
        "curvature": curvature,
        "max_pull": max_pull,
        "learning_rate": cap.effective_learning_rate(learning_rate, momentum),
    }
    if momentum is None or max_pull is None:
        return optax.chain(transforms.compensate_delay(lambda0, **settings), plain)
    return transforms.compensate_updates(plain, lambda0, **settings)
