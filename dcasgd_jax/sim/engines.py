"""Engines: how the events of a schedule are executed. All run the same step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np

from dcasgd_jax.sim import step
from dcasgd_jax.typing import PyTree

Progress = Callable[[int], None]


class Engine(Protocol):
    """What `simulate` needs of an engine."""

    def run(
        self,
        program: step.Program,
        state: step.SimState,
        events: step.Event,
        batches: PyTree,
        key: jax.Array | None,
        progress: Progress | None,
    ) -> tuple[step.SimState, step.Metrics]:
        """Runs `events` (arrays [num_events]) on `batches`; donates `state`.

        Returns the state after them and the metrics, NumPy arrays [num_events].
        """
        ...


@dataclasses.dataclass(frozen=True)
class ScanEngine:
    """Compiles many events into one `lax.scan`: for accelerators and small models.

    Args:
      chunk_size: Events per compiled scan ≥ 1. Longer runs repeat the same program, so neither
        compile time nor device memory grows with the number of events.
    """

    chunk_size: int = 4096

    def __post_init__(self):
        _check_chunk_size(self.chunk_size)

    def run(self, program, state, events, batches, key, progress):
        """See `Engine.run`."""
        log = _MetricLog(progress)
        for chunk in _chunks(len(events.worker), self.chunk_size):
            state, metrics = _scan_chunk(
                program, state, take_rows(events, chunk), take_rows(batches, chunk), key
            )
            log.add(metrics, chunk.stop)
        return state, log.concatenated()


@dataclasses.dataclass(frozen=True)
class HostEngine:
    """One compiled step per event, dispatched without waiting: for convolutions on CPU, debugging.

    XLA runs convolutions on the CPU far slower inside a loop than outside; this engine keeps the
    loop on the host.

    Args:
      jit: False runs every operation one by one, slowly: for debugging, and the other engines'
        oracle.
      chunk_size: Events between two collections of metrics ≥ 1.
    """

    jit: bool = True
    chunk_size: int = 256

    def __post_init__(self):
        _check_chunk_size(self.chunk_size)

    def run(self, program, state, events, batches, key, progress):
        """See `Engine.run`."""
        run_event: Callable = _compiled_event if self.jit else step.run_event
        log = _MetricLog(progress)
        with contextlib.nullcontext() if self.jit else jax.disable_jit():
            for chunk in _chunks(len(events.worker), self.chunk_size):
                metrics = []
                for k in range(chunk.start, chunk.stop):
                    state, event_metrics = run_event(
                        program, state, take_rows(events, k), take_rows(batches, k), key
                    )
                    metrics.append(event_metrics)
                log.add(metrics, chunk.stop)
            return state, log.concatenated()


def choose_engine(program: step.Program, params: PyTree, batch: PyTree, key) -> Engine:
    """`HostEngine` for convolutions on the CPU, `ScanEngine` for everything else."""
    if jax.default_backend() != "cpu":
        return ScanEngine()
    arguments = (params, batch) if key is None else (params, batch, key)
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)) for x in leaves)
    return HostEngine() if _convolves(program.loss_fn, shapes, structure) else ScanEngine()


@functools.lru_cache(maxsize=128)
def _convolves(loss_fn, shapes, structure) -> bool:
    """Whether a loss function uses convolutions; traces it, once for each kind of argument."""
    jaxpr = jax.make_jaxpr(loss_fn)(*jax.tree.unflatten(structure, shapes))
    return "conv_general_dilated" in str(jaxpr)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def _scan_chunk(program, state, events, batches, key):
    def body(state, inputs):
        event, batch = inputs
        return step.run_event(program, state, event, batch, key)

    return jax.lax.scan(body, state, (events, batches))


_compiled_event = jax.jit(step.run_event, static_argnames="program", donate_argnames="state")


class _MetricLog:
    """Collects metrics on the host, one chunk late so that the device never waits for it."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._on_host: list[step.Metrics] = []
        self._on_device: tuple | None = None

    def add(self, metrics, events_done: int) -> None:
        self._fetch()
        self._on_device = metrics, events_done

    def concatenated(self) -> step.Metrics:
        self._fetch()
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._on_host)

    def _fetch(self) -> None:
        if self._on_device is None:
            return
        metrics, events_done = jax.device_get(self._on_device[0]), self._on_device[1]
        if isinstance(metrics, list):
            metrics = jax.tree.map(lambda *scalars: np.stack(scalars), *metrics)
        self._on_host.append(metrics)
        self._on_device = None
        if self._progress is not None:
            self._progress(events_done)


def _chunks(num_events: int, size: int) -> Iterator[slice]:
    for start in range(0, num_events, size):
        yield slice(start, min(start + size, num_events))


def take_rows(tree: PyTree, index: slice | int) -> PyTree:
    """Row or rows `index` of every leaf; a leaf that is taken whole is not copied."""

    def take(leaf):
        whole = isinstance(index, slice) and index.start == 0 and index.stop == len(leaf)
        return leaf if whole else leaf[index]

    return jax.tree.map(take, tree)


def _check_chunk_size(chunk_size: int) -> None:
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer >= 1, got {chunk_size!r}.")
