"""The members of a sweep in one compiled program: in groups, over devices and host threads."""

import contextlib
import functools
import itertools
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dcasgd_jax.sim import engines, recording, step
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.sweeps import hyperparams, members
from dcasgd_jax.sim.sweeps import layout as layouts
from dcasgd_jax.typing import PyTree


class Start(NamedTuple):
    """What a member starts from."""

    params: PyTree
    opt_state: PyTree | None
    model_state: PyTree | None
    hyperparams: dict[str, Any]


class Members(NamedTuple):
    """What all members run: one program, with inputs of their own."""

    program: programs.Program
    runs: list[engines.Run]
    starts: list[Start]
    num_slots: int
    num_workers: int


def run(
    together: Members,
    layout: layouts.Layout,
    chunk_size: int,
    progress: Callable[[int], None] | None,
) -> tuple[programs.SimState, list[recording.Record]]:
    """Final states [num_members, ...] and what each member reports.

    XLA runs the programs of one CPU device at the same time if different threads start them; and
    because they are compiled in the calling thread, its settings hold in all of them.
    """
    num_events, num_members = len(together.runs[0].schedule), len(together.runs)
    inputs = _Inputs(together.runs, layout)
    log = _Log(together.runs)
    with contextlib.ExitStack() as stack:
        pools = [futures.ThreadPoolExecutor(1, "sweep") for _ in range(layout.num_threads)]
        threads = [stack.enter_context(pool) for pool in pools]
        states = _initial_states(together, layout)
        groups = [
            _Group(of_group, thread)
            for of_group, thread in zip(states, itertools.cycle(threads), strict=False)
        ]
        del states  # the groups donate them
        for chunk in engines.chunks(num_events, chunk_size):
            reports = []
            for group, chunk_inputs in zip(groups, inputs.chunk(chunk), strict=True):
                options = together.program, layout.mesh
                compiled = _advance.lower(*options, group.described, chunk_inputs).compile()
                reports.append(group.advance(compiled, chunk_inputs))
            log.add(chunk, reports)
            if progress is not None and chunk.start:
                progress(num_members * chunk.start)
        log.fetch()
    if progress is not None:
        progress(num_members * num_events)
    final = _joined([group.states for group in groups], num_members)
    return final, log.records(final.params)


class _Group:
    """Some members, advanced by always the same thread."""

    def __init__(self, states: programs.SimState, thread: futures.ThreadPoolExecutor):
        self.states, self._thread = states, thread
        self.described = jax.tree.map(_describe, states)

    def advance(self, compiled: Callable, inputs: Any) -> futures.Future:
        """Starts a chunk; its reports come in the future."""
        return self._thread.submit(self._advance, compiled, inputs)

    def _advance(self, compiled, inputs):
        self.states, reports = compiled(self.states, inputs)
        return reports


class _Inputs:
    """Events, batches and keys of all members, chunk by chunk, on the devices."""

    def __init__(self, runs: list[engines.Run], layout: layouts.Layout):
        self._runs, self._layout = runs, layout
        union = functools.reduce(_either, (run.events.evaluates for run in runs))
        # A branch that only some members take would be computed for all at every event.
        events = [run.events._replace(evaluates=union) for run in runs]
        self._events = members.gather("events", events)
        shared = members.gather("keys and examples", [run.shared for run in runs])
        self._shared = _place(shared, layout)
        self._same_batches = all(run.batches is runs[0].batches for run in runs)

    def chunk(self, chunk: slice) -> list[tuple[members.Gathered, ...]]:
        """The inputs of every group."""
        events = members.Gathered(
            [leaf[:, chunk] for leaf in self._events.own],
            [leaf[chunk] for leaf in self._events.common],
            self._events.is_own,
            self._events.structure,
        )
        runs = self._runs[:1] if self._same_batches else self._runs
        rows = [run.batches.chunk(chunk) for run in runs]
        batches = members.gather("batches", rows)
        placed = _place(events, self._layout), _place(batches, self._layout), self._shared
        return list(zip(*placed, strict=True))


def _place(gathered: members.Gathered, layout: layouts.Layout) -> list[members.Gathered]:
    """On the devices, for each group."""
    common = layouts.put(gathered.common, layout.mesh, PartitionSpec())
    return [
        members.Gathered(
            layouts.put([leaf[group] for leaf in gathered.own], layout.mesh, layouts.SPREAD),
            common,
            gathered.is_own,
            gathered.structure,
        )
        for group in layout.groups
    ]


