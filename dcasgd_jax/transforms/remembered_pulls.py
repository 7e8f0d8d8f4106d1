"""An optimizer that remembers, per worker, the parameters it pulled last."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, rows, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class RememberPullsState(NamedTuple):
    """State of `remember_pulls`.

    Attributes:
      backups: Leaf [num_workers, ...]: what each worker pulled last.
      pulled_at: Int32 [num_workers]: after how many pushes it did.
      num_pushes: Int32 scalar.
      pending_worker: Int32 scalar: it pulled after the last push, not written yet.
      inner_state: State of the wrapped transformation.
    """

    backups: rows.PerWorker
    pulled_at: rows.PerWorker
    num_pushes: chex.Array
    pending_worker: chex.Array
    inner_state: optax.OptState


def remember_pulls(
    inner: optax.GradientTransformation,
    num_workers: int,
    *,
    send: Callable[[PyTree, optax.OptState], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Tells `inner` which parameters each gradient was taken at, by remembering who pulled what.

    The parameter server of DC-ASGD, around any chain: worker m pushes a gradient, the server
    updates, worker m pulls the result. At its next push `inner` is handed

    .. math:: stale\_params = w_{backup}(m), \qquad
              staleness = \text{pushes since that pull}

    A worker pulls *after* its update, when this transformation has already returned. So the
    backup is written at the start of the next `update`, whose `params` are what was pulled. That
    stays right with projections after the update, and across checkpoints.

    Put it outermost: what stands around it and skips a push (`optax.apply_if_finite`,
    `optax.MultiSteps`) hides from it that the worker pulls. Inside it a skipped push still is a
    pull. Compensation belongs before an `optax.MultiSteps`, which takes means: `multi =
    optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()`, then
    `remember_pulls(optax.chain(compensate_delay(), multi), num_workers)`.

    A server that knows better passes `stale_params=` or `staleness=` itself, as `sim.simulate`
    does, and is believed. What is remembered then is a guess that nobody uses; without `worker=`
    nothing is noted at all, so a server that offers sometimes must always name the worker.

    Args:
      inner: Any transformation, such as a chain. Its order is clipping, `compensate_delay`, weight
        decay, momentum or Adam, learning rate; a loop of your own cannot know if it is another.
      num_workers: M ≥ 1. The state holds M copies of the parameters.
      send: `send(params, opt_state)`, what workers are sent in the place of the parameters, such as
        that of `rivals.dana`: then this is what is remembered. Default: the parameters.

    Returns:
      A transformation with `update(updates, state, params, *, worker)`; `worker` is an integer in
      `[0, num_workers)`. Through a `jax.jit` of your own pass it as an array, such as
      `jnp.int32(m)`, to compile once; a traced worker out of range is clamped, others raise. For a
      pull that does not follow the worker's own push call `record_pull`. Other extra arguments go
      on to `inner`.

    Raises:
      ValueError: For a `worker` out of range, missing `params`, or a state for another number of
        workers.
      TypeError: If `worker` is not passed to `update`, or `num_workers` is no integer; for the
        state of another optimizer.

    Source: Zheng et al., ICML 2017, Algorithms 1 and 2.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> curvature = dc.curvatures.squared_gradient()
      >>> tx = dc.remember_pulls(
      ...     optax.chain(dc.compensate_delay(2.0, curvature=curvature), optax.sgd(0.1)), 2)
      >>> params = jnp.asarray([1.0])
      >>> state = tx.init(params)
      >>> for worker, grad in [(0, 0.5), (1, 0.5)]:  # both gradients were taken at 1.0
      ...     updates, state = tx.update(jnp.asarray([grad]), state, params, worker=worker)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)  # 0.95 - 0.1 * (0.5 + 2 * 0.5**2 * (0.95 - 1))
      [0.9025]
    """
    num_workers = checks.check_count("num_workers", num_workers)
    inner = optax.with_extra_args_support(inner)
    sent = (lambda params, _: params) if send is None else send

    def init_fn(params: PyTree) -> Any:
        # Every backup is what worker m pulled before the first update, copied.
        # Hence the first update may rewrite worker 0's row: it holds the same values.
        inner_state = inner.init(params)
        return RememberPullsState(
            backups=rows.repeat_for_workers(sent(params, inner_state), num_workers),
            pulled_at=rows.PerWorker(jnp.zeros((num_workers,), jnp.int32)),
            num_pushes=jnp.zeros((), jnp.int32),
            pending_worker=jnp.zeros((), jnp.int32),
            inner_state=inner_state,
        )

    def update_fn(
        updates, state, params=None, *positional, worker=None, stale_params=None, **extra_args
    ) -> Any:
        update_checks.check_keywords_only(positional)
        update_checks.check_params(params, "remember_pulls")
        if not isinstance(state, RememberPullsState):
            raise TypeError(
                "This is the state of another optimizer, which remembers no pulls "
                f"({type(state).__name__}): start from this one's init(params)."
            )
        state.backups.check(num_workers)
        known = stale_params is not None
        if known and worker is None:  # such as a gradient of nobody in particular
            told = {"stale_params": stale_params, **extra_args}
            updates, inner_state = inner.update(updates, state.inner_state, params, **told)
            return updates, state._replace(inner_state=inner_state)
        worker = update_checks.checked_worker(worker, num_workers)
        pulled = sent(params, state.inner_state)
        backups = state.backups.write(state.pending_worker, pulled)
        pulled_at = state.pulled_at.write(state.pending_worker, state.num_pushes)
        told = {"stale_params": stale_params if known else backups.read(worker), "worker": worker}
        if not known:
            told["staleness"] = state.num_pushes - pulled_at.read(worker)
        told |= {name: value for name, value in extra_args.items() if value is not None}
        updates, inner_state = inner.update(updates, state.inner_state, params, **told)
        num_pushes = jnp.asarray(optax.safe_increment(state.num_pushes))
        return updates, RememberPullsState(backups, pulled_at, num_pushes, worker, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def record_pull(opt_state: optax.OptState, worker: Scalar, params: PyTree) -> optax.OptState:
    """Notes that `worker` pulled `params` without having pushed: a restart, or a late pull.

    A pull that follows the worker's own push needs no call: the next `update` records it, and
    nothing else. If that was not the parameters, say what: `remember_pulls(..., send=)`, or
    `update(..., stale_params=)`.

    Args:
      opt_state: Optimizer state that holds a `remember_pulls`, at any depth.
      worker: Integer in `[0, num_workers)`.
      params: The server's current parameters, as pulled; the tree that `update` is given.

    Returns:
      The state with that worker's backup replaced.

    Raises:
      ValueError: If the state holds no backups, or `worker` is out of range.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.dcasgd(0.1, num_workers=3)
      >>> state = tx.init(jnp.zeros(2))
      >>> state = dc.record_pull(state, 1, jnp.ones(2))
      >>> print(state.backups.rows[:, 0])
      [0. 1. 0.]
    """
    if not trees.find_states(opt_state, RememberPullsState):
        raise ValueError(
            "This optimizer state remembers no pulls: build the optimizer with dc.dcasgd or "
            "dc.remember_pulls."
        )
    is_masked = lambda node: isinstance(node, optax.MaskedNode)

    def replace(node):
        num_workers = node.backups.num_workers
        if num_workers is None:
            return node
        row = update_checks.checked_worker(worker, num_workers)
        write = lambda backup, p: (
            backup if is_masked(backup) else rows.write_row(backup, jnp.asarray(p), row)
        )
        kept = jax.tree.map(write, node.backups.rows, params, is_leaf=is_masked)
        pulled_at = node.pulled_at.write(row, node.num_pushes)
        return node._replace(backups=rows.PerWorker(kept), pulled_at=pulled_at)

    return trees.map_states(replace, opt_state, RememberPullsState)
