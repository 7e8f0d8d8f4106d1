"""Numbers over the seeds of a method, and how they are written."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Statistic(NamedTuple):
    """Over runs; std is the sample standard deviation, None for a single run."""

    mean: float
    std: float | None
    min: float
    max: float

    def overlaps(self, other: "Statistic") -> bool:
        """Whether the two ranges have a point in common."""
        return self.min <= other.max and other.min <= self.max

    def text(self, form: str, plus_minus: str = "±", factor: float = 1) -> str:
        """Mean, and standard deviation if there is one."""
        mean = f"{factor * self.mean:{form}}"
        return mean if self.std is None else f"{mean}{plus_minus}{factor * self.std:{form}}"


def statistic(values: Iterable[float]) -> Statistic | None:
    """Of the values that are numbers; None if there is none."""
    found = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not found:
        return None
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Statistic(float(np.mean(found)), std, min(found), max(found))


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
