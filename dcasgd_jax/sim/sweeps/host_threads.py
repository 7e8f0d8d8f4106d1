"""Members of a sweep on the host engine, one on each core: for convolutions on the CPU."""

import functools
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.sim import engines, recording
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.sweeps import layout as layouts
from dcasgd_jax.sim.sweeps import members, vectorized


class _Done(NamedTuple):
    """A message of a member's thread."""

    member: int
    events: int


class _GivenUpError(Exception):
    """Raised in the threads when the calling one has stopped."""


def run(
    together: vectorized.Members, progress: Callable[[int], None] | None
) -> tuple[programs.SimState, list[recording.Record]]:
    """Final states [num_members, ...] and what each member reports.

    Programs are compiled in the calling thread, so that its settings hold in all, and `progress` is
    called there.
    """
    program, runs = together.program, together.runs
    members.check_alike("params and states", together.starts)
    members.check_alike("batches", [one.batches.one(0) for one in runs])
    members.check_alike("keys and examples", [one.shared for one in runs])
    sizes = together.num_slots, together.num_workers
    make_state = lambda i: vectorized.initial_state(program, *sizes, together.starts[i])
    num_threads = min(layouts.num_cores(), len(runs))
    chunk_size = engines.HostEngine().chunk_size
    first = make_state(0)
    functions = engines.compile_for_host(runs[0], first)
    # A state is made when there is a thread for it: they may be large.
    states = itertools.chain([first], map(make_state, range(1, len(runs))))
    x64 = jax.dtypes.result_type(float) == np.float64
    messages: queue.SimpleQueue[_Done | futures.Future] = queue.SimpleQueue()
    given_up = threading.Event()

    def tell(member: int, events: int) -> None:
        if given_up.is_set():
            raise _GivenUpError
        messages.put(_Done(member, events))

    def run_one(
        member: int, state: programs.SimState
    ) -> tuple[programs.SimState, recording.Record]:
        with jax.enable_x64(x64):
            heard = functools.partial(tell, member)
            return engines.run_on_host(functions, runs[member], state, heard, chunk_size)

    started, running, events = [], 0, [0] * len(runs)
    with futures.ThreadPoolExecutor(num_threads, "sweep") as pool:
        try:
            while running or len(started) < len(runs):
                while running < num_threads and len(started) < len(runs):
                    member = len(started)
                    started.append(pool.submit(run_one, member, next(states)))
                    started[-1].add_done_callback(messages.put)
                    running += 1
                message = messages.get()
                if not isinstance(message, _Done):
                    message.result()
                    running -= 1
                    continue
                events[message.member] = message.events
                if progress is not None:
                    progress(sum(events))
        finally:
            given_up.set()
    finals, records = zip(*(future.result() for future in started), strict=True)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *finals), list(records)
