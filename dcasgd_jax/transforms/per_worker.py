"""Delay compensation that remembers, per worker, the parameters it pulled last."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax.transforms import checks, explicit, rows
from dcasgd_jax.typing import PyTree, Scalar


class CompensateWorkerDelayState(NamedTuple):
    """State of `compensate_worker_delay`."""

    backups: PyTree  # leaf [num_workers, ...]: what each worker pulled last
    pending_worker: chex.Array  # int32 scalar: it pulled after the last update, not written yet
    compensation: PyTree  # a CompensateDelayState

    @property
    def num_workers(self) -> int:
        """The number of backups of every leaf."""
        return next((leaf.shape[0] for leaf in jax.tree.leaves(self.backups)), 1)


def compensate_worker_delay(
    lambda0: explicit.Strength,
    num_workers: int,
    *,
    curvature: str | None = None,
    ms_decay: Scalar | None = None,
    eps: Scalar = 1e-7,
    bias_correction: bool = False,
    per_worker_mean_square: bool = False,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates stale gradients against a backup of what the sending worker pulled.

    The parameter server of DC-ASGD as a transformation: worker m pushes a gradient, the server
    applies the compensated gradient, worker m pulls the result.

    .. math:: \tilde g = g + \lambda \odot g \odot g \odot (w - w_{backup}(m))

    A worker pulls *after* its update, when this transformation has already returned. So the
    backup is written at the start of the next `update`, whose `params` are what was pulled. That
    stays right in any chain, with projections after the update, and across checkpoints.

    Args:
      lambda0: λ0 ≥ 0, a schedule or a rule, as in `compensate_delay`.
      num_workers: M ≥ 1. The state holds M copies of the parameters.
      curvature: As in `compensate_delay`.
      ms_decay: As in `compensate_delay`.
      eps: As in `compensate_delay`.
      bias_correction: As in `compensate_delay`.
      per_worker_mean_square: One mean square per worker (the paper authors' released code)
        instead of one on the server (the paper).
      max_pull: As in `compensate_delay`.
      learning_rate: As in `compensate_delay`.

    Returns:
      A transformation with `update(updates, state, params, *, worker)`; `worker` is an integer in
      `[0, num_workers)`. Pass it as an int32 array, not as a Python int, through a `jax.jit` of
      your own, to compile once. A traced worker out of range is clamped silently. For a pull that
      does not follow the worker's own push, call `record_pull`.

    Raises:
      ValueError: As `compensate_delay`; also for a plain `worker` out of range.
      TypeError: If `worker` is not passed to `update`, or `num_workers` is no int.

    Source: Zheng et al., ICML 2017, Algorithms 1 and 2.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(dc.compensate_worker_delay(2.0, num_workers=2), optax.sgd(0.1))
      >>> params = jnp.asarray([1.0])
      >>> state = tx.init(params)
      >>> for worker, grad in [(0, 0.5), (1, 0.5)]:  # both gradients were taken at 1.0
      ...     updates, state = tx.update(jnp.asarray([grad]), state, params, worker=worker)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)  # 0.95 - 0.1 * (0.5 + 2 * 0.5**2 * (0.95 - 1))
      [0.9025]
    """
    num_workers = checks.check_num_workers(num_workers)
    inner = explicit.compensate_delay(
        lambda0,
        curvature=curvature,
        ms_decay=ms_decay,
        eps=eps,
        bias_correction=bias_correction,
        num_workers=num_workers if per_worker_mean_square else None,
        max_pull=max_pull,
        learning_rate=learning_rate,
    )

    def init_fn(params: PyTree) -> Any:
        # Every backup is what worker m pulled before the first update: the parameters, copied.
        # Hence the first update may rewrite worker 0's row: it holds the same values.
        return CompensateWorkerDelayState(
            backups=jax.tree.map(lambda p: rows.repeat_row(p, num_workers), params),
            pending_worker=jnp.zeros((), jnp.int32),
            compensation=inner.init(params),
        )

    def update_fn(updates, state, params=None, *, worker=None, **extra_args) -> Any:
        extra_args.pop("stale_params", None)  # the simulator offers them; the backups are ours
        checks.check_params(params, "compensate_worker_delay")
        worker = checks.checked_worker(worker, num_workers)
        backups = jax.tree.map(
            lambda backup, p: rows.write_row(backup, jnp.asarray(p), state.pending_worker),
            state.backups,
            params,
        )
        stale_params = jax.tree.map(lambda backup: rows.Row(backup, worker), backups)
        updates, compensation = inner.update(
            updates,
            state.compensation,
            params,
            stale_params=stale_params,
            worker=worker,
            **extra_args,
        )
        return updates, CompensateWorkerDelayState(backups, worker, compensation)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def record_pull(opt_state: optax.OptState, worker: Scalar, params: PyTree) -> optax.OptState:
    """Notes that `worker` pulled `params` without having pushed: a restart, or a late pull.

    A pull that follows the worker's own push needs no call: the next `update` records it.

    Args:
      opt_state: Optimizer state that holds a `compensate_worker_delay`, at any depth.
      worker: Integer in `[0, num_workers)`.
      params: The server's current parameters, as pulled; the tree that `update` is given.

    Returns:
      The state with that worker's backup replaced.

    Raises:
      ValueError: If the state holds no per-worker backups, or a plain `worker` is out of range.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.dcasgd(0.1, num_workers=3)
      >>> state = tx.init(jnp.zeros(2))
      >>> state = dc.record_pull(state, 1, jnp.ones(2))
      >>> print(state[0].backups[:, 0])
      [0. 1. 0.]
    """
    is_state = lambda node: isinstance(node, CompensateWorkerDelayState)
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    found = False

    def replace(node):
        nonlocal found
        if not is_state(node):
            return node
        found = True
        num_workers = node.num_workers
        row = checks.checked_worker(worker, num_workers)
        write = lambda backup, p: (
            backup if is_masked(backup) else rows.write_row(backup, jnp.asarray(p), row)
        )
        backups = jax.tree.map(write, node.backups, params, is_leaf=is_masked)
        return node._replace(backups=backups)

    opt_state = jax.tree.map(replace, opt_state, is_leaf=is_state)
    if not found:
        raise ValueError(
            "This optimizer state holds no per-worker backups: build the optimizer with "
            "dc.dcasgd or dc.compensate_worker_delay."
        )
    return opt_state
