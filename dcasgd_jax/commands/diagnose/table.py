"""The table of a diagnosis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcasgd_jax.commands import terminal
from dcasgd_jax.commands.diagnose import advice, summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXPLANATION = (
    "In brackets: mean staleness in versions. Medians over the stale pushes, each with the "
    "lambda0 that is "
    "best for it; explained: the share of the change of the gradient that the compensation takes "
    "away; cos.: cosine of the stale, and of the compensated, with the true gradient; ratio: "
    "|compensation|/|gradient|; below eps: coordinates whose mean square is below it; for all: "
    "the lambda0 that is best for all pushes of the moment together, and what it explains. "
    "frozen_jacobian is a bound: the change if the model were linear in its parameters from here "
    "on. uniform is a control: the bare displacement."
)


def make_table(console: "Console", rows: Sequence[summary.Row]) -> "Table":
    """What `terminal.print_table` takes."""
    _, lambda0 = terminal.symbols(console)
    table = terminal.new_table(
        *("moment", "curvature", "expl.\n%", f"best\n{lambda0}", "cos.\nstale"),
        *("cos.\ncomp.", "ratio", "<eps\n%", f"all:\n{lambda0}", "expl.\n%"),
    )
    table.columns[1].justify = "left"
    for moment in dict.fromkeys(row.moment for row in rows):
        if moment != rows[0].moment:
            table.add_row()
        of_moment = [row for row in rows if row.moment == moment]
        labels = {0: moment, 1: f"({of_moment[0].mean_staleness:.1f})"}
        for i, row in enumerate(of_moment):
            table.add_row(labels.get(i, ""), *_cells(row))
    return table


def _cells(row: summary.Row) -> list[str]:
    adaptive = row.curvature == "adaptive"
    return [
        row.curvature,
        _percent(row.r_squared),
        advice.rounded(row.lambda0),
        f"{row.cosine_stale:.3f}",
        f"{row.cosine_compensated:.3f}",
        f"{row.ratio:.2g}",
        _percent(row.below_eps) if adaptive else "-",
        advice.rounded(row.shared_lambda0),
        _percent(row.shared_r_squared),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
