"""Worker-time laws: how many seconds each gradient takes a worker to compute.

A law is a value. Each number in it is one for all workers, or a sequence with one per worker.
`law.times(worker, count, generator)` draws the first `count` compute times of one worker; with a
generator in the same state a larger `count` begins with the same times, so that every protocol
and every run length meets the same worker.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dcasgd_jax import checks

_SHORTEST = 1e-300  # seconds

PerWorker = float | Sequence[float]


class WorkerTimeLaw(Protocol):
    """What `make_schedule` needs of a law."""

    def check(self, num_workers: int) -> None:
        """Raises ValueError if the law cannot describe `num_workers` workers."""
        ...

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """The first `count` compute times of `worker` in seconds; float64 [count], all > 0."""
        ...


def check_law(name: str, law: object) -> None:
    """Raises TypeError unless this is a law."""
    is_law = checks.has_methods("check", "times")
    checks.check_kind(name, law, is_law, "a worker-time law, such as sim.GammaTime()")


class _NumbersPerWorker:
    """A law whose fields are positive numbers, each one for all workers or one per worker."""

    def _number_fields(self) -> list[dataclasses.Field]:
        # `MarkovTime` also has a law in it.
        return [f for f in dataclasses.fields(self) if f.name != "law"]  # type: ignore[arg-type]

    def __post_init__(self):
        for field in self._number_fields():
            given = getattr(self, field.name)
            try:
                values = np.atleast_1d(np.asarray(given, np.float64))
            except (TypeError, ValueError):
                raise TypeError(
                    f"{type(self).__name__}.{field.name} must be a number or one number per "
                    f"worker, got {given!r}."
                ) from None
            if values.ndim != 1 or not values.size:
                raise ValueError(
                    f"{type(self).__name__}.{field.name} must be a number or one number per worker."
                )
            for value in values:
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(
                        f"{type(self).__name__}.{field.name} must be positive and finite, "
                        f"got {value:g}."
                    )
            scalar = np.ndim(getattr(self, field.name)) == 0
            clean = float(values[0]) if scalar else tuple(values.tolist())
            object.__setattr__(self, field.name, clean)

    def check(self, num_workers: int) -> None:
        """Raises ValueError if a field has one number per worker for another number of workers."""
        for field in self._number_fields():
            name = f"{type(self).__name__}.{field.name}"
            checks.check_length(name, getattr(self, field.name), num_workers)

    def of(self, field: str, worker: int) -> float:
        """The value of `field` for `worker`."""
        value = getattr(self, field)
        return value[worker] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class ConstantTime(_NumbersPerWorker):
    """Every gradient takes a worker the same time; equal workers take turns.

    Args:
      seconds: Compute time > 0.

    Example:
      >>> from dcasgd_jax import sim
      >>> sim.make_schedule(sim.ConstantTime([1.0, 2.5]), 2, 4, seed=0).worker.tolist()
      [0, 0, 1, 0]
    """

    seconds: PerWorker = 1.0

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        del generator
        return np.full(count, self.of("seconds", worker))


@dataclasses.dataclass(frozen=True)
class RoundRobin(ConstantTime):
    """Workers push in turn, 0 to M-1 and again: staleness M-1 after the first round.

    Args:
      seconds: Compute time > 0; the same for all workers, or the turns would be lost.
    """

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.seconds, tuple) and len(set(self.seconds)) > 1:
            raise ValueError("RoundRobin needs one compute time for all; see ConstantTime.")


@dataclasses.dataclass(frozen=True)
class ExponentialTime(_NumbersPerWorker):
    r"""Memoryless compute times: :math:`p(t) = e^{-t/\mu}/\mu`, the most irregular common choice.

    Equal workers then push in random order, each push by any worker with probability 1/M.

    Args:
      mean: μ > 0, seconds.
    """

    mean: PerWorker = 1.0

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        return generator.exponential(self.of("mean", worker), count)


@dataclasses.dataclass(frozen=True)
class GammaTime(_NumbersPerWorker):
    r"""Gamma compute times, standard deviation :math:`\mu/\sqrt{shape}`.

    Args:
      shape: > 0; 100 is a homogeneous cluster (10 % deviation), 1 is `ExponentialTime`. Far below
        1 most times are tiny, and one below 1e-300 s is 1e-300 s.
      mean: μ > 0, seconds.
    """

    shape: PerWorker = 100.0
    mean: PerWorker = 1.0

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        shape = self.of("shape", worker)
        times = generator.gamma(shape, self.of("mean", worker) / shape, count)
        return np.maximum(times, _SHORTEST)  # NumPy's are 0 where a double has no such number


@dataclasses.dataclass(frozen=True)
class LognormalTime(_NumbersPerWorker):
    r"""Log-normal compute times: :math:`\exp(\mathcal N(\log\mu - \sigma^2/2, \sigma^2))`.

    Args:
      mean: μ > 0, seconds.
      sigma: σ > 0, of the logarithm.
    """

    mean: PerWorker = 1.0
    sigma: PerWorker = 0.5

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        sigma = self.of("sigma", worker)
        return generator.lognormal(
            math.log(self.of("mean", worker)) - sigma * sigma / 2, sigma, count
        )


@dataclasses.dataclass(frozen=True)
class ParetoTime(_NumbersPerWorker):
    r"""Pareto compute times with heavy tails: :math:`P(T > t) = (t_0/t)^\alpha`, stragglers.

    Args:
      alpha: α > 1, so that the mean exists; the variance does from α > 2.
      mean: μ > 0, seconds; :math:`t_0 = \mu (\alpha - 1) / \alpha` is the shortest time.
    """

    alpha: PerWorker = 2.5
    mean: PerWorker = 1.0

    def __post_init__(self):
        super().__post_init__()
        if np.any(np.asarray(self.alpha) <= 1):
            raise ValueError(f"ParetoTime.alpha must be > 1 for a finite mean, got {self.alpha}.")

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        alpha = self.of("alpha", worker)
        shortest = self.of("mean", worker) * (alpha - 1) / alpha
        return shortest * (1 + generator.pareto(alpha, count))


@dataclasses.dataclass(frozen=True)
class MarkovTime(_NumbersPerWorker):
    r"""Workers that turn slow for a while and recover, on top of any other law.

    Before each gradient a healthy worker turns slow with probability `turns_slow` and a slow one
    recovers with probability `recovers`: slow spells last 1/`recovers` gradients on average. The
    first gradient is slow with the long-run probability
    :math:`\pi = turns\_slow / (turns\_slow + recovers)`, so that the mean time is that of `law`
    times :math:`1 + \pi (slowdown - 1)` from the start.

    Args:
      law: The law of a healthy worker.
      slowdown: Compute times of a slow worker are this many times longer; ≥ 1.
      turns_slow: Probability in (0, 1].
      recovers: Probability in (0, 1].

    Example:
      >>> from dcasgd_jax import sim
      >>> law = sim.MarkovTime(sim.GammaTime(100, 1.0), slowdown=5.0)
      >>> sim.make_schedule(law, 8, 1000, seed=0).num_updates
      1000
    """

    law: WorkerTimeLaw
    slowdown: PerWorker = 5.0
    turns_slow: PerWorker = 0.01
    recovers: PerWorker = 0.1

    def __post_init__(self):
        check_law("MarkovTime.law", self.law)
        super().__post_init__()
        if np.any(np.asarray(self.slowdown) < 1):
            raise ValueError(f"MarkovTime.slowdown must be >= 1, got {self.slowdown}.")
        for name in ("turns_slow", "recovers"):
            if np.any(np.asarray(getattr(self, name)) > 1):
                raise ValueError(
                    f"MarkovTime.{name} is a probability and must be <= 1, "
                    f"got {getattr(self, name)}."
                )

    def check(self, num_workers: int) -> None:
        """Raises ValueError unless both this law and the one below can describe the workers."""
        super().check(num_workers)
        self.law.check(num_workers)

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        # Each gets a stream of its own: how many numbers one takes must not shift the other's.
        base, chain = (np.random.default_rng(s) for s in generator.integers(2**63, size=2))
        slow = self._slow(worker, chain.random(count))
        return self.law.times(worker, count, base) * np.where(slow, self.of("slowdown", worker), 1)

    def _slow(self, worker: int, uniform: np.ndarray) -> np.ndarray:
        """Whether each gradient is a slow one; bool [count]."""
        turns_slow, recovers = self.of("turns_slow", worker), self.of("recovers", worker)
        if_healthy = uniform < turns_slow
        if_slow = uniform < 1 - recovers
        if_healthy[:1] = if_slow[:1] = uniform[:1] < turns_slow / (turns_slow + recovers)
        # Where the next state depends on the last one it is the same, or always the other one.
        known = if_healthy == if_slow
        last_known = np.maximum.accumulate(np.where(known, np.arange(len(uniform)), 0))
        flips = np.cumsum(if_healthy & ~if_slow)
        return if_healthy[last_known] ^ ((flips - flips[last_known]) % 2 == 1)
