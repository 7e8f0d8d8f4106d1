"""One cell of the study: a task and a number of workers, every candidate on the same schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import strength_candidates as candidates

from dcasgd_jax.commands import methods, runs, settings, tuning

Cell = dict[str, Any]
Progress = Callable[[str, int], None]

TUNED = "tuned"
"""Name of the row that every candidate is compared with: λ0 and learning rate tuned, capped."""


def num_pushes(
    setting: settings.Setting, chosen: Sequence[candidates.Candidate], seeds: int
) -> int:
    """Of all runs of `run_cell`, for the progress bar."""
    rates = len(tuning.LEARNING_RATES[setting.model])
    lambda0s = len(tuning.LAMBDA0S["dcasgd-capped"])
    tuned = len(tuning.TUNING_SEEDS) * rates * (lambda0s + 1 + len(chosen))
    return (tuned + seeds * (2 + len(chosen))) * setting.num_pushes


def run_cell(
    setting: settings.Setting,
    chosen: Sequence[candidates.Candidate],
    seeds: int,
    progress: Progress = lambda text, pushes: None,
) -> Cell:
    """Tunes the learning rate of every candidate, and λ0 of the reference, then runs fresh seeds.

    Args:
      setting: Task, workers and budget.
      chosen: The candidates.
      seeds: Fresh seeds, from 0 on; those of tuning are others.
      progress: Told what is being done and the pushes done.

    Returns:
      The setting and a row for each: chosen numbers, final train loss of every fresh seed (nan:
      diverged) and the ratio of its mean to that of the reference.
    """
    to_tune = [runs.make_workload(setting, seed) for seed in tuning.TUNING_SEEDS]
    fresh = [runs.make_workload(setting, seed) for seed in range(seeds)]
    reference = methods.METHODS["dcasgd-capped"]
    table = [(TUNED, "λ0 tuned", reference, tuning.LAMBDA0S[reference.name])]
    for candidate in (candidates.UNTUNED, *chosen):
        table.append((candidate.name, candidate.title, candidate.method, (candidate.number,)))
    rows = []
    for name, title, method, numbers in table:
        report = lambda pushes, name=name: progress(f"{_place(setting)} {name}", pushes)
        grid = tuning.Grid(tuning.default_grid(setting.model, reference).learning_rates, numbers)
        tuned = tuning.tune(setting, method, grid, to_tune, report)
        members = [(tuned.chosen, workload) for workload in fresh]
        losses = runs.final_train_losses(setting, method, members, report)
        rows.append(
            {
                "name": name,
                "title": title,
                **tuned.chosen._asdict(),
                "warnings": tuned.warnings(),
                "train_loss": losses.tolist(),
            }
        )
    best = _mean(rows[0]["train_loss"])
    for row in rows:
        row["relative"] = _mean(row["train_loss"]) / best
    return {"setting": setting.describe(), "seeds": list(range(seeds)), "rows": rows}


def _mean(losses: Sequence[float]) -> float:
    """Nan if a seed diverged: a setting that sometimes fails is no setting to recommend."""
    return float(np.mean(losses))


def _place(setting: settings.Setting) -> str:
    return f"{setting.model} M={setting.num_workers}"
