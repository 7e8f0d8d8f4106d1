"""How fast schedules are made, against an event heap in plain Python; and in how much memory."""

import heapq
import time
import tracemalloc

import numpy as np
from timing import Row, alternate

from dcasgd_jax import sim

WORKERS = 64
LAW = sim.GammaTime(100, 1.0)
IN_THE_LOOP = {
    "synchronous with 4 backup workers": (sim.Synchronous(4), WORKERS - 4),
    "stale-synchronous, bound 3": (sim.StaleSynchronous(3), 1),
}
REGIONS = 4
LINKS = sim.Links(
    [m % REGIONS for m in range(WORKERS)],
    latency=np.where(np.eye(REGIONS), 0.001, 0.1),
    bandwidth=1e9,
    push_bytes=1e7,
    pull_bytes=1e7,
)


def heap_loop(num_events: int) -> sim.Schedule:
    """An asynchronous run as one would write it first."""
    count = num_events // WORKERS + num_events // 1000 + 100  # equal workers stay level
    times = [LAW.times(m, count, np.random.default_rng([0, m])).tolist() for m in range(WORKERS)]
    heap = [(times[m][0], m, 0, 0) for m in range(WORKERS)]
    heapq.heapify(heap)
    workers, reads, arrivals = [], [], []
    for version in range(num_events):
        arrival, worker, pushed, read = heapq.heappop(heap)
        workers.append(worker)
        reads.append(read)
        arrivals.append(arrival)
        heapq.heappush(heap, (arrival + times[worker][pushed + 1], worker, pushed + 1, version + 1))
    return sim.Schedule(workers, reads, time=arrivals, num_workers=WORKERS)


def complete(num_updates: int, **settings) -> sim.Schedule:
    """A schedule with all that an engine needs of it."""
    schedule = sim.make_schedule(LAW, WORKERS, num_updates, seed=0, **settings)
    assert schedule.slots.num_slots
    assert len(schedule.waves)
    return schedule


def rows(num_events: int = 1_000_000, repeats: int = 3) -> list[Row]:
    """Asynchronous against the heap, the whole schedule, its memory, the protocols in a loop."""
    schedule = sim.make_schedule(LAW, WORKERS, num_events, seed=0)
    expected = heap_loop(num_events)
    for name in ("worker", "read_version", "version", "time"):
        np.testing.assert_array_equal(getattr(schedule, name), getattr(expected, name))
    ours, plain = alternate(
        lambda: sim.make_schedule(LAW, WORKERS, num_events, seed=0),
        lambda: heap_loop(num_events),
        repeats=repeats,
    )
    size = f"{num_events:,} events, {WORKERS} workers"
    start = time.perf_counter()
    complete(num_events)
    seconds = time.perf_counter() - start
    megabytes = peak_megabytes(num_events)
    table = [
        Row(
            f"asynchronous schedule, {size}, vs a plain heap loop",
            f"{ours:.2f} s",
            f"{plain:.2f} s",
            plain / ours,
            ">= 5",
        ),
        Row(
            f"the same with slots and waves, {size}, vs 10 s",
            f"{seconds:.2f} s",
            "10 s",
            10 / seconds,
            ">= 1",
        ),
        Row(
            "the memory that takes, vs 500 MB",
            f"{megabytes:.3g} MB",
            "500 MB",
            500 / megabytes,
            ">= 1",
        ),
    ]
    for what, (protocol, pushes) in IN_THE_LOOP.items():
        start = time.perf_counter()
        complete(max(1, num_events // pushes), protocol=protocol)
        seconds = time.perf_counter() - start
        table.append(
            Row(f"{what}, {size}, vs 10 s", f"{seconds:.2f} s", "10 s", 10 / seconds, ">= 1")
        )
    start = time.perf_counter()
    complete(num_events, protocol=sim.Grace(0.02), links=LINKS)
    seconds = time.perf_counter() - start
    what = f"a grace of 0.02 s, links of {REGIONS} regions that pushes share"
    table.append(Row(f"{what}, {size}, vs 15 s", f"{seconds:.2f} s", "15 s", 15 / seconds, ">= 1"))
    return table


def peak_megabytes(num_events: int) -> float:
    """The most memory at once while a schedule with slots and waves is made."""
    tracemalloc.start()
    complete(num_events)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6
