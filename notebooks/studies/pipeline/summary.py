"""What came of each cell, against the reference of its optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcasgd_jax.commands import ledger, statistics
from pipeline import delays, methods

EXPLANATION = (
    "Gap: last validation loss minus that of the reference (delay 0, its own tuned learning rate) "
    "of the same seed. Overhead: how many more tokens this run took in all than the reference "
    "needed for the same loss; never: runs as low as the reference never came. lr*: the smallest "
    "or largest tried. Means and sample standard deviations over the seeds that did not diverge."
)


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
    validation_loss: statistics.Statistic | None  # None: all runs diverged, here and below
    train_loss: statistics.Statistic | None
    gap: statistics.Statistic | None
    overhead: statistics.Statistic | None  # over the seeds for which the reference came as low
    num_not_reached: int

    def describe(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            name: value._asdict() if isinstance(value, statistics.Statistic) else value
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


def diverged(line: Mapping[str, Any]) -> bool:
    """Whether the last validation loss is not finite, or not below the first."""
    first, last = line["validation_loss"][0], line["validation_loss"][-1]
    return last is None or not last < first


def summarise(lines: Sequence[ledger.Line], tokens: Sequence[int]) -> list[Summary]:
    """One summary for each cell.

    Args:
      lines: Fresh runs of all cells, the references among them.
      tokens: Seen at each evaluation.
    """
    groups: dict[tuple[str, str, str], list[ledger.Line]] = {}
    for line in lines:
        cell = tuple(line["run"][name] for name in ("optimizer", "delay", "method"))
        groups.setdefault(cell, []).append(line)
    # Optimizers and delays as they were first run, methods in their order.
    firsts = [list(dict.fromkeys(cell[part] for cell in groups)) for part in (0, 1)]
    orders = [*firsts, list(methods.METHODS)]
    place = lambda cell: [order.index(part) for order, part in zip(orders, cell, strict=True)]
    return [
        _summary(cell, groups[cell], groups[cell[0], delays.REFERENCE, methods.REFERENCE], tokens)
        for cell in sorted(groups, key=place)
    ]


def _summary(
    cell: tuple[str, str, str],
    lines: Sequence[ledger.Line],
    references: Sequence[ledger.Line],
    tokens: Sequence[int],
) -> Summary:
    finished = [line for line in lines if not diverged(line)]
    of_seed = {line["run"]["seed"]: line for line in references if not diverged(line)}
    pairs = [
        (line["validation_loss"][-1], of_seed[line["run"]["seed"]]["validation_loss"])
        for line in finished
        if line["run"]["seed"] in of_seed
    ]
    overheads = [token_overhead(tokens, curve, loss) for loss, curve in pairs]
    reached = [overhead for overhead in overheads if overhead is not None]
    last = lambda name: statistics.statistic(line[name][-1] for line in finished)
    return Summary(
        *cell,
        *(lines[0]["run"][name] for name in ("learning_rate", "lambda0", "max_pull")),
        num_runs=len(lines),
        num_diverged=len(lines) - len(finished),
        validation_loss=last("validation_loss"),
        train_loss=last("train_loss"),
        gap=statistics.statistic(loss - curve[-1] for loss, curve in pairs),
        overhead=statistics.statistic(reached),
        num_not_reached=len(overheads) - len(reached),
    )
