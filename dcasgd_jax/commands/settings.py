"""What an experiment is about, apart from methods and seeds: one value to pass and to compare."""

import dataclasses
from typing import Any

from dcasgd_jax import sim
from dcasgd_jax.schedules import laws

LAWS = {
    "gamma": sim.GammaTime,
    "exponential": sim.ExponentialTime,
    "constant": sim.ConstantTime,
    "roundrobin": sim.RoundRobin,
    "lognormal": sim.LognormalTime,
    "pareto": sim.ParetoTime,
}

MIN_ROUNDS = 4  # so that every step of the learning-rate decay is at least one server update


def name_of_law(law: laws.WorkerTimeLaw) -> str:
    """As on the command line."""
    return next(name for name, kind in LAWS.items() if type(law) is kind)


def describe_law(law: laws.WorkerTimeLaw) -> dict[str, Any]:
    """A law and its parameters in JSON's types."""
    parameters = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(law).items()  # type: ignore[call-overload]
    }
    return {"law": name_of_law(law), "law_params": parameters}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The task, the cluster and the budget.

    Args:
      model: One of `digits.MODELS`.
      num_workers: M.
      law: How long a gradient takes each worker; of a type in `LAWS`.
      num_pushes: Gradients pushed by all workers together: the budget of every method.
      batch_size: Images per gradient.
      momentum: μ of heavy ball in every method that has one; `None` for none.
    """

    model: str = "mlp"
    num_workers: int = 8
    law: laws.WorkerTimeLaw = dataclasses.field(default_factory=sim.GammaTime)
    num_pushes: int = 2520
    batch_size: int = 16
    momentum: float | None = None

    @property
    def name(self) -> str:
        """In a few words."""
        cluster = f"{self.model}, {self.num_workers} workers, {name_of_law(self.law)} times"
        return cluster if self.momentum is None else f"{cluster}, momentum {self.momentum:g}"

    @property
    def title(self) -> str:
        """How titles of tables and pictures begin."""
        return (
            f"{self.model} on digits, {self.num_workers} worker{'s' * (self.num_workers > 1)}, "
            f"{name_of_law(self.law)} times"
        )

    def describe(self) -> dict[str, Any]:
        """The setting in JSON's types, named as on the command line."""
        return {
            "model": self.model,
            "workers": self.num_workers,
            **describe_law(self.law),
            "updates": self.num_pushes,
            "batch_size": self.batch_size,
            "momentum": self.momentum,
        }
