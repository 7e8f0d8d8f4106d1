"""The study: every method is tuned for every delay, then trained on fresh seeds."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline import (
    delays,
    methods,
    optimizers,
    record,
    settings,
    text,
    training,
)

Progress = Callable[[str, int], None]


class Cell(NamedTuple):
    """What is tuned on its own."""

    optimizer: str
    delay: str
    method: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run, and where to put it."""

    setting: settings.Setting
    data: text.Text
    optimizers: tuple[str, ...]
    delays: tuple[str, ...]
    methods: tuple[str, ...]
    num_seeds: int
    out: pathlib.Path

    def cells(self) -> list[Cell]:
        """The reference of each optimizer before its delays."""
        found = []
        for optimizer in self.optimizers:
            found.append(reference_of(optimizer))
            pairs = itertools.product(self.delays, self.methods)
            found += [Cell(optimizer, *pair) for pair in pairs]
        return found


def reference_of(optimizer: str) -> Cell:
    """The optimizer alone, without any delay."""
    assert optimizer in optimizers.OPTIMIZERS
    return Cell(optimizer, delays.REFERENCE, methods.REFERENCE)


def tuning_runs(cell: Cell) -> list[settings.Run]:
    """Of a cell."""
    seeds = settings.TUNING_SEEDS
    return [run for seed in seeds for run in methods.configurations(*cell, seed)]


def chosen(cell: Cell, kept: record.Record) -> settings.Run:
    """The best configuration of a cell whose tuning runs are all there; its seed is of no matter.

    Fewest diverged runs first, then the lowest mean of the last validation losses of the others.
    """

    def badness(run: settings.Run) -> tuple[int, float]:
        lines = [kept.lines[run._replace(seed=seed)] for seed in settings.TUNING_SEEDS]
        finished = [line["validation_loss"][-1] for line in lines if not record.diverged(line)]
        return len(lines) - len(finished), float(np.mean(finished)) if finished else 0.0

    return min(methods.configurations(*cell, settings.TUNING_SEEDS[0]), key=badness)


def fresh_runs(cell: Cell, kept: record.Record, num_seeds: int) -> list[settings.Run]:
    """With the chosen configuration."""
    return [chosen(cell, kept)._replace(seed=seed) for seed in range(num_seeds)]


def run_missing(
    job: Job, kept: record.Record, workload: training.Workload, progress: Progress
) -> None:
    """Trains what is not kept yet, a few runs at a time, and keeps it."""
    for (optimizer, delay), cells in itertools.groupby(job.cells(), key=lambda cell: cell[:2]):
        program = training.make_program(workload, optimizer, delay)
        for cell in cells:
            for name, runs in (
                ("tune", functools.partial(tuning_runs, cell)),
                ("train", functools.partial(fresh_runs, cell, kept, job.num_seeds)),
            ):
                title = f"{name} {' '.join(cell)}"
                for batch in _batches([run for run in runs() if run not in kept.lines]):
                    progress(title, 0)
                    kept.add(batch, training.train(workload, program, batch))
                    progress(title, len(batch))


def num_missing(job: Job, kept: record.Record) -> int:
    """Runs that `run_missing` will train."""
    missing = 0
    for cell in job.cells():
        to_tune = [run for run in tuning_runs(cell) if run not in kept.lines]
        if to_tune:
            missing += len(to_tune) + job.num_seeds
        else:
            fresh = fresh_runs(cell, kept, job.num_seeds)
            missing += sum(run not in kept.lines for run in fresh)
    return missing


def _batches(runs: Sequence[settings.Run]) -> Iterator[Sequence[settings.Run]]:
    for start in range(0, len(runs), training.LANES):
        yield runs[start : start + training.LANES]
