"""Alternating measurements: a ratio of medians within one run, never an absolute promise."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table: ours against a baseline, both in the same unit."""

    what: str
    ours: str
    baseline: str
    ratio: float
    goal: str


def alternate(*functions: Callable[[], None], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn `repeats` times after one warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]
