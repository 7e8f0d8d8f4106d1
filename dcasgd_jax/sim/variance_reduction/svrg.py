"""`svrg`: asynchronous stochastic variance-reduced gradients, epoch by epoch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.sim import arguments, preconditions
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim.problem import Problem, Server, as_server
from dcasgd_jax.sim.shared_memory import blocks as blocks_of
from dcasgd_jax.sim.shared_memory import simulate as shared_memory
from dcasgd_jax.sim.shared_memory import step
from dcasgd_jax.sim.shared_memory.reads import ReadVersions
from dcasgd_jax.sim.variance_reduction.full_gradient import full_gradient
from dcasgd_jax.typing import PyTree


@document_fields
class SvrgResult(NamedTuple):
    """What `svrg` returns; events are counted on through the epochs.

    Attributes:
      params: The trained parameters.
      opt_state: State of the optimizer, as `tx.init` makes one.
      anchor_losses: [num_epochs], of all examples, at each epoch's anchor.
      losses: [num_events], of the batch alone, at the params that were read.
      direction_norms: [num_events], of v, which is handed to `tx`.
      epoch: [num_events].
      evaluations: Leaf [num_evaluations, ...]; None without `eval_fn`.
    """

    params: PyTree
    opt_state: optax.OptState
    anchor_losses: np.ndarray
    losses: np.ndarray
    direction_norms: np.ndarray
    epoch: np.ndarray
    evaluations: PyTree | None


def svrg(
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    schedules: Sequence[Schedule | ReadVersions],
    batches: sources.Indexed,
    *,
    blocks: PyTree | None = None,
    full_batch_size: int | None = None,
    eval_every: int = 1,
) -> SvrgResult:
    r"""Trains with stale gradients whose noise is measured at an anchor and taken off.

    At the start of an epoch everybody waits, the anchor becomes the present params, and the
    gradient over all examples is taken there. Every event of the epoch then hands `tx`

    .. math:: v = C(\nabla f_B(x_{read})) - \nabla f_B(\tilde x) + \nabla f(\tilde x)

    with one batch B for both gradients and C the `per_push` of a `sim.Server`. Gradients that are
    under way when the epoch ends are dropped, so none meets an anchor that it was not made for.

    Args:
      problem: `sim.Problem(loss_fn, params)`: the loss is the mean over the examples of a batch,
        and the params are the first anchor. No model state. Its `eval_fn(params)` runs inside the
        compiled loop.
      tx: Any optax transformation of v; keeps its state from epoch to epoch. It is offered
        `stale_params`, `staleness`, `worker` and the curvatures as in `simulate`. Or a
        `sim.Server(tx, per_push=)`: the latter transforms :math:`\nabla f_B(x_{read})` alone, and
        is offered the same: compensate there, with `dc.compensate_delay`. In `tx` it would square
        v, most of which was not taken at the stale params.
      schedules: One for each epoch, from version 0: for M workers and n updates,
        `[sim.make_schedule(law, M, n, seed=e) for e in range(num_epochs)]`; or `ReadVersions`, for
        inconsistent reads. Equally long ones share a compiled program.
      batches: `sim.Indexed(examples, rows)`: `rows[k]` is the batch of event k, counted on
        through the epochs.
      blocks: For `ReadVersions`, as in `simulate_shared_memory`.
      full_batch_size: Examples at once when the full gradient is taken, ≥ 1. Default: as many as
        in a batch.
      eval_every: n ≥ 1: evaluate after every n-th event.

    Returns:
      An `SvrgResult`.

    Raises:
      ValueError: Without an epoch, for rows that are too few or point outside the examples, or a
        schedule that averages pushes or corrupts them.
      TypeError: If `batches` is not `sim.Indexed`, or an epoch is no schedule.

    Source: Johnson and Zhang, NIPS 2013; asynchronous: Reddi et al., NIPS 2015; Huo and Huang,
    AAAI 2017; Fang and Lin, AAAI 2017.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, numpy as np, optax
      >>> from dcasgd_jax import sim
      >>> schedules = [sim.make_schedule(sim.ExponentialTime(), 4, 30, seed=e) for e in range(3)]
      >>> rows = np.random.default_rng(0).integers(0, 51, size=(90, 5))
      >>> problem = sim.Problem(lambda w, x: jnp.mean((w - x) ** 2), jnp.asarray(3.0))
      >>> server = sim.Server(optax.sgd(0.1), per_push=dc.compensate_delay(0.1))
      >>> batches = sim.Indexed(jnp.linspace(0, 1, 51), rows)
      >>> result = sim.svrg(problem, server, schedules, batches)
      >>> print(jnp.round(result.params, 3))  # the mean, without the noise of the batches
      0.5
    """
    server = as_server(tx)
    arguments.check_arguments(problem=problem, server=server)
    arguments.refuse_options("svrg", problem, server, ("send",))
    loss_fn, params, eval_fn = problem.loss_fn, problem.params, problem.eval_fn
    check_arguments(schedules, batches)
    preconditions.check_hashable(loss_fn=loss_fn, eval_fn=eval_fn)
    eval_every = checks.check_count("eval_every", eval_every)
    first_events = np.cumsum([0, *map(len, schedules)])
    shared = step.make_shared(batches, first_events[-1], None, most=first_events[-1])
    full_batch_size = check_full_batch_size(full_batch_size, batches)
    all_blocks = [_blocks(reads, blocks, params) for reads in schedules]
    program = step.Program(loss_fn, server.tx, server.per_push, eval_fn)
    for reads in schedules:
        or_more = isinstance(reads, ReadVersions)
        count = int(reads.worker.max(initial=0)) + 1 if or_more else reads.num_workers
        step.check_states(program, params, server.opt_state, count, or_more=or_more)
    state = step.initial_state(
        program, params, server.opt_state, max(map(step.count_slots, schedules))
    )
    evaluates = np.arange(1, first_events[-1] + 1) % eval_every == 0
    anchor_losses, reports = [], []
    for first, reads, of_epoch in zip(first_events[:-1], schedules, all_blocks, strict=True):
        anchor_loss, state, report = _run_epoch(
            program,
            state,
            step.make_events(reads, int(first), evaluates[first : first + len(reads)]),
            shared._replace(blocks=of_epoch),
            full_batch_size,
        )
        anchor_losses.append(anchor_loss)
        reports.append(report)
    report = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(reports))
    return SvrgResult(
        params=state.params,
        opt_state=state.opt_state,
        anchor_losses=np.stack(jax.device_get(anchor_losses)),
        losses=report.loss,
        direction_norms=report.norm,
        epoch=np.repeat(np.arange(len(schedules)), np.diff(first_events)),
        evaluations=shared_memory.chosen(report.evaluation, evaluates),
    )


def _blocks(reads: Schedule | ReadVersions, blocks: PyTree | None, params: PyTree) -> PyTree:
    if isinstance(reads, Schedule):
        return blocks_of.one_block(params)
    return blocks_of.make_blocks(blocks, params, reads.num_blocks)


def _run_epoch(program, state, events, shared, full_batch_size):
    """The barrier, then all events of an epoch."""
    # The events donate their state, so the anchor needs memory of its own.
    anchor_params = jax.tree.map(jnp.copy, state.params)
    loss, gradient = full_gradient(program.loss_fn, anchor_params, shared.examples, full_batch_size)
    shared = shared._replace(anchor=step.Anchor(anchor_params, gradient))
    return loss, *step.run_events(program, state, events, shared)


def check_arguments(schedules: Sequence[Schedule | ReadVersions], batches: Any) -> None:
    """There are epochs, one update for each of their pushes, and examples to average over."""
    if not isinstance(batches, sources.Indexed):
        raise TypeError(
            "svrg needs batches=sim.Indexed(examples, rows), because the full gradient is over all "
            f"examples; got {type(batches).__name__}."
        )
    if isinstance(schedules, Schedule | ReadVersions) or not len(schedules):
        raise ValueError("svrg needs a sequence of schedules, one for each epoch, at least one.")
    for epoch, reads in enumerate(schedules):
        if not isinstance(reads, Schedule | ReadVersions):
            raise TypeError(
                f"schedules[{epoch}] must be a sim.Schedule or sim.ReadVersions, got "
                f"{type(reads).__name__}."
            )
        if isinstance(reads, ReadVersions):
            continue
        if (reads.num_pushes > 1).any():
            raise ValueError(
                f"schedules[{epoch}] averages several pushes into one update, but in svrg every "
                "push is an update of its own."
            )
        if reads.corrupt.any():
            raise ValueError(f"schedules[{epoch}] has corrupt pushes, which svrg does not model.")
    shape = np.shape(batches.rows)
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"svrg needs rows [num_events, batch_size], got shape {shape}.")


def check_full_batch_size(size: int | None, batches: sources.Indexed) -> int:
    """At least one example at once, and no more than there are."""
    if size is None:
        size = int(np.shape(batches.rows)[1])
    size = checks.check_count("full_batch_size", size)
    return min(size, *(len(leaf) for leaf in jax.tree.leaves(batches.examples)))
