"""`simulate_shared_memory`: inconsistent reads or single operations in, trained params out."""

from typing import NamedTuple

import jax
import numpy as np
import optax

from dcasgd_jax import checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.sim import arguments, preconditions
from dcasgd_jax.sim.problem import Problem, Server, as_server
from dcasgd_jax.sim.shared_memory import blocks as blocks_of
from dcasgd_jax.sim.shared_memory import replay, step
from dcasgd_jax.sim.shared_memory.operations import MemoryTrace
from dcasgd_jax.sim.shared_memory.reads import ReadVersions
from dcasgd_jax.typing import PyTree


@document_fields
class SharedMemoryResult(NamedTuple):
    """What `simulate_shared_memory` returns.

    Attributes:
      params: The trained parameters.
      opt_state: State of the optimizer, as `tx.init` makes one.
      losses: [num_events], each at its view; of a trace, in the order of first writes.
      evaluations: Leaf [num_evaluations, ...]; None without `eval_fn`.
    """

    params: PyTree
    opt_state: optax.OptState
    losses: np.ndarray
    evaluations: PyTree | None


def simulate_shared_memory(
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    reads: ReadVersions | MemoryTrace,
    batches: PyTree,
    *,
    blocks: PyTree | None = None,
    eval_every: int = 1,
) -> SharedMemoryResult:
    r"""SGD of workers that share one memory without locks, in compiled code.

    .. math:: x[j] \leftarrow x[j] + tx(\nabla f(\hat x; B))[j], \quad
              \hat x[j] = \text{block } j \text{ when this worker read it}

    With `ReadVersions` all blocks are updated at once; with a `MemoryTrace` each at an operation
    of its own, as an atomic fetch-add. `tx` is asked once for each gradient, at the moment of its
    first write, and is offered the view as `stale_params`: compensate with `dc.compensate_delay`,
    whose displacement then is, block by block, what the memory holds less what was read. It is
    also offered `staleness`, `worker`, `hessian_vector_product` and `fisher_diagonal`. One worker
    is sequential SGD.

    Args:
      problem: `sim.Problem(loss_fn, params)`, without a model state. Its `eval_fn(params)` runs
        inside the compiled loop.
      tx: Any optax transformation, or a `sim.Server(tx, opt_state=)`; here a server can neither
        average pushes nor send anything but what the memory holds.
      reads: Which version of each block every gradient has read, or every operation one by one.
      batches: A tree of arrays `[num_batches, ...]`, or `sim.Indexed`. Update t of `ReadVersions`
        takes row t; a job of a trace takes row `trace.jobs.batch`. Arrays have no other rows.
      blocks: A tree like `params` of integers or integer arrays that broadcast to their leaf: the
        block of each element. Default: every leaf is a block, in the order of `jax.tree.leaves`.
      eval_every: n ≥ 1: evaluate after every n-th update of `ReadVersions`; of a trace, whenever
        n more jobs have written their last block.

    Returns:
      A `SharedMemoryResult`.

    Raises:
      ValueError: For too few batches, blocks that fit neither the params nor the reads, or a trace
        without a write.
      TypeError: If `reads` is of another kind (a `Schedule` belongs to `simulate`), or a function
        cannot be hashed.

    Source: Recht et al., *Hogwild!*, NIPS 2011; Alistarh, De Sa and Konstantinov, *The Convergence
    of Stochastic Gradient Descent in Asynchronous Shared Memory*, PODC 2018.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> trace = sim.random_memory_trace(3, num_blocks=4, num_jobs=100, seed=0)
      >>> problem = sim.Problem(lambda x, target: jnp.sum((x - target) ** 2), jnp.zeros(4))
      >>> result = sim.simulate_shared_memory(
      ...     problem, optax.sgd(0.1), trace, jnp.ones((100, 4)), blocks=jnp.arange(4))
      >>> print(jnp.round(result.params, 3))
      [1. 1. 1. 1.]
    """
    if not isinstance(reads, ReadVersions | MemoryTrace):
        raise TypeError(
            "reads must be sim.ReadVersions or a sim.MemoryTrace, got "
            f"{type(reads).__name__}; a sim.Schedule is for sim.simulate."
        )
    server = as_server(tx)
    arguments.check_arguments(problem=problem, server=server)
    arguments.refuse_options("simulate_shared_memory", problem, server, ("per_push", "send"))
    loss_fn, params, eval_fn = problem.loss_fn, problem.params, problem.eval_fn
    preconditions.check_hashable(loss_fn=loss_fn, eval_fn=eval_fn)
    eval_every = checks.check_count("eval_every", eval_every)
    program = step.Program(loss_fn, server.tx, eval_fn=eval_fn)
    opt_state = server.opt_state
    block_tree = blocks_of.make_blocks(blocks, params, reads.num_blocks)
    count = _num_workers(reads)
    step.check_states(program, params, opt_state, count, or_more=isinstance(reads, ReadVersions))
    if isinstance(reads, ReadVersions):
        return _run_reads(program, params, opt_state, reads, batches, block_tree, eval_every)
    return _run_trace(program, params, opt_state, reads, batches, block_tree, eval_every)


def _num_workers(reads: ReadVersions | MemoryTrace) -> int:
    """Of a trace all; reads name those who push."""
    if isinstance(reads, MemoryTrace):
        return reads.num_workers
    return int(reads.worker.max(initial=0)) + 1


def _run_reads(program, params, opt_state, reads: ReadVersions, batches, blocks, eval_every):
    shared = step.make_shared(batches, len(reads), blocks, most=len(reads))
    evaluates = np.arange(1, len(reads) + 1) % eval_every == 0
    events = step.make_events(reads, 0, evaluates)
    state = step.initial_state(program, params, opt_state, step.count_slots(reads))
    state, report = step.run_events(program, state, events, shared)
    return SharedMemoryResult(
        params=state.params,
        opt_state=state.opt_state,
        losses=np.asarray(report.loss),
        evaluations=chosen(report.evaluation, evaluates),
    )


def _run_trace(program, params, opt_state, trace: MemoryTrace, batches, blocks, eval_every):
    if not len(trace.jobs.batch):
        raise ValueError("The memory trace has no write: nothing would be updated.")
    # Every worker has been dealt a batch, and another whenever it had finished a job.
    most = trace.num_workers + int((trace.jobs.last_write >= 0).sum())
    num_batches = int(trace.jobs.batch.max()) + 1
    shared = step.make_shared(batches, num_batches, blocks, most=max(most, num_batches))
    evaluates = np.zeros(len(trace), bool)
    finished = np.sort(trace.jobs.last_write[trace.jobs.last_write >= 0])
    evaluates[finished[eval_every - 1 :: eval_every]] = True
    operations = replay.make_operations(trace, evaluates)
    memory = replay.initial_memory(program, params, opt_state, trace.num_workers)
    memory, (loss, evaluation) = replay.run_operations(program, memory, operations, shared)
    return SharedMemoryResult(
        params=memory.params,
        opt_state=memory.opt_state,
        losses=np.asarray(loss)[trace.jobs.first_write],
        evaluations=chosen(evaluation, evaluates),
    )


def chosen(evaluations: PyTree | None, evaluates: np.ndarray) -> PyTree | None:
    """The evaluations that were asked for, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[evaluates], evaluations)
