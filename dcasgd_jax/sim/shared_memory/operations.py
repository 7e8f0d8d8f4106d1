"""Primitive operations on shared memory: who reads or adds to which block, one after another."""

import dataclasses
import re
from typing import NamedTuple

import numpy as np

from dcasgd_jax import checks


class Jobs(NamedTuple):
    """The gradients of a trace in the order of their first writes; NumPy arrays [num_jobs]."""

    worker: np.ndarray
    batch: np.ndarray  # the row of the batches that it uses
    read_version: np.ndarray  # [num_jobs, num_blocks], writes to the block before it was read
    staleness: np.ndarray  # jobs that first wrote between its first read and its first write
    first_write: np.ndarray  # operation
    last_write: np.ndarray  # operation; -1 where the trace ends before it


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryTrace:
    """Reads and fetch-adds of several workers on one memory, in the order in which they happen.

    A worker repeats one job: it reads every block once, in any order, computes a gradient at that
    view, and adds its update to every block, in any order. Operations are atomic; what other
    workers do in between is what makes views inconsistent. The trace may end anywhere.

    `jobs` lists the gradients in the order of their first writes, with what each has read.
    Batches are dealt when a worker is free: worker m starts with batch m, and whoever finishes a
    job takes the next one, from `num_workers` on.

    Args:
      worker: `[num_operations]`, each in `[0, num_workers)`.
      block: `[num_operations]`, each in `[0, num_blocks)`.
      write: `[num_operations]`, bool; True adds to the block, False reads it.
      num_workers: M ≥ 1. Default: the largest worker plus one.
      num_blocks: ≥ 1. Default: the largest block plus one.

    Raises:
      ValueError: If this cannot have happened; names the first impossible operation.

    Source: the machine model of Alistarh, De Sa and Konstantinov, PODC 2018.

    Example:
      >>> from dcasgd_jax import sim
      >>> trace = sim.MemoryTrace.from_text("r0.0 r1.0 r1.1 w1.0 w1.1 r0.1 w0.0 w0.1")
      >>> trace.jobs.worker.tolist(), trace.jobs.read_version.tolist()
      ([1, 0], [[0, 0], [0, 1]])
    """

    worker: np.ndarray
    block: np.ndarray
    write: np.ndarray
    num_workers: int = None  # type: ignore[assignment]
    num_blocks: int = None  # type: ignore[assignment]
    jobs: Jobs = dataclasses.field(init=False)

    def __post_init__(self):
        for name, dtype in (("worker", np.int32), ("block", np.int32), ("write", np.bool_)):
            array = np.array(getattr(self, name)).astype(dtype)
            if array.ndim != 1 or not np.array_equal(array, getattr(self, name)):
                kind = "booleans" if dtype == np.bool_ else "32-bit integers"
                raise ValueError(f"MemoryTrace.{name} must be {kind} [num_operations].")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        lengths = [len(self.worker), len(self.block), len(self.write)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(
                "MemoryTrace needs worker, block and write of one length >= 1, got lengths "
                f"{lengths}."
            )
        for name, of in (("num_workers", self.worker), ("num_blocks", self.block)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, int(of.max()) + 1)
            else:
                checks.check_fields(self, **{name: 1})
        object.__setattr__(self, "jobs", _follow(self))

    @classmethod
    def from_text(cls, text: str) -> "MemoryTrace":
        """The trace of a text such as "r0.3 w1.0": worker 0 reads block 3, worker 1 adds to 0.

        Raises:
          ValueError: For a word that is no operation, and what the constructor refuses.
        """
        found = [re.fullmatch(r"([rw])(\d+)\.(\d+)", word) for word in text.split()]
        for word, match in zip(text.split(), found, strict=True):
            if match is None:
                raise ValueError(f"{word!r} is no operation: write r or w, worker, dot, block.")
        parts = [match.groups() for match in found if match is not None]
        return cls(
            worker=np.array([int(worker) for _, worker, _ in parts], np.int32),
            block=np.array([int(block) for _, _, block in parts], np.int32),
            write=np.array([kind == "w" for kind, _, _ in parts], bool),
        )

    def to_text(self) -> str:
        """The trace as `from_text` reads it."""
        rows = zip(self.write.tolist(), self.worker.tolist(), self.block.tolist(), strict=True)
        return " ".join(f"{'w' if write else 'r'}{worker}.{block}" for write, worker, block in rows)

    def __len__(self) -> int:
        """Number of operations."""
        return len(self.worker)


class _Job:
    """What one worker is doing."""

    def __init__(self, worker: int, batch: int, num_blocks: int):
        self.worker, self.batch = worker, batch
        self.read_version = [-1] * num_blocks
        self.to_read, self.to_write = set(range(num_blocks)), set(range(num_blocks))
        self.first_read_after = self.staleness = self.first_write = self.last_write = -1

    def fault(self, block: int, write: bool) -> str | None:
        """What is impossible about its next operation, in words."""
        if write and self.to_read:
            return f"writes block {block}, but has yet to read blocks {sorted(self.to_read)}"
        if write and block not in self.to_write:
            return f"writes block {block} a second time in one job"
        if not write and not self.to_read:
            return f"reads block {block}, but has yet to write blocks {sorted(self.to_write)}"
        if not write and block not in self.to_read:
            return f"reads block {block} a second time in one job"
        return None


def _follow(trace: MemoryTrace) -> Jobs:
    """Follows the operations one by one; raises ValueError at the first impossible one."""
    versions = [0] * trace.num_blocks
    current = [_Job(m, m, trace.num_blocks) for m in range(trace.num_workers)]
    dealt = trace.num_workers
    jobs: list[_Job] = []  # by first write
    operations = zip(trace.worker.tolist(), trace.block.tolist(), trace.write.tolist(), strict=True)
    for k, (worker, block, write) in enumerate(operations):
        _check_range(k, "worker", worker, trace.num_workers)
        _check_range(k, "block", block, trace.num_blocks)
        job = current[worker]
        fault = job.fault(block, write)
        if fault is not None:
            raise ValueError(f"Impossible memory trace: at operation {k} worker {worker} {fault}.")
        if not write:
            if job.first_read_after < 0:
                job.first_read_after = len(jobs)
            job.to_read.remove(block)
            job.read_version[block] = versions[block]
            continue
        if job.first_write < 0:
            job.first_write, job.staleness = k, len(jobs) - job.first_read_after
            jobs.append(job)
        job.to_write.remove(block)
        versions[block] += 1
        if not job.to_write:
            job.last_write = k
            current[worker] = _Job(worker, dealt, trace.num_blocks)
            dealt += 1
    column = lambda name: np.array([getattr(job, name) for job in jobs], np.int32)
    columns = {name: column(name) for name in Jobs._fields}
    return Jobs(**columns)._replace(
        read_version=columns["read_version"].reshape(len(jobs), trace.num_blocks)
    )


def _check_range(operation: int, name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ValueError(
            f"Impossible memory trace: at operation {operation} {name} {index} is not in "
            f"[0, {size})."
        )
