"""What a comparison says: numbers per method, the sentences they support, the table."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_jax.commands import ledger, methods, statistics, study, terminal, tuning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REPEATS_WITHIN = 0.05
"""Share of the final train loss by which a run that repeats may change after a nudge of one ulp."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method over its seeds; loss, error and ratio over the runs that did not diverge."""

    method: str
    learning_rate: float
    lambda0: float | None
    num_runs: int
    num_diverged: int
    train_loss: statistics.Statistic | None  # None: all runs diverged
    test_error_percent: statistics.Statistic | None
    highest_loss: float  # by the initial loss, of all runs
    change_by_one_ulp: float | None  # share of the final train loss; None: not measured
    simulated_seconds: float | None  # mean
    mean_staleness: float | None
    max_compensation_ratio: float | None  # None: nothing measured

    @property
    def repeats(self) -> bool | None:
        """Whether another machine will give nearly the same loss; None: not measured."""
        return None if self.change_by_one_ulp is None else self.change_by_one_ulp <= REPEATS_WITHIN

    def describe(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            name: value._asdict() if isinstance(value, statistics.Statistic) else value
            for name, value in vars(self).items()
        }


def summarise(lines: Sequence[ledger.Line]) -> list[Summary]:
    """One summary per method, in the order of the runs."""
    of_methods: dict[str, list[ledger.Line]] = {}
    for line in lines:
        of_methods.setdefault(line["run"]["method"], []).append(line)
    # A frame of all would have every column for every method, also one that was not measured.
    return [_summary(name, study.frame(of_method)) for name, of_method in of_methods.items()]


def _summary(name: str, runs: study.Frame) -> Summary:
    diverged = runs["train_loss"].isna()
    has = lambda column: column in runs and runs[column].notna().any()
    mean = lambda column: float(runs[column].mean()) if has(column) else None
    ratios = (
        runs["max_compensation_ratio"][~diverged].dropna()
        if "max_compensation_ratio" in runs
        else []
    )
    lambda0 = runs["lambda0"].iloc[0]
    highest = runs["highest_loss"].astype(float).fillna(np.inf) / runs["initial_loss"]
    return Summary(
        method=name,
        learning_rate=float(runs["learning_rate"].iloc[0]),
        lambda0=None if lambda0 is None or np.isnan(lambda0) else float(lambda0),
        num_runs=len(runs),
        num_diverged=int(diverged.sum()),
        train_loss=statistics.statistic(runs["train_loss"]),
        test_error_percent=statistics.statistic(100 * runs["test_error"].astype(float)),
        highest_loss=float(highest.max()),
        change_by_one_ulp=_change(runs),
        simulated_seconds=mean("simulated_seconds"),
        mean_staleness=mean("mean_staleness"),
        max_compensation_ratio=float(max(ratios)) if len(ratios) else None,
    )


def _change(runs: study.Frame) -> float | None:
    """The largest relative change of the final train loss; infinite if only one of two diverged."""
    if "train_loss_nudged" not in runs:
        return None
    ends = runs[["train_loss", "train_loss_nudged"]].astype(float)
    change = (ends["train_loss_nudged"] - ends["train_loss"]).abs() / ends["train_loss"]
    change = change.where(ends.notna().sum(axis=1) != 1, np.inf)  # nan: both diverged
    return None if change.isna().all() else float(change.max())


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
    return [*found, *_about_height(summaries), *_about_repetition(summaries)]


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
    return f"{sentence}; its range over seeds overlaps with {statistics.listed(close)}."


def _about_height(summaries: Sequence[Summary]) -> list[str]:
    """Whose loss rose above what tuning allows."""
    high = [s for s in summaries if s.highest_loss > tuning.HIGHEST_LOSS]
    if not high:
        return []
    parts = [f"{s.method} (to {s.highest_loss:.3g} times)" for s in high]
    return [
        f"The loss rose above {tuning.HIGHEST_LOSS:g} times the initial one on the way: "
        f"{statistics.listed(parts)}."
    ]


