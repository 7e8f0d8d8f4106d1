"""Tuning: a grid of hyperparameters per method, on seeds that the comparison does not use."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dcasgd_jax.commands import methods, records, runs, settings

TUNING_SEEDS = (100, 101, 102)

LEARNING_RATES = {
    "mlp": tuple(0.05 * 2 ** (n / 2) for n in range(13)),  # 0.05 to 3.2
    "softmax": tuple(0.4 * 2 ** (n / 2) for n in range(15)),  # 0.4 to 51
}
LAMBDA0S = {
    "dcasgd-c": (0.04, 0.4, 2.0, 8.0, 32.0, 128.0),
    "dcasgd-a": (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0),
    "dcasgd-capped": (0.5, 1.0, 2.0, 4.0, 8.0, 32.0, 128.0),
}


Member = tuple[methods.Hyperparameters, runs.Workload]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values to try for one method."""

    learning_rates: Sequence[float]
    lambda0s: Sequence[float | None]

    def __len__(self) -> int:
        """Number of combinations."""
        return len(self.learning_rates) * len(self.lambda0s)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One method's grid and what came of it."""

    method: str
    grid: Grid
    losses: np.ndarray  # [learning_rates, lambda0s, seeds], final train loss; nan if diverged

    @property
    def num_diverged(self) -> np.ndarray:
        """Diverged seeds of each combination; [learning_rates, lambda0s]."""
        return np.isnan(self.losses).sum(axis=2)

    @property
    def best(self) -> tuple[int, int]:
        """Indices of the choice: fewest diverged seeds, then the lowest mean train loss."""
        finished = self.losses.shape[2] - self.num_diverged
        mean = np.nansum(self.losses, axis=2) / np.maximum(finished, 1)
        order = np.lexsort((mean.ravel(), self.num_diverged.ravel()))
        row, column = np.unravel_index(order[0], mean.shape)
        return int(row), int(column)

    @property
    def chosen(self) -> methods.Hyperparameters:
        """The chosen values."""
        row, column = self.best
        return methods.Hyperparameters(self.grid.learning_rates[row], self.grid.lambda0s[column])

    def warnings(self) -> list[str]:
        """What makes the choice doubtful, a sentence each."""
        row, column = self.best
        found = []
        if self.num_diverged[row, column]:
            found.append(
                f"{self.method}: every combination of the grid diverged on some tuning seed; the "
                f"chosen one on {self.num_diverged[row, column]} of {self.losses.shape[2]}."
            )
        for name, index, values in (
            ("learning rate", row, self.grid.learning_rates),
            ("lambda0", column, self.grid.lambda0s),
        ):
            if len(values) > 1 and index in (0, len(values) - 1):
                edge = "smallest" if index == 0 else "largest"
                found.append(
                    f"{self.method}: the chosen {name} {values[index]:.3g} is the {edge} of its "
                    "grid; a better one may lie beyond."
                )
        return found


def default_grid(model: str, method: methods.Method) -> Grid:
    """The values that `--tune` tries: learning rates spaced by √2, λ0 roughly by 2 to 10."""
    rates = tuple(float(f"{rate:.4g}") for rate in LEARNING_RATES[model])
    return Grid(rates, LAMBDA0S[method.name] if method.compensates else (None,))


def tune(
    setting: settings.Setting,
    method: methods.Method,
    grid: Grid,
    workloads: Sequence[runs.Workload],
    progress: runs.Progress = lambda num_pushes: None,
) -> Tuned:
    """Trains every combination on every workload, all in one sweep."""

    def train_losses(members: Sequence[Member]) -> np.ndarray:
        return runs.final_train_losses(setting, method, members, progress)

    return search(method.name, grid, workloads, train_losses)


def search(
    name: str,
    grid: Grid,
    workloads: Sequence[runs.Workload],
    train_losses: Callable[[Sequence[Member]], np.ndarray],
) -> Tuned:
    """What comes of every combination on every workload.

    Args:
      name: Of the method.
      grid: The combinations.
      workloads: A seed each.
      train_losses: Trains members; returns their final train losses [num_members], nan where one
        diverged.
    """
    members = [
        (methods.Hyperparameters(rate, lambda0), workload)
        for rate, lambda0, workload in itertools.product(
            grid.learning_rates, grid.lambda0s, workloads
        )
    ]
    shape = (len(grid.learning_rates), len(grid.lambda0s), len(workloads))
    return Tuned(name, grid, train_losses(members).reshape(shape))


def record(setting: settings.Setting, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Everything about a tuning run, in JSON's types; the defaults are read from such a record."""
    return {
        "date": records.today(),
        "setting": setting.describe(),
        "seeds": list(TUNING_SEEDS),
        "chosen_on": "mean final train loss over the seeds; null: diverged",
        "versions": records.versions(),
        "methods": {
            result.method: {
                "chosen": result.chosen._asdict(),
                "warnings": result.warnings(),
                "learning_rates": list(result.grid.learning_rates),
                "lambda0s": list(result.grid.lambda0s),
                "final_train_loss": [  # [learning_rates, lambda0s, seeds]
                    [[float(f"{loss:.5g}") for loss in seeds] for seeds in row]
                    for row in result.losses
                ],
            }
            for result in tuned
        },
    }
