"""Ready-made optimizers."""

import optax

from dcasgd_jax import transforms
from dcasgd_jax.typing import Scalar


def dcasgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    num_workers: int,
    lambda0: transforms.Strength = 2.0,
    curvature: str | None = None,
    ms_decay: Scalar | None = 0.95,
    eps: Scalar = 1e-7,
    bias_correction: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    max_pull: Scalar | None = None,
    per_worker_mean_square: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""DC-ASGD: asynchronous SGD whose server compensates each worker's staleness.

    .. math::
        MS &\leftarrow m \, MS + (1 - m) g \odot g \\
        \tilde g &= g + \frac{\lambda_0}{\sqrt{MS + \epsilon}} \odot g \odot g
                    \odot (w - w_{backup}(m)) \\
        w &\leftarrow w - \eta \tilde g

    then weight decay at the current weights and momentum on :math:`\tilde g`, if asked for. With
    one worker, or `lambda0=0`, it is `optax.sgd` exactly.

    Args:
      learning_rate: η, a float or a schedule of the number of updates.
      num_workers: M ≥ 1. The state holds M copies of the parameters, plus one mean square.
      lambda0: λ0 ≥ 0, a schedule, or a rule such as `dc.ratio(0.5)`. Published values rarely carry
        over to another model.
      curvature: As in `compensate_delay`; other ones than the paper's need `ms_decay=None`.
      ms_decay: m in [0, 1): DC-ASGD-a. `None`: the constant strength λ0, DC-ASGD-c.
      eps: ε ≥ 0, inside the root.
      bias_correction: As in `compensate_delay`.
      momentum: Decay of a momentum on the compensated gradient; `None` is none.
      nesterov: Nesterov's form of that momentum.
      weight_decay: Decay added after compensation, so that it is not squared.
      max_pull: κ ≥ 0: no event moves a weight by more than the fraction κ of the way back to its
        stale value, in the long run if there is momentum: the cap is that of the learning rate
        :math:`\eta / (1 - \mu)`. This project's addition; 1 is a good first choice, `None` is the
        paper.
      per_worker_mean_square: One mean square per worker, as in the paper authors' released code.

    Returns:
      An optimizer with `update(grads, state, params, *, worker)`.

    Raises:
      ValueError: For a hyperparameter out of range.

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
    stages: list[optax.GradientTransformation] = [
        transforms.compensate_worker_delay(
            lambda0,
            num_workers,
            curvature=curvature,
            ms_decay=ms_decay,
            eps=eps,
            bias_correction=bias_correction,
            per_worker_mean_square=per_worker_mean_square,
            max_pull=max_pull,
            learning_rate=effective_learning_rate(learning_rate, momentum),
        )
    ]
    if not isinstance(weight_decay, float | int) or weight_decay:
        stages.append(optax.add_decayed_weights(weight_decay))
    if momentum is not None:
        stages.append(optax.trace(momentum, nesterov))
    stages.append(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(*stages)


def effective_learning_rate(
    learning_rate: optax.ScalarOrSchedule, momentum: float | None
) -> optax.ScalarOrSchedule:
    r"""What momentum makes of a learning rate, once an impulse has been repeated to its end.

    .. math:: \eta / (1 - \mu)

    Args:
      learning_rate: η, a number or a schedule.
      momentum: μ in [0, 1), of the summing form; `None` for none.

    Returns:
      A number or a schedule.

    Example:
      >>> from dcasgd_jax import alias
      >>> alias.effective_learning_rate(0.25, momentum=0.5)
      0.5
    """
    if momentum is None:
        return learning_rate
    if callable(learning_rate):
        return lambda count: learning_rate(count) / (1 - momentum)
    return learning_rate / (1 - momentum)
