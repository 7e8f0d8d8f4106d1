"""What the lanes engine compiles: the gradients of a wave at once, then its pushes in order."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dcasgd_jax import rows
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import engines, server, step, work, worker
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.lanes import placement

_WHY_NO_CURVATURES = (
    "the lanes engine computes the gradients of a wave before the server's params are known: use "
    "ScanEngine or HostEngine"
)


@functools.partial(jax.jit, static_argnames=("program", "layout"), donate_argnames="state")
def run_waves(program, layout, state, waves, events, batches, shared):
    """Runs waves one after the other; returns the state, and the reports of all events."""
    reports = _no_reports(program, state, events, batches, shared)
    about_batch = _about_batch(program, events, batches, shared)

    def run_wave(k, carry):
        state, reports = carry
        state = placement.constrain(state, layout.of_state(program, state))
        first, stop = waves.bounds[k], waves.bounds[k + 1]
        row = jax.tree.map(lambda leaf: rows.read_row(leaf, k), batches)
        row = placement.constrain(row, layout.lanes)
        state = step.store_version(program, state, sources.take_rows(events, first))
        lanes = jnp.minimum(first + jnp.arange(layout.num_lanes, dtype=jnp.int32), stop - 1)
        of_lanes = jax.tree.map(lambda column: column[lanes], events)
        pulled = _read_versions(program, layout, state, of_lanes)
        gradients = _gradients(program, layout, of_lanes, pulled, row, shared)

        push = functools.partial(
            _push, program, layout, events, first, about_batch, pulled, gradients
        )
        return jax.lax.fori_loop(first, stop, push, (state, reports))

    state, reports = jax.lax.fori_loop(0, waves.count, run_wave, (state, reports))
    state = placement.constrain(state, layout.of_state(program, state))
    return state, placement.constrain(reports, layout.replicated)


def _read_versions(program, layout, state, of_lanes) -> programs.Pulled:
    """What all lanes have pulled, leaf [num_lanes, ...], in slices."""
    pulled = jax.tree.map(lambda slots: slots[of_lanes.read_slot], state.snapshots)
    of_worker = functools.partial(step.kept_by_worker, program, state)
    begin = lambda pulled, event: step.with_kept(program, pulled, of_worker(event), event)
    pulled = jax.vmap(begin)(pulled, of_lanes)
    return placement.constrain(pulled, layout.slices(pulled, leading=1))


def _gradients(program, layout, of_lanes, pulled, row, shared) -> programs.Gradient:
    """The gradients of all lanes: slices to whole lanes, the workers' part, and back to slices."""

    def on_device(of_lanes, pulled, row, shared):
        one = lambda event, pulled, row: worker.gradient(program, event, pulled, row, shared)
        if layout.lanes_per_device > 1:
            return jax.vmap(one)(of_lanes, pulled, row)
        alone = one(*sources.take_rows((of_lanes, pulled, row), 0))
        return jax.tree.map(lambda leaf: leaf[None], alone)

    lane, whole = PartitionSpec(layout.axis), PartitionSpec()
    gradients = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(lane, lane, lane, whole),
        out_specs=lane,
        check_vma=False,  # a loss is free to have loops that start from constants
    )(of_lanes, placement.constrain(pulled, layout.lanes), row, shared)
    return placement.constrain(gradients, layout.slices(gradients, leading=1))


def _about_batch(program, events, batches, shared):
    """What transformations may ask about a batch before the server's params are known."""
    event, row = _first(events, batches)
    batch = jax.eval_shape(functools.partial(worker.batch_of, program), event, row, shared)
    known = program.worker.about(_no_loss, programs.Pulled(None), batch, None)
    return {**known, **work.refused(_WHY_NO_CURVATURES)}


def _no_loss(*arguments):
    raise TypeError(f"No loss is taken of {arguments}.")


def _first(events, batches):
    """The first event, and its row."""
    return sources.take_rows(events, 0), jax.tree.map(lambda leaf: leaf[0, 0], batches)


def _push(program, layout, events, first, about_batch, pulled, gradients, index, carry):
    """The server's part of event `index`, which the wave that begins with `first` computed."""
    state, reports = carry
    state = placement.constrain(state, layout.of_state(program, state))
    event = jax.tree.map(lambda column: column[index], events)
    state = step.store_version(program, state, event)
    of_lane = lambda leaf: rows.read_row(leaf, index - first)
    gradient, stale_params = jax.tree.map(of_lane, (gradients, pulled.params))
    arrived = programs.Push(gradient, stale_params, about_batch)
    state, metrics = server.receive(program, state, event, arrived)
    new = metrics, engines.evaluation_or_zeros(program, state, event)
    reports = jax.tree.map(lambda column, leaf: rows.write_row(column, leaf, index), reports, new)
    state = placement.constrain(state, layout.of_state(program, state))
    return state, placement.constrain(reports, layout.replicated)


def _no_reports(program, state, events, batches, shared):
    """Room for the reports of all events, leaf [num_events, ...]."""

    def report(state, events, batches, shared):
        event, row = _first(events, batches)
        state, metrics = step.run_event(program, state, event, row, shared)
        return metrics, engines.evaluation_or_zeros(program, state, event)

    shapes = jax.eval_shape(report, state, events, batches, shared)
    length = len(events.event)
    return jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), shapes)
