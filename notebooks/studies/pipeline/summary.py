"""What came of each cell, against the reference of its optimizer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline import record, study

EXPLANATION = (
    "Gap: last validation loss minus that of the reference (delay 0, its own tuned learning rate) "
    "of the same seed. Overhead: how many more tokens this run took in all than the reference "
    "needed for the same loss; 'not reached' if the reference never came as low. Means and sample "
    "standard deviations over the seeds that did not diverge."
)


class Spread(NamedTuple):
    """Over seeds."""

    mean: float
    std: float | None  # None for a single seed


class Summary(NamedTuple):
    """One cell."""

    optimizer: str
    delay: str
    method: str
    learning_rate: float
    lambda0: float | None
    max_pull: float | None
    num_runs: int
    num_diverged: int
    validation_loss: Spread | None  # None: all runs diverged, here and below
    train_loss: Spread | None
    gap: Spread | None
    overhead: Spread | None  # over the seeds for which the reference came as low
    num_not_reached: int

    def describe(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            name: value._asdict() if isinstance(value, Spread) else value
            for name, value in self._asdict().items()
        }


def tokens_needed(tokens: Sequence[float], losses: Sequence[float | None], loss: float):
    """When a curve first comes down to a loss, linear between its points.

    Args:
      tokens: Seen at each point, ascending.
      losses: There; `None` where it was not finite.
      loss: To come down to.

    Returns:
      Tokens, or `None` if the curve never comes as low.
    """
    before = None
    for position, value in zip(tokens, losses, strict=True):
        if value is not None and value <= loss:
            if before is None:
                return float(position)
            share = (before[1] - loss) / (before[1] - value)
            return float(before[0] + share * (position - before[0]))
        before = None if value is None else (position, value)
    return None


def token_overhead(
    tokens: Sequence[float], reference: Sequence[float | None], loss: float
) -> float | None:
    """How many more tokens a run took for its last loss than the reference needed for it.

    The share N / n - 1, with N all tokens of the run, which are also those of the whole reference,
    and n those after which the reference's curve first came down to `loss`; 0.5: half as many more.

    Args:
      tokens: Seen at each evaluation.
      reference: Validation losses of the reference there.
      loss: Last validation loss of the run.

    Returns:
      The share, infinite if the reference began as low; `None` if the reference never came as low.
    """
    needed = tokens_needed(tokens, reference, loss)
    if needed is None:
        return None
    return tokens[-1] / needed - 1 if needed else float("inf")


def summarise(job: study.Job, kept: record.Record) -> list[Summary]:
    """One summary for each cell of a job whose runs are all there."""
    return [_summary(job, kept, cell) for cell in job.cells()]


def _summary(job: study.Job, kept: record.Record, cell: study.Cell) -> Summary:
    runs = study.fresh_runs(cell, kept, job.num_seeds)
    lines = [kept.lines[run] for run in runs]
    finished = [line for line in lines if not record.diverged(line)]
    references = {
        line["seed"]: line
        for line in (
            kept.lines[run]
            for run in study.fresh_runs(study.reference_of(cell.optimizer), kept, job.num_seeds)
        )
        if not record.diverged(line)
    }
    pairs = [
        (line["validation_loss"][-1], references[line["seed"]]["validation_loss"])
        for line in finished
        if line["seed"] in references
    ]
    overheads = [token_overhead(job.setting.tokens, curve, loss) for loss, curve in pairs]
    reached = [overhead for overhead in overheads if overhead is not None]
    return Summary(
        **cell._asdict(),
        learning_rate=runs[0].learning_rate,
        lambda0=runs[0].lambda0,
        max_pull=runs[0].max_pull,
        num_runs=len(lines),
        num_diverged=len(lines) - len(finished),
        validation_loss=_spread([line["validation_loss"][-1] for line in finished]),
        train_loss=_spread([line["train_loss"][-1] for line in finished]),
        gap=_spread([loss - curve[-1] for loss, curve in pairs]),
        overhead=_spread(reached),
        num_not_reached=len(overheads) - len(reached),
    )


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std)