def _either(one, other):
    return None if one is None else one | other


def _describe(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _initial_states(together: Members, layout: layouts.Layout) -> list[programs.SimState]:
    """Of every group, on the devices."""
    starts = members.gather("params and states", together.starts)
    sizes = together.num_slots, together.num_workers, layout.groups.shape[1]
    return [
        _make_states(together.program, layout.mesh, *sizes, of_group)
        for of_group in _place(starts, layout)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _make_states(program, mesh, num_slots, num_workers, num_members, starts):
    make = lambda own: initial_state(program, num_slots, num_workers, starts.member(own))
    states = jax.vmap(make, axis_size=num_members)(starts.own)
    return jax.lax.with_sharding_constraint(states, NamedSharding(mesh, layouts.SPREAD))


def initial_state(
    program: programs.Program, num_slots: int, num_workers: int, start: Start
) -> programs.SimState:
    """The state of one member before its first event."""
    state = step.initial_state(
        program, start.params, start.opt_state, start.model_state, num_slots, num_workers
    )
    states = hyperparams.put((state.opt_state, state.push_state), start.hyperparams)
    of_workers = hyperparams.put(state.worker_state, start.hyperparams, repeat=num_workers)
    return state._replace(opt_state=states[0], push_state=states[1], worker_state=of_workers)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _advance(program, mesh, states, inputs):
    """Runs a chunk of events of all members of a group."""
    own, common = [i.own for i in inputs], [i.common for i in inputs]

    def on_device(states, own, common):
        gathered = [
            members.Gathered(own=o, common=c, is_own=i.is_own, structure=i.structure)
            for i, o, c in zip(inputs, own, common, strict=True)
        ]

        def one(state, own):
            events, rows, shared = (g.member(o) for g, o in zip(gathered, own, strict=True))
            return engines.scan_events(program, state, events, rows, shared)

        if len(jax.tree.leaves(states)[0]) > 1:
            return jax.vmap(one)(states, own)
        # One member is not vectorized: its slices and branches stay what they are.
        alone = jax.tree.map(lambda leaf: leaf[0], (states, own))
        return jax.tree.map(lambda leaf: leaf[None], one(*alone))

    # Members never talk to each other: nothing that could be replicated is checked for it.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(layouts.SPREAD, layouts.SPREAD, PartitionSpec()),
        out_specs=layouts.SPREAD,
        check_vma=False,
    )(states, own, common)


def _joined(groups: list[PyTree], num_members: int) -> PyTree:
    """The members of all groups in one tree, without the repeated ones."""

    def join(*leaves):
        joined = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        return joined if len(joined) == num_members else joined[:num_members]

    return jax.tree.map(join, *groups)


class _Log:
    """Collects the reports of all members one chunk late, each member's in a log of its own."""

    def __init__(self, runs: list[engines.Run]):
        self._logs = [recording.Log(run.events, run.trace_every, None, run.watch) for run in runs]
        self._waiting: tuple | None = None
        self._all_finite = True

    def add(self, chunk: slice, reports: list[futures.Future]) -> None:
        """Takes the reports of a chunk, a future for each group."""
        self.fetch()
        self._waiting = chunk, reports

    def fetch(self) -> None:
        """Waits for the last reports that were added."""
        if self._waiting is None:
            return
        chunk, of_groups = self._waiting
        self._waiting = None
        fetched = jax.device_get([future.result() for future in of_groups])
        reports = jax.tree.map(lambda *leaves: np.concatenate(leaves), *fetched)
        losses = reports[0].loss[: len(self._logs)].astype(np.float64)
        self._all_finite &= bool(np.isfinite(losses).all())
        for i, log in enumerate(self._logs):
            log.add(chunk, *jax.tree.map(lambda leaf: leaf[i], reports))  # noqa: B023

    def records(self, params: PyTree) -> list[recording.Record]:
        """What each member reported; `params` are those that they end with."""
        # They are looked at only where a loss was not finite.
        params = None if self._all_finite else jax.device_get(params)
        of_member = lambda i: jax.tree.map(lambda leaf: leaf[i], params)
        return [log.record(of_member(i)) for i, log in enumerate(self._logs)]
