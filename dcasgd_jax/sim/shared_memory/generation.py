"""Draws traces of operations: at every step a random worker does its next one."""

from collections.abc import Sequence

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.sim.shared_memory.operations import MemoryTrace


def random_memory_trace(
    num_workers: int,
    num_blocks: int,
    num_jobs: int,
    *,
    seed: int,
    speeds: Sequence[float] | None = None,
) -> MemoryTrace:
    r"""Draws operations: the worker of each is random, blocks are read and written in their order.

    .. math:: P(\text{worker } m) = s_m / \textstyle\sum_{i \text{ busy}} s_i

    Args:
      num_workers: M ≥ 1.
      num_blocks: Blocks of the memory, ≥ 1.
      num_jobs: Gradients in all, ≥ 1; all are finished.
      seed: Integer ≥ 0.
      speeds: `[num_workers]`, operations per unit of time, each > 0. Default: all equal.

    Returns:
      A trace of `2 * num_blocks * num_jobs` operations; the same arguments always give the same.

    Raises:
      ValueError: For numbers out of range.

    Source: the machine model of Alistarh, De Sa and Konstantinov, PODC 2018, with a random
    scheduler in the place of the adversary.

    Example:
      >>> from dcasgd_jax import sim
      >>> trace = sim.random_memory_trace(2, num_blocks=1, num_jobs=3, seed=1)
      >>> trace.to_text()
      'r1.0 w1.0 r0.0 r1.0 w0.0 w1.0'
      >>> len(sim.random_memory_trace(3, num_blocks=5, num_jobs=18, seed=0))
      180
    """
    num_workers = checks.check_count("num_workers", num_workers)
    num_blocks = checks.check_count("num_blocks", num_blocks)
    num_jobs = checks.check_count("num_jobs", num_jobs)
    seed = checks.check_count("seed", seed, least=0)
    speed = np.ones(num_workers) if speeds is None else np.asarray(speeds, np.float64)
    if speed.shape != (num_workers,) or not (np.isfinite(speed) & (speed > 0)).all():
        raise ValueError(f"speeds must be {num_workers} finite numbers > 0, got {speeds!r}.")
    generator = np.random.default_rng(seed)
    done = [0] * num_workers  # operations of the present job
    dealt = min(num_workers, num_jobs)
    busy = list(range(dealt))
    worker, position = [], []
    for draw in generator.random(2 * num_blocks * num_jobs):
        weights = np.cumsum(speed[busy])
        m = busy[int(np.searchsorted(weights, draw * weights[-1], "right"))]
        worker.append(m)
        position.append(done[m])
        done[m] = (done[m] + 1) % (2 * num_blocks)
        if not done[m] and dealt == num_jobs:
            busy.remove(m)
        elif not done[m]:
            dealt += 1
    write, block = np.divmod(position, num_blocks)
    return MemoryTrace(np.array(worker), block, write == 1, num_workers, num_blocks)
