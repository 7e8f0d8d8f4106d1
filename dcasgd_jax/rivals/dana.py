"""DANA: a momentum for each worker, and workers that are sent where all momenta will lead."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, curvatures, rows, transforms, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import prediction, sending
from dcasgd_jax.transforms import cap
from dcasgd_jax.typing import PyTree, Scalar

_SQUARED = curvatures.squared_gradient()


@document_fields
class PerWorkerMomentumState(NamedTuple):
    """State of `per_worker_momentum`.

    Attributes:
      written: Of at least float32; the pending worker's row is outdated.
      latest: Like params: the velocity of the last update, not written yet.
      pending_worker: Int32 scalar: whose it is.
      total: Like params: the sum of all velocities; None with nesterov.
    """

    written: rows.PerWorker
    latest: PyTree
    pending_worker: chex.Array
    total: PyTree | None

    @property
    def velocities(self) -> PyTree:
        """The velocity of every worker, leaf `[num_workers, ...]`; outside a jit a copy of all."""
        return self.written.write(self.pending_worker, self.latest).rows


def per_worker_momentum(
    decay: Scalar, num_workers: int, *, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""A momentum for each worker, of its own gradients only.

    .. math:: v_m \leftarrow \gamma v_m + g, \qquad u = v_m \;
              (\text{or } \gamma v_m + g \text{ with nesterov})

    In the place of `optax.trace`, before `optax.scale_by_learning_rate`, this is Multi-ASGD; with
    `send=rivals.sends.dana_look_ahead(...)` DANA-Zero; with `nesterov=True` and no `send`
    DANA-Slim, whose params are those that DANA-Zero sends (while the learning rate stays), and
    whose velocities could live on the workers. With one worker it is `optax.trace`.

    Velocities hold no learning rate, so a rate that decays acts on all of them at once. That is the
    "momentum correction" which velocities of :math:`\eta g` need.

    Args:
      decay: γ in [0, 1).
      num_workers: M ≥ 1. The state holds M + 1 velocities, and their sum unless `nesterov`.
      nesterov: Whether to add the momentum that comes next, as DANA-Slim's workers do.

    Returns:
      A transformation with `update(updates, state, params=None, *, worker)`. Unknown extra
      arguments are ignored.

    Raises:
      ValueError: For a hyperparameter or a plain `worker` out of range.
      TypeError: If `worker` is not passed to `update`.

    Source: Hakimi, Barkai, Gabel and Schuster, *Taming Momentum in a Distributed Asynchronous
    Environment*, 2019 (Multi-ASGD, DANA-Slim).

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.per_worker_momentum(decay=0.5, num_workers=2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for worker in (0, 1, 0):
      ...     updates, state = tx.update(jnp.ones(2), state, worker=worker)
      >>> print(updates, state.total)  # 0.5 * 1 + 1, and 1.5 + 1
      [1.5 1.5] [2.5 2.5]
    """
    checks.check_fraction("decay", decay)
    num_workers = checks.check_count("num_workers", num_workers)

    def init_fn(params: PyTree) -> Any:
        zeros = lambda: trees.zeros_to_accumulate(params)
        return PerWorkerMomentumState(
            written=rows.repeat_for_workers(zeros(), num_workers),
            latest=zeros(),
            pending_worker=jnp.zeros((), jnp.int32),
            total=None if nesterov else zeros(),
        )

    def update_fn(updates, state, params=None, *positional, worker=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        state.written.check(num_workers)
        row = update_checks.checked_worker(worker, num_workers)
        # Write, then read: the other order, and one velocity less, makes XLA copy all of them.
        written = rows.PerWorker(state.velocities)
        before = written.read(row)
        latest = trees.map_accumulators(lambda v, g: decay * v + g, before, updates)
        total = None
        if not nesterov:
            add = lambda all_of_them, new, old: all_of_them + (new - old)
            total = jax.tree.map(add, state.total, latest, before)
        look = (lambda g, v: decay * v.astype(g.dtype) + g) if nesterov else (lambda g, v: v)
        new_state = PerWorkerMomentumState(written, latest, row, total)
        return trees.map_updates(look, updates, latest), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def dana_look_ahead(
    decay: Scalar, learning_rate: optax.ScalarOrSchedule | None = None
) -> prediction.Send:
    r"""Sends where the next momentum step of every worker would carry the weights.

    .. math:: \hat w = w - \eta \gamma \sum_m v_m

    Args:
      decay: γ in [0, 1), that of `per_worker_momentum`.
      learning_rate: η of `tx`, a number or the schedule, read at the next update. Default: what
        `optax.inject_hyperparams` keeps in the state.

    Returns:
      `send(params, opt_state)` for `sim.simulate`; finds the sum in `opt_state`.

    Raises:
      ValueError: For a hyperparameter out of range, or (at the first call) a `tx` without
        `per_worker_momentum`, or without the learning rate that was left open.

    Source: Hakimi et al., *Taming Momentum in a Distributed Asynchronous Environment*, 2019,
    DANA-Zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.per_worker_momentum(decay=0.5, num_workers=2)
      >>> _, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)), worker=1)
      >>> send = rivals.sends.dana_look_ahead(decay=0.5, learning_rate=0.1)
      >>> print(send(jnp.ones(2), state))  # 1 - 0.1 * 0.5 * 1
      [0.95 0.95]
    """
    checks.check_fraction("decay", decay)
    if not callable(learning_rate):
        checks.check_non_negative("learning_rate", learning_rate)

    def send(params, opt_state):
        state = sending.find_state(opt_state, [PerWorkerMomentumState], "dana_look_ahead")
        if state.total is None:
            raise ValueError(
                "dana_look_ahead is for per_worker_momentum(nesterov=False): with nesterov, as in "
                "DANA-Slim, the params look ahead already, so send nothing else."
            )
        rate = sending.next_rates(learning_rate, opt_state, 1, "dana_look_ahead")[0]
        return sending.move(params, state.total, -rate * decay, "dana_look_ahead")

    return send


@document_fields
class Dana(NamedTuple):
    """What `dana` returns: `sim.Server(dana.tx, send=dana.send)`.

    Attributes:
      tx: The transformation of the server.
      send: What workers are sent.
    """

    tx: optax.GradientTransformationExtraArgs
    send: prediction.Send


def dana(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar,
    num_workers: int,
    *,
    lambda0: transforms.Strength | None = None,
    curvature: curvatures.Curvature = _SQUARED,
    max_pull: Scalar | None = None,
) -> Dana:
    r"""DANA-Zero, or with `lambda0` DANA-DC: the transformation and what it has to send.

    DANA-DC compensates before the momentum, and towards the look-ahead that the worker was sent:

    .. math:: g \leftarrow g + \lambda \odot g \odot g \odot (w - \hat w_{sent}), \quad
              v_m \leftarrow \gamma v_m + g, \quad w \leftarrow w - \eta v_m

    Args:
      learning_rate: η ≥ 0, or a schedule.
      decay: γ in [0, 1).
      num_workers: M ≥ 1.
      lambda0: λ0 of `dc.compensate_delay`; the authors' simulator has 2 with γ = 0.9. `None` does
        not compensate.
      curvature: Of `dc.curvatures`, used with `lambda0`; the authors' is the squared gradient.
      max_pull: κ ≥ 0, as in `dc.dcasgd`: the cap is that of the learning rate η / (1 - γ), which is
        what the momentum makes of it.

    Returns:
      A pair of `tx` and `send`.

    Raises:
      ValueError: For a hyperparameter out of range, or `max_pull` without `lambda0`.

    Source: Hakimi et al., *Taming Momentum in a Distributed Asynchronous Environment*, 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals, sim
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=200, seed=0)
      >>> tx, send = rivals.dana(0.01, decay=0.9, num_workers=4, lambda0=2.0)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> server = sim.Server(tx, send=send)
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((200, 3)))
      >>> print(jnp.round(result.params, 1))
      [1. 1. 1.]
    """
    stages: list[optax.GradientTransformation] = [
        per_worker_momentum(decay, num_workers),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if lambda0 is not None:
        rate = cap.effective_learning_rate(learning_rate, decay)
        compensate = transforms.compensate_delay(
            lambda0, curvature=curvature, max_pull=max_pull, learning_rate=rate
        )
        stages.insert(0, compensate)
    elif max_pull is not None:
        raise ValueError("max_pull caps a compensation: pass lambda0= as well.")
    return Dana(optax.chain(*stages), dana_look_ahead(decay, learning_rate))
