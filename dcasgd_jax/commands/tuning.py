"""Tuning: what to try for each method, and what to choose of what came of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcasgd_jax.commands import errors, methods

Frame = Any
"""A pandas.DataFrame, whose own types say too little to be checked."""

NUM_CONFIGURATIONS = 24
"""Tried for every method: 24 learning rates, or 8 learning rates and 3 values of its number."""

LOWEST_RATE = {"mlp": 0.025, "softmax": 0.2}
HIGHEST_BY_LOWEST = 128.0
MOMENTUM_RATE = 1 / 8  # of the learning rates, with momentum

HIGHEST_LOSS = 1.5
"""No configuration is chosen whose loss ever rises above this many times the initial one."""


def configurations(
    method: methods.Method,
    model: str,
    momentum: float | None = None,
    *,
    num_rates: int | None = None,
) -> list[methods.Hyperparameters]:
    """What is tried for a method: as many as for all others, over the same range.

    Args:
      method: With its own numbers to try.
      model: One of `digits.MODELS`.
      momentum: μ of heavy ball, `None` for none.
      num_rates: Learning rates; default: as many as make `NUM_CONFIGURATIONS`.
    """
    count = num_rates or NUM_CONFIGURATIONS // len(method.numbers)
    lowest = LOWEST_RATE[model] * method.rate_scale * (1 if momentum is None else MOMENTUM_RATE)
    step = HIGHEST_BY_LOWEST ** (1 / max(count - 1, 1))
    rates = [float(f"{lowest * step**i:.4g}") for i in range(count)]
    return [methods.Hyperparameters(rate, number) for rate in rates for number in method.numbers]


def means(tried: Frame, configurations: Sequence[Any]) -> Frame:
    """A row for each configuration, in order: `lost` seeds, and `mean` loss of the others."""
    names = list(configurations[0]._fields)
    grouped = tried.groupby(names, sort=False, dropna=False)["loss"]
    return grouped.agg(lost=lambda losses: losses.isna().sum(), mean="mean").reset_index()


def choose(tried: Frame, configurations: Sequence[Any]) -> Any:
    """The configuration with the fewest lost seeds, then the lowest mean loss of the others.

    Args:
      tried: A row for each run: the numbers, and its `loss`, nan if it is lost.
      configurations: NamedTuples, in the order of the rows.
    """
    ranked = means(tried, configurations).sort_values(["lost", "mean"], kind="stable")
    return configurations[ranked.index[0]]


def warnings(tried: Frame, configurations: Sequence[Any], chosen: Any) -> list[str]:
    """What makes the choice doubtful, a sentence each."""
    found = []
    table = means(tried, configurations)
    lost = int(table["lost"][list(configurations).index(chosen)])
    if lost:
        found.append(
            "every combination of the grid was lost on some tuning seed (it diverged, or rose too "
            f"high); the chosen one on {lost} of {tried['seed'].nunique()}."
        )
    for name, value in chosen._asdict().items():
        values = sorted({getattr(c, name) for c in configurations} - {None})
        if len(values) > 1 and value in (values[0], values[-1]):
            edge = "smallest" if value == values[0] else "largest"
            words = name.replace("_", " ")
            found.append(
                f"the chosen {words} {value:.3g} is the {edge} of its grid; a better one may lie "
                "beyond."
            )
    return found


def check_alike(what: str, before: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses what was chosen among other combinations, in whatever order.

    Args:
      what: Was tuned where; begins the message.
      before: What was tried then, a list for each name.
      rows: What is to be tried now.

    Raises:
      UsageError: Names the first number that was tried over other values.
    """
    now = {name: [row[name] for row in rows] for name in rows[0]}
    then = {name: before.get(name, [None] * len(before["seed"])) for name in now}
    if set(zip(*then.values(), strict=True)) == set(zip(*now.values(), strict=True)):
        return
    differs = [name for name in now if set(then[name]) != set(now[name])]
    name = (differs or list(now))[0]
    values = lambda column: ", ".join(str(value) for value in dict.fromkeys(column))
    raise errors.UsageError(
        f"{what} over {name} {values(then[name])}, not {values(now[name])}"
        f"{'' if differs else ' together with others'}: choose another --out"
    )


def rate_ranges(tried: Frame, chosen: Any) -> dict[str, list[float] | None]:
    """How far the learning rate can be moved from the chosen one, with the other numbers chosen.

    `stable` reaches as far as no tuning seed is lost, `within_twice` as far as the mean loss is at
    most twice that of the choice; both along the grid, without a gap, and `None` if the choice
    itself is lost.
    """
    same = np.ones(len(tried), bool)
    for name, value in chosen._asdict().items():
        if name != "learning_rate" and value is not None:
            same &= (tried[name] == value).to_numpy()
    losses = tried[same].groupby("learning_rate")["loss"].agg(lambda x: x.mean(skipna=False))
    rates = losses.index.to_numpy()
    row = int(np.flatnonzero(rates == chosen.learning_rate)[0])
    found: dict[str, list[float] | None] = {}
    for name, accepted in (
        ("stable", losses.notna().to_numpy()),
        ("within_twice", (losses <= 2 * losses.iloc[row]).to_numpy()),
    ):
        found[name] = None
        if accepted[row]:
            refused = np.flatnonzero(~accepted)
            first = max(refused[refused < row], default=-1) + 1
            last = min(refused[refused > row], default=len(rates)) - 1
            found[name] = [float(rates[first]), float(rates[last])]
    return found
