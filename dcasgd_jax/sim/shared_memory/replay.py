"""Operation by operation: a trace of reads and fetch-adds, replayed on compiled memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import rows
from dcasgd_jax.sim import offers
from dcasgd_jax.sim.shared_memory import blocks as blocks_of
from dcasgd_jax.sim.shared_memory import step
from dcasgd_jax.sim.shared_memory.operations import MemoryTrace
from dcasgd_jax.typing import PyTree


class Operation(NamedTuple):
    """One operation; int32 and bool scalars, or NumPy arrays [num_operations]."""

    worker: Any
    block: Any
    write: Any
    first_write: Any  # of a job: the gradient is taken here
    batch: Any  # the last three: of the job, where this is its first write
    staleness: Any
    evaluates: Any


class Memory(NamedTuple):
    """What goes from operation to operation."""

    params: PyTree
    opt_state: PyTree
    views: PyTree  # leaf [num_workers, ...], what the workers have read
    updates: PyTree  # leaf [num_workers, ...], what the workers are adding


def make_operations(trace: MemoryTrace, evaluates: np.ndarray) -> Operation:
    """The trace as the compiled step sees it."""
    place = lambda values: _at(trace.jobs.first_write, values, len(trace))
    first_write = np.zeros(len(trace), bool)
    first_write[trace.jobs.first_write] = True
    return Operation(
        worker=trace.worker,
        block=trace.block,
        write=trace.write,
        first_write=first_write,
        batch=place(trace.jobs.batch),
        staleness=place(trace.jobs.staleness),
        evaluates=evaluates,
    )


def _at(operations: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    placed = np.zeros(length, np.int32)
    placed[operations] = values
    return placed


def initial_memory(program: step.Program, params: PyTree, opt_state: PyTree, count: int) -> Memory:
    """Memory before the first operation; views and updates are written before they are used."""
    state = step.initial_state(program, params, opt_state, count)
    updates = optax.tree.zeros_like(state.snapshots)
    return Memory(state.params, state.opt_state, state.snapshots, updates)


def run_operation(program, memory: Memory, operation: Operation, shared: step.Shared):
    """One read or one fetch-add; the loss where a gradient is taken, else zero."""
    mine = lambda tree: jax.tree.map(lambda leaf: rows.read_row(leaf, operation.worker), tree)
    write_mine = lambda tree, row: jax.tree.map(
        lambda leaf, new: rows.write_row(leaf, new, operation.worker), tree, row
    )
    # Block -1 is none. No branch may hold all views and updates: XLA would copy them.
    block_read = jnp.where(operation.write, -1, operation.block)
    block_written = jnp.where(operation.write, operation.block, -1)
    view = blocks_of.put(shared.blocks, block_read, memory.params, mine(memory.views))
    loss, update, opt_state = jax.lax.cond(
        operation.first_write,
        lambda view, update, opt_state: compute_update(
            program, memory.params, opt_state, operation, view, shared
        ),
        lambda view, update, opt_state: (_zero_loss(program, view, shared), update, opt_state),
        *(view, mine(memory.updates), memory.opt_state),
    )
    added = fetch_add(memory.params, view, update)
    memory = Memory(
        params=blocks_of.put(shared.blocks, block_written, added, memory.params),
        opt_state=opt_state,
        views=write_mine(memory.views, view),
        updates=write_mine(memory.updates, update),
    )
    return memory, (loss, step.evaluate(program, memory.params, operation))


def fetch_add(params: PyTree, view: PyTree, update: PyTree) -> PyTree:
    """What a block holds after an atomic addition: what it holds now, not what was read, plus."""
    del view  # a read-modify-write would add to it, and lose the updates of others
    return optax.apply_updates(params, update)


def compute_update(program, params, opt_state, operation: Operation, view, shared: step.Shared):
    """The worker's gradient at its view, and what the optimizer makes of it."""
    batch = step.batch_of(shared, operation.batch)
    loss, grads = jax.value_and_grad(program.loss_fn)(view, batch)
    offered = step.offered_arguments(program, operation, view, batch)
    update, opt_state = offers.update(program.tx, grads, opt_state, params, **offered)
    update = jax.tree.map(lambda u, w: u.astype(w.dtype), update, params)
    return loss, update, opt_state


def _zero_loss(program, view, shared):
    batch = jax.eval_shape(lambda: step.batch_of(shared, jnp.int32(0)))
    return jnp.zeros((), jax.eval_shape(program.loss_fn, view, batch).dtype)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="memory")
def run_operations(
    program: step.Program, memory: Memory, operations: Operation, shared: step.Shared
):
    """All operations in one `lax.scan`."""
    body = lambda memory, operation: run_operation(program, memory, operation, shared)
    return jax.lax.scan(body, memory, operations)
