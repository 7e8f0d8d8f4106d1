"""What a comparison says: numbers per method, the sentences they support, the JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax.commands import methods, runs


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Over runs; std is the sample standard deviation, None for a single run."""

    mean: float
    std: float | None
    min: float
    max: float

    def overlaps(self, other: "Statistic") -> bool:
        """Whether the two ranges have a point in common."""
        return self.min <= other.max and other.min <= self.max


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method over its seeds; loss, error and ratio over the runs that did not diverge."""

    method: str
    learning_rate: float
    lambda0: float | None
    num_runs: int
    num_diverged: int
    train_loss: Statistic | None  # None: all runs diverged
    test_error_percent: Statistic | None
    simulated_seconds: float  # mean
    mean_staleness: float
    max_compensation_ratio: float | None  # None: nothing measured


def summarise(all_runs: Sequence[runs.Run]) -> list[Summary]:
    """One summary per method, in the order of the runs."""
    names = list(dict.fromkeys(run.method for run in all_runs))
    return [_summary([run for run in all_runs if run.method == name]) for name in names]


def _summary(of_method: list[runs.Run]) -> Summary:
    finished = [run for run in of_method if not run.diverged]
    ratios = [
        run.max_compensation_ratio for run in finished if run.max_compensation_ratio is not None
    ]
    return Summary(
        method=of_method[0].method,
        learning_rate=of_method[0].learning_rate,
        lambda0=of_method[0].lambda0,
        num_runs=len(of_method),
        num_diverged=len(of_method) - len(finished),
        train_loss=_statistic([run.final_train_loss for run in finished]),
        test_error_percent=_statistic([100 * run.final_test_error for run in finished]),
        simulated_seconds=float(np.mean([run.simulated_seconds for run in of_method])),
        mean_staleness=float(np.mean([run.mean_staleness for run in of_method])),
        max_compensation_ratio=max(ratios, default=None),
    )


def _statistic(values: list[float]) -> Statistic | None:
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Statistic(float(np.mean(values)), std, min(values), max(values))


def findings(summaries: Sequence[Summary]) -> list[str]:
    """Sentences that follow from the numbers, about methods none of whose runs diverged."""
    parallel = [s for s in summaries if s.method != "sgd"] or list(summaries)
    ranked = [s for s in parallel if not s.num_diverged]
    found = []
    if ranked:
        found += [
            _lowest(ranked, "train_loss", "train loss", "{:.4g}"),
            _lowest(ranked, "test_error_percent", "test error", "{:.2f} %"),
        ]
    for summary in summaries:
        if summary.num_diverged:
            found.append(
                f"{summary.method}: {summary.num_diverged} of {summary.num_runs} runs diverged"
                f"{', so it is not ranked' if summary in parallel and ranked else ''}."
            )
    return found


def _lowest(ranked: list[Summary], field: str, name: str, form: str) -> str:
    """Who has the lowest mean, and whose range over seeds overlaps with the winner's."""
    best = min(ranked, key=lambda summary: getattr(summary, field).mean)
    mine = getattr(best, field)
    others = [s for s in ranked if s is not best]
    among = "" if best.method == "sgd" else " of the parallel methods"
    sentence = f"Lowest mean {name}{among}: {best.method}, {form.format(mine.mean)}"
    if not others:
        return f"{sentence}; no other method to compare with."
    if best.num_runs == 1:
        return f"{sentence}; one seed shows no spread."
    close = [s.method for s in others if getattr(s, field).overlaps(mine)]
    if not close:
        return f"{sentence}; no other method's seeds come as low."
    return f"{sentence}; its range over seeds overlaps with {_listed(close)}."


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def fixed_numbers() -> dict[str, Any]:
    """What no option changes, for the record."""
    return {
        "learning_rate_decay": {
            "factor": methods.DECAY_FACTOR,
            "at_fractions_of_server_updates": list(methods.DECAY_AT),
        },
        "curvatures": {
            name: repr(m.curvature) for name, m in methods.METHODS.items() if m.compensates
        },
        "max_pull": {name: method.max_pull for name, method in methods.METHODS.items()},
        "diverged_means": "final train loss not finite, or not below both the initial one and "
        "chance (ln 10)",
        "std_means": "sample standard deviation over the seeds that did not diverge",
    }