def _about_repetition(summaries: Sequence[Summary]) -> list[str]:
    """Which numbers another machine gives again."""
    measured = [s for s in summaries if s.repeats is not None and not s.num_diverged]
    if not measured:
        return []
    stable = [s.method for s in measured if s.repeats]
    ends = [s.method for s in measured if s.change_by_one_ulp == np.inf]
    chaotic = [s.method for s in measured if not s.repeats and s.method not in ends]
    nudge = "one ulp more in every initial weight"
    found = []
    if stable:
        found.append(
            f"Repeat on other machines within some {100 * REPEATS_WITHIN:g} % ({nudge} changes "
            f"no loss by more): {statistics.listed(stable)}."
        )
    if chaotic:
        found.append(
            f"Chaotic, so other machines give other losses of about this size ({nudge} changes "
            f"some by more than {100 * REPEATS_WITHIN:g} %): {statistics.listed(chaotic)}."
        )
    if ends:
        found.append(
            f"So near the edge that {nudge} decides whether a run diverges: "
            f"{statistics.listed(ends)}."
        )
    return found


EXPLANATION = (
    "mean and sample std over seeds; loss over all training images; peak: highest loss on the way "
    "by the initial one; 1 ulp: largest change of the final loss after a nudge of the initial "
    "weights; secs: simulated; lost: runs that diverged, whose final train loss is not finite, or "
    "not below both the initial one and chance (ln 10); left out of loss and error."
)


def make_table(console: "Console", summaries: Sequence[Summary]) -> "Table":
    """What `terminal.print_table` takes."""
    plus_minus, lambda0 = terminal.symbols(console)
    table = terminal.new_table(
        *("method", "lr", lambda0, "train loss", "test\nerror %", "peak", "1 ulp\n%"),
        *("secs", "lost"),
    )
    for summary in summaries:
        table.add_row(*cells(summary, plus_minus))
    return table


def cells(summary: Summary, plus_minus: str = "±") -> list[str]:
    """One row of the table."""
    loss, error, diverged = summary.train_loss, summary.test_error_percent, summary.num_diverged
    seconds = summary.simulated_seconds
    return [
        summary.method,
        f"{summary.learning_rate:.3g}",
        "-" if summary.lambda0 is None else f"{summary.lambda0:.3g}",
        "diverged" if loss is None else loss.text(_loss_form(loss), plus_minus),
        "-" if error is None else error.text(".2f" if error.mean < 10 else ".1f", plus_minus),
        f"{summary.highest_loss:.2f}" if summary.highest_loss < 10 else ">10",
        _change_text(summary.change_by_one_ulp),
        "-" if seconds is None else f"{seconds:.0f}",
        f"{diverged}/{summary.num_runs}",
    ]


def _loss_form(loss: statistics.Statistic) -> str:
    return ".4f" if loss.mean >= 0.001 else ".1e"


def _change_text(change: float | None) -> str:
    if change is None:
        return "-"
    if not np.isfinite(change):
        return "div."
    return f"{100 * change:.1f}" if change < 0.1 else f"{100 * change:.0f}"


def fixed_numbers() -> dict[str, Any]:
    """What no option changes, for the record."""
    return {
        "learning_rate_warm_up": {"fraction_of_server_updates": methods.WARM_UP},
        "learning_rate_decay": {
            "factor": methods.DECAY_FACTOR,
            "at_fractions_of_server_updates": list(methods.DECAY_AT),
        },
        "tuned_on": "final train loss, over seeds of its own; configurations whose loss rises "
        f"above {tuning.HIGHEST_LOSS:g} times the initial one are not chosen",
        "highest_loss_is": "the largest mean loss of as many gradients after one another as there "
        "are workers",
        "diverged_means": "final train loss not finite, or not below both the initial one and "
        "chance (ln 10)",
        "std_means": "sample standard deviation over the seeds that did not diverge",
    }
