"""One cell of the comparison: a setting with or without momentum, every method tuned and run."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax.commands import catalogue, records, runs, settings, tuning
from dcasgd_jax.commands.catalogue.entry import Entry

Row = dict[str, Any]

TUNING_SEEDS = tuning.TUNING_SEEDS[:2]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A place to compare in.

    Args:
      setting: Task, cluster and budget.
      momentum: μ of heavy ball in every method that has one; `None` for none.
    """

    setting: settings.Setting
    momentum: float | None = None

    @property
    def name(self) -> str:
        """For files and the progress bar."""
        setting = self.setting
        parts = [setting.model, f"m{setting.num_workers}", setting.law_name]
        return "-".join(parts if self.momentum is None else [*parts, "momentum"])

    def describe(self) -> dict[str, Any]:
        """In JSON's types, what another run of the same cell has to have in common with it."""
        return records.finite_or_none({**self.setting.describe(), "momentum": self.momentum})

    def entries(self) -> tuple[Entry, ...]:
        """The methods that there are for it."""
        setting = self.setting
        return catalogue.entries(setting.num_workers, setting.num_pushes, self.momentum)


def num_pushes(cell: Cell, num_seeds: int) -> int:
    """Of all runs of one method, for the progress bar."""
    num_tuning = catalogue.NUM_CONFIGURATIONS * len(TUNING_SEEDS)
    return (num_tuning + num_seeds) * cell.setting.num_pushes


@functools.lru_cache(maxsize=2)
def workloads(setting: settings.Setting, seeds: tuple[int, ...]) -> list[runs.Workload]:
    """The same objects for all methods of a cell."""
    return [runs.make_workload(setting, seed) for seed in seeds]


def run(
    cell: Cell,
    entry: Entry,
    num_seeds: int,
    progress: runs.Progress = lambda pushes: None,
) -> Row:
    """Tunes a method on seeds of its own, then runs it on the seeds 0 to `num_seeds` - 1.

    Args:
      cell: Where.
      entry: The method.
      num_seeds: Fresh seeds.
      progress: Told of pushes done.

    Returns:
      What was chosen and how the fresh seeds ended (nan: diverged), in JSON's types.
    """
    started = time.perf_counter()
    grid = catalogue.make_grid(entry, cell.setting.model, cell.momentum)

    def train_losses(members: Sequence[tuning.Member]) -> np.ndarray:
        outcomes = entry.train(cell.setting, members, progress)
        return np.array([outcome.train_loss for outcome in outcomes])

    to_tune = workloads(cell.setting, TUNING_SEEDS)
    tuned = tuning.search(entry.name, grid, to_tune, train_losses)
    fresh = workloads(cell.setting, tuple(range(num_seeds)))
    outcomes = entry.train(cell.setting, [(tuned.chosen, w) for w in fresh], progress)
    return {
        "name": entry.name,
        "title": entry.title,
        "learning_rate": tuned.chosen.learning_rate,
        "number": tuned.chosen.lambda0,
        "train_loss": [_rounded(outcome.train_loss, 6) for outcome in outcomes],
        "test_error": [_rounded(outcome.test_error, 6) for outcome in outcomes],
        **rate_ranges(tuned),
        "warnings": tuned.warnings(),
        "tuning": {
            "learning_rates": list(grid.learning_rates),
            "numbers": list(grid.lambda0s),
            # [learning_rates, numbers]; null where a tuning seed diverged
            "train_loss": [[_rounded(x, 4) for x in row] for row in tuned.losses.mean(axis=2)],
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _rounded(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")


def rate_ranges(tuned: tuning.Tuned) -> dict[str, Any]:
    """How far the learning rate can be moved from the chosen one, with the chosen number.

    `stable` reaches as far as no tuning seed diverges, `within_twice` as far as the mean loss is at
    most twice that of the choice; both along the grid, without a gap, and `None` if the choice
    itself diverged.
    """
    row, column = tuned.best
    losses = tuned.losses.mean(axis=2)[:, column]
    found = {}
    for name, accepted in (
        ("stable", np.isfinite(losses)),
        ("within_twice", losses <= 2 * losses[row]),
    ):
        found[name] = None
        if accepted[row]:
            refused = np.flatnonzero(~accepted)
            first = max(refused[refused < row], default=-1) + 1
            last = min(refused[refused > row], default=len(losses)) - 1
            rates = tuned.grid.learning_rates
            found[name] = [rates[first], rates[last]]
    return found
