"""Local steps: the time that pushes of several take, and how many each worker should."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import laws


@dataclasses.dataclass(frozen=True)
class StepsTime:
    r"""Pushes of several local steps: :math:`T = t_1 + \dots + t_H`, each from another law.

    Args:
      law: The law of one step's time.
      num_steps: H ≥ 1, or one number for each worker; as given to `sim.LocalSteps`.

    Example:
      >>> from dcasgd_jax import sim
      >>> law = sim.StepsTime(sim.ConstantTime([0.5, 1.0]), num_steps=[8, 4])
      >>> sim.make_schedule(law, 2, 4, seed=0).time.tolist()
      [4.0, 4.0, 8.0, 8.0]
    """

    law: laws.WorkerTimeLaw
    num_steps: int | Sequence[int]

    def __post_init__(self):
        laws.check_law("StepsTime.law", self.law)
        steps = checks.check_counts("StepsTime.num_steps", self.num_steps)
        object.__setattr__(self, "num_steps", steps)

    def check(self, num_workers: int) -> None:
        """Raises ValueError if the law or the steps are for another number of workers."""
        self.law.check(num_workers)
        checks.check_length("StepsTime.num_steps", self.num_steps, num_workers)

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        given: Any = self.num_steps
        steps = given[worker] if isinstance(given, tuple) else given
        return self.law.times(worker, count * steps, generator).reshape(count, steps).sum(axis=1)


def steps_by_speed(seconds: Sequence[float], most: int) -> tuple[int, ...]:
    r"""Fewer local steps for slow workers, so that all push about equally often.

    .. math:: H_m = \max(1, \lfloor H\,v_m / \max_j v_j \rfloor), \quad v_m = 1 / seconds_m

    Args:
      seconds: Of one step, one number > 0 for each worker.
      most: H ≥ 1, steps of the fastest.

    Returns:
      Steps of each worker, for `LocalSteps(num_steps=...)` and `StepsTime`.

    Raises:
      ValueError: For numbers that are not positive and finite.

    Source: Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024, section 5
    (dynamic local updates).

    Example:
      >>> from dcasgd_jax import sim
      >>> sim.steps_by_speed([1.0, 2.0, 4.5], most=32)
      (32, 16, 7)
    """
    most = checks.check_count("most", most)
    times = np.asarray(seconds, np.float64)
    if times.ndim != 1 or not times.size or not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"seconds must be positive numbers, one for each worker, got {seconds}.")
    # Rounding of the quotient must not take a step from a worker that divides evenly.
    steps = np.floor(most * times.min() / times + 1e-9)
    return tuple(int(n) for n in np.maximum(steps, 1))
