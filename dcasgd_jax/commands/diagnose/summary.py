"""Pushes taken together: one row for each moment of the runs and each curvature."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax.commands import ledger
from dcasgd_jax.commands.diagnose import events


class Sums(NamedTuple):
    """Of inner products over pushes, with d the change of the gradient, t the compensation at 1."""

    inner_product: float  # <d, t>
    term_square: float  # |t|²
    change_square: float  # |d|²

    def shared_lambda0(self) -> float:
        """The one λ0 that is best for all of these pushes together; nan if all t are zero."""
        return self.inner_product / self.term_square if self.term_square else math.nan

    def shared_r_squared(self) -> float:
        """The share of all |d|² that this λ0 explains; nan if all d are zero."""
        if not self.change_square:
            return math.nan
        explained = self.inner_product * self.shared_lambda0() if self.term_square else 0.0
        return explained / self.change_square


@dataclasses.dataclass(frozen=True)
class Row:
    """One curvature at one moment; medians over the pushes that were stale, quartiles beside."""

    moment: str
    curvature: str
    num_events: int
    mean_staleness: float
    r_squared: float
    r_squared_quartiles: tuple[float, float]
    lambda0: float
    lambda0_quartiles: tuple[float, float]
    cosine_stale: float
    cosine_compensated: float
    ratio: float
    below_eps: float
    shared_lambda0: float
    shared_r_squared: float
    sums: Sums


def summarise(runs: Sequence[ledger.Line]) -> list[Row]:
    """Rows by moment, then by curvature; none for a moment without a stale push.

    Left out are pushes whose gradient is the same where it was taken and now, or not finite.
    """
    rows = []
    for moment in events.MOMENTS:
        of_all = [event for run in runs for event in run["events"] if event["moment"] == moment]
        found = [event for event in of_all if _is_usable(event["explained"].values())]
        if found:
            rows += [_row(moment, name, found) for name in events.NAMES]
    return rows


def total(rows: Sequence[Row]) -> Sums:
    """The sums of several moments of one curvature."""
    return Sums(*(sum(parts) for parts in zip(*(row.sums for row in rows), strict=True)))


def _is_usable(explained: Iterable[dict[str, Any]]) -> bool:
    """JSON has no number that is not finite: it is None."""
    names = "r_squared", "lambda0", "ratio"
    return all(
        None not in map(each.get, names) and (each["change_norm"] or 0) > 0 for each in explained
    )


def _row(moment: str, name: str, found: Sequence[dict[str, Any]]) -> Row:
    each = [event["explained"][name] for event in found]
    column = lambda field: np.array([numbers[field] for numbers in each], float)
    quantile = lambda field, at: float(np.quantile(column(field), at))
    quartiles = lambda field: (quantile(field, 0.25), quantile(field, 0.75))
    median = lambda field: float(np.median(column(field)))
    lambda0, term, change = (column(name) for name in ("lambda0", "term_norm", "change_norm"))
    sums = Sums(
        inner_product=float(np.sum(lambda0 * term**2)),
        term_square=float(np.sum(term**2)),
        change_square=float(np.sum(change**2)),
    )
    return Row(
        moment=moment,
        curvature=name,
        num_events=len(found),
        mean_staleness=float(np.mean([event["staleness"] for event in found])),
        r_squared=median("r_squared"),
        r_squared_quartiles=quartiles("r_squared"),
        lambda0=median("lambda0"),
        lambda0_quartiles=quartiles("lambda0"),
        cosine_stale=median("cosine_stale"),
        cosine_compensated=median("cosine_compensated"),
        ratio=median("ratio"),
        below_eps=median("below_eps"),
        shared_lambda0=sums.shared_lambda0(),
        shared_r_squared=sums.shared_r_squared(),
        sums=sums,
    )
