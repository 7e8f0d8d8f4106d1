"""The lanes engine: the gradients of a wave at once, on all devices of a mesh."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dcasgd_jax import checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.schedules import waves as wave_finder
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import engines, recording
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.lanes import exchange, placement, wave_program
from dcasgd_jax.sim.simulate import simulate
from dcasgd_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class LanesEngine:
    """Computes the gradients of each wave in parallel lanes, then updates in the schedule's order.

    A wave is a run of events whose reads all precede it, so its gradients wait for none of its
    updates: every run equals the scan engine's up to rounding. Every device of the mesh has one
    lane or more. All gradients of a wave are computed before it is seen which are applied, also
    those of idle lanes, whose results are thrown away.

    With several processes (`jax.distributed`), call `simulate` with the same arguments in each.

    Args:
      mesh: From `jax.make_mesh`; its devices may belong to several processes.
      server: "sharded": each device has a slice of params, optimizer state and snapshots, along the
        largest axis that the number of devices divides; leaves without one, and optimizer state
        that is not shaped like a parameter, are on every device. "replicated": every device has
        everything and makes every update itself.
      lanes_per_device: Longer waves are split. Default: as many as the schedule's mean wave needs.
      axis: The mesh's axis that lanes and slices lie along. Default: its only one.
      chunk_size: Waves per call of the compiled program ≥ 1; their batches are on the devices.

    Raises:
      ValueError: For an axis that the mesh does not have, or numbers out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> mesh = jax.make_mesh(
      ...     (jax.device_count(),), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> result = sim.simulate(
      ...     problem, optax.sgd(0.05), schedule, jnp.ones((100, 3)), engine=sim.LanesEngine(mesh))
      >>> print(jnp.round(result.params, 3))
      [1. 1. 1.]
    """

    mesh: Mesh
    server: placement.Server = "sharded"
    lanes_per_device: int | None = None
    axis: str | None = None
    chunk_size: int = 256

    def __post_init__(self):
        mesh, axis = placement.resolve_mesh(self.mesh, self.axis)
        object.__setattr__(self, "mesh", mesh)
        object.__setattr__(self, "axis", axis)
        if self.server not in ("sharded", "replicated"):
            raise ValueError(f'server must be "sharded" or "replicated", got {self.server!r}.')
        if self.lanes_per_device is not None:
            checks.check_fields(self, lanes_per_device=1)
        checks.check_fields(self, chunk_size=1)

    def run(
        self,
        run: engines.Run,
        state: programs.SimState,
        progress: recording.Progress | None,
    ) -> tuple[programs.SimState, recording.Record]:
        """See `Engine.run`; the state returned is on the default device."""
        layout = self._layout(run.schedule)
        log = recording.Log(run.events, run.trace_every, progress, run.watch)
        with jax.set_mesh(self.mesh):  # whatever mesh the caller has set
            state = placement.place(state, layout.of_state(run.program, state))
            shared = placement.place(run.shared, layout.replicated)
            for chunk in _chunks(run, layout, self.chunk_size):
                state, reports = wave_program.run_waves(
                    run.program, layout, state, *chunk.inputs(), shared
                )
                log.add(chunk.events, *reports)
                if log.is_lost(state.params):
                    break
            record = log.record(state.params)
        return placement.to_default_device(state), record

    def exchange(self, *args: Any, **options: Any) -> exchange.Exchange:
        """What the devices send each other in a wave, read off the compiled program.

        Args:
          *args: As for `sim.simulate`, which compiles the program here but runs nothing.
          **options: Likewise.

        Returns:
          Bytes per wave of this schedule.
        """
        probe = _Probe(self)
        simulate(*args, **options, engine=probe)
        return exchange.measure(
            probe.compiled.as_text() or "", probe.layout.mesh.size, probe.wave_size
        )

    def _layout(self, schedule: schedules.Schedule) -> placement.Layout:
        assert self.axis is not None
        num_devices = self.mesh.shape[self.axis]
        per_device = self.lanes_per_device
        if per_device is None:
            mean_wave = len(schedule) / len(schedule.waves)
            per_device = int(np.ceil(mean_wave / num_devices))
        return placement.Layout(self.mesh, self.axis, per_device, self.server)


class _Waves(NamedTuple):
    """The waves of one call of the compiled program; int32, of a chunk of events."""

    bounds: Any  # [max_waves + 1], wave k is the events from bounds[k] to bounds[k + 1]
    count: Any  # waves there are


class _Chunk(NamedTuple):
    """Consecutive waves of a run."""

    run: engines.Run
    layout: placement.Layout
    events: slice  # of the run
    waves: _Waves

    def inputs(self) -> tuple[_Waves, programs.Event, PyTree]:
        """The waves, their events and their batches, on the devices."""
        lanes = self._lanes()
        batches = jax.tree.map(lambda leaf: self._by_wave(leaf, lanes), self._batches())
        small = self.waves, self._padded_events(lanes.size)
        return *placement.place(small, self.layout.replicated), batches

    def _batches(self) -> PyTree:
        return self.run.batches.chunk(self.events)

    def _lanes(self) -> np.ndarray:
        """The event that each lane of each wave computes; idle lanes repeat one."""
        first, stop = self.waves.bounds[:-1, None], self.waves.bounds[1:, None]
        lanes = first + np.arange(self.layout.num_lanes)
        return np.maximum(np.minimum(lanes, stop - 1), 0)

    def _padded_events(self, length: int) -> programs.Event:
        events = sources.take_rows(self.run.events, self.events)
        missing = length - (self.events.stop - self.events.start)
        return jax.tree.map(lambda column: np.pad(column, (0, missing)), events)

    def _by_wave(self, leaf: Any, lanes: np.ndarray) -> jax.Array:
        values, keys = placement.to_host(leaf)
        placed = placement.place(values[lanes], self.layout.lanes_of_waves)
        return placed if keys is None else jax.random.wrap_key_data(placed, impl=keys)


def _chunks(run: engines.Run, layout: placement.Layout, chunk_size: int) -> Iterator[_Chunk]:
    """The run as chunks of one length: one compiled program does them all."""
    schedule, span = run.schedule, run.span
    starts = wave_finder.assign_waves(
        schedule.worker, schedule.read_version, schedule.version, max_size=layout.num_lanes
    )
    inside = starts[(starts > span.start) & (starts < span.stop)]
    bounds = np.concatenate([[span.start], inside, [span.stop]]) - span.start
    num_waves = len(bounds) - 1
    # A power of two, so that schedules of other seeds find the program that is there.
    length = min(chunk_size, 1 << (num_waves - 1).bit_length())
    for chunk in engines.chunks(num_waves, length):
        part = bounds[chunk.start : chunk.stop + 1]
        padded = np.pad(part - part[0], (0, length + 1 - len(part)), mode="edge")
        waves = _Waves(padded.astype(np.int32), np.int32(len(part) - 1))
        yield _Chunk(run, layout, slice(int(part[0]), int(part[-1])), waves)


class _Probe:
    """An engine that compiles its program and runs nothing."""

    def __init__(self, engine: LanesEngine):
        self._engine = engine

    def run(self, run, state, progress):
        """See `Engine.run`."""
        del progress
        self.layout = self._engine._layout(run.schedule)
        chunks = list(_chunks(run, self.layout, self._engine.chunk_size))
        self.wave_size = len(run.events.event) / sum(int(chunk.waves.count) for chunk in chunks)
        placed = placement.place(state, self.layout.of_state(run.program, state))
        shared = placement.place(run.shared, self.layout.replicated)
        lowered = wave_program.run_waves.lower(
            run.program, self.layout, placed, *chunks[0].inputs(), shared
        )
        self.compiled = lowered.compile()
        nothing = np.zeros(0, np.int64)
        metrics = programs.Metrics(loss=np.zeros(0, np.float32))
        return state, recording.Record(nothing, metrics, nothing, None, None, False)
