"""Outer optimizers for pseudo-gradients that arrive late, steered by an averaging momentum."""

import numbers
from typing import Any

import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.typing import PyTree, Scalar


def momentum_look_ahead(
    learning_rate: optax.ScalarOrSchedule, momentum: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's step with an averaging momentum, for workers that are sent a look-ahead (MLA).

    .. math::
        m &\leftarrow \mu m + (1 - \mu) \Delta \\
        w &\leftarrow w - \eta \, (\Delta + \mu m), \qquad
            \text{workers are sent } w - \eta \mu m

    The look-ahead is `rivals.sends.multi_step_nesterov(1, momentum, learning_rate)`, the `send` of
    a `sim.Server`; alone, this is the step.

    Args:
      learning_rate: η, a float or a schedule of the number of pushes.
      momentum: μ in [0, 1).

    Returns:
      An optimizer with `update(updates, state, params=None)`; unknown extra arguments are ignored.
      `updates` are gradients, or pseudo-gradients as `sim.LocalSteps` pushes them. Its state has an
      `optax.EmaState` with m, at least float32.

    Raises:
      ValueError: For a hyperparameter out of range.

    Source: Ajanthan et al., *Momentum Look-Ahead for Asynchronous Distributed Low-Communication
    Training*, MCDC at ICLR 2025.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals, sim
      >>> send = rivals.sends.multi_step_nesterov(1, 0.5, learning_rate=0.1)
      >>> server = sim.Server(rivals.momentum_look_ahead(0.1, 0.5), send=send)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 3, num_updates=60, seed=0)
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((60, 3)))
      >>> print(jnp.round(result.params, 2))
      [1. 1. 1.]
    """
    checks.check_fraction("momentum", momentum)
    direct = _steered(momentum, lambda push, m: push)
    return optax.chain(direct, optax.scale_by_learning_rate(learning_rate))  # type: ignore[return-value]


def heloco(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Scalar = 0.9,
    *,
    aligned: Scalar = 0.2,
    shrink: Scalar = 0.5,
    max_shrink: Scalar = 0.5,
    turn: Scalar = 1.0,
    caution: Scalar = 3.0,
    eps: Scalar = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns pseudo-gradients that do not go the momentum's way, then steps as MLA (HeLoCo).

    For every leaf, with c the cosine of the push Δ and the momentum m, and
    :math:`conf = \|\Delta\| / (\|\Delta\| + \kappa \|m\| + \epsilon)`:

    .. math::
        \hat\Delta = \begin{cases}
            \Delta & c \ge c_{ok} \\
            \|\Delta\| \, u / \|u\|, \quad u = (1 - \lambda) \Delta / \|\Delta\| +
                \lambda m / \|m\|, \quad \lambda = \min(k_d (1 - c)\, conf, 1) & 0 \le c < c_{ok} \\
            \Delta - \beta\, c\, \|\Delta\|\, m / \|m\|, \quad
                \beta = \min(-k_s c \, conf, \beta_{max}) & c < 0
        \end{cases}

    and then the step of `momentum_look_ahead` with it. A push or a momentum of zeros, or of a
    norm that overflows, is left as it is. With `aligned=-1` nothing is corrected.

    Args:
      learning_rate: η, a float or a schedule of the number of pushes.
      momentum: μ in [0, 1).
      aligned: c_ok in [-1, 1], from where on a push is left as it is.
      shrink: k_s ≥ 0, of what goes against the momentum.
      max_shrink: β_max in [0, 1].
      turn: k_d ≥ 0, of what goes aside.
      caution: κ ≥ 0; the larger, the less is corrected.
      eps: ε > 0.

    Returns:
      An optimizer, as of `momentum_look_ahead`.

    Raises:
      ValueError: For a hyperparameter out of range.

    Source: Al Asif et al., *HeLoCo*, 2026 (arXiv 2606.00271). The correction is the paper's; not
    checked were its default numbers, and the scale of its momentum, which is an average here.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> optimizer = rivals.heloco(1.0, momentum=0.0)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> _, state = optimizer.update(jnp.ones(1), state)
      >>> print(optimizer.update(-jnp.ones(1), state)[0])  # against it: an eighth less
      [0.875]
    """
    checks.check_fraction("momentum", momentum)
    for name, value in (("shrink", shrink), ("turn", turn), ("caution", caution)):
        checks.check_non_negative(name, value)
    checks.check_positive("eps", eps)
    _check_within("aligned", aligned, -1)
    _check_within("max_shrink", max_shrink, 0)

    def correct(push, m):
        length, pace = jnp.linalg.norm(push.ravel()), jnp.linalg.norm(m.ravel())
        there = (length > 0) & (pace > 0) & jnp.isfinite(length + pace)
        heading, course = push / jnp.where(there, length, 1), m / jnp.where(there, pace, 1)
        cosine = jnp.sum((heading * jnp.conj(course)).real)
        confidence = length / (length + caution * pace + eps)
        opposed = jnp.minimum(shrink * -cosine * confidence, max_shrink)
        shrunk = push - opposed * cosine * length * course
        share = jnp.minimum(turn * (1 - cosine) * confidence, 1.0)
        between = (1 - share) * heading + share * course
        turned = length * between / jnp.maximum(jnp.linalg.norm(between.ravel()), eps)
        corrected = jnp.where(cosine < 0, shrunk, turned)
        return jnp.where(there & (cosine < aligned), corrected, push)

    direct = _steered(momentum, correct)
    return optax.chain(direct, optax.scale_by_learning_rate(learning_rate))  # type: ignore[return-value]


def _steered(momentum: Scalar, correct: Any) -> optax.GradientTransformationExtraArgs:
    """The pushes, corrected by the momentum so far, and the new momentum on top."""

    def init_fn(params: PyTree) -> Any:
        return optax.EmaState(jnp.zeros((), jnp.int32), trees.zeros_to_accumulate(params))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        kept = lambda tree: trees.drop_filled(tree, updates)  # None where there is no push
        wide = trees.map_accumulators(lambda m, push: correct(push, m), state.ema, updates)
        average = lambda m, push: momentum * m + (1 - momentum) * push
        ema = trees.map_accumulators(average, state.ema, kept(wide))
        mix = lambda g, push, m: push + momentum * m
        return trees.map_updates(mix, updates, wide, ema), optax.EmaState(state.count + 1, ema)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_within(name: str, value: Scalar, least: int) -> None:
    if isinstance(value, numbers.Real) and not least <= float(value) <= 1:
        raise ValueError(f"{name} must lie in [{least}, 1], got {value!r}.")
