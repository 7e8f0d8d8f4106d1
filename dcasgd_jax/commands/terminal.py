"""Tables, notes and the progress bar, with rich."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dcasgd_jax.commands import report, tuning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_WIDTH = 100

Advance = Callable[[str, int], None]


def make_console(*, stderr: bool = False) -> "Console":
    """A console at most 100 columns wide."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH) if console.is_terminal else MAX_WIDTH
    return console


@contextlib.contextmanager
def progress_bar(num_pushes: int) -> Iterator[Advance]:
    """A bar on a terminal, nothing elsewhere; yields `advance(description, pushes_done)`."""
    from rich import progress

    console = make_console(stderr=True)
    bar = progress.Progress(
        progress.TextColumn("{task.description:<22}"),
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("compiling", total=num_pushes)
        yield lambda text, done: bar.update(task, description=text, advance=done)


def print_text(console: "Console", text: str, *, wrap: bool = True) -> None:
    """One paragraph without markup; `wrap=False` keeps a path in one piece."""
    console.print(text, markup=False, soft_wrap=not wrap)


def print_table(console: "Console", title: str, table: "Table") -> None:
    """The title, not wrapped to the table's width, and the table."""
    console.print()
    print_text(console, title)
    console.print()
    # A terminal too narrow folds the lines; rich would cut the numbers.
    width, console.width = console.width, MAX_WIDTH
    console.print(table)
    console.width = width
    console.print()


def summary_table(console: "Console", summaries: Sequence[report.Summary]) -> "Table":
    """The table of a comparison."""
    table = new_table()
    table.add_column("method", no_wrap=True)
    lambda0 = "λ0" if _plus_minus(console) == "±" else "lam0"
    for name in ("lr", lambda0, "train loss", "test\nerror %", "simul.\nseconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("stale-\nness", "max\nratio", "runs"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(*summary_cells(summary, _plus_minus(console)))
    return table


def summary_cells(summary: report.Summary, plus_minus: str = "±") -> list[str]:
    """One row of `summary_table`."""
    diverged = summary.num_diverged
    return [
        summary.method,
        f"{summary.learning_rate:.3g}",
        "-" if summary.lambda0 is None else f"{summary.lambda0:.3g}",
        "diverged" if summary.train_loss is None else _loss_cell(summary.train_loss, plus_minus),
        _error_cell(summary.test_error_percent, plus_minus),
        f"{summary.simulated_seconds:.1f}",
        f"{summary.mean_staleness:.2f}",
        _ratio_cell(summary.max_compensation_ratio),
        f"{diverged}/{summary.num_runs} diverged" if diverged else str(summary.num_runs),
    ]


def grid_table(result: tuning.Tuned) -> "Table":
    """Mean final train loss of every combination tried for one method, the choice in brackets."""
    table = new_table()
    table.add_column("learning rate", justify="right", no_wrap=True)
    for lambda0 in result.grid.lambda0s:
        heading = "train loss" if lambda0 is None else f"lambda0 {lambda0:g}"
        table.add_column(heading, justify="right", no_wrap=True)
    for row, rate in enumerate(result.grid.learning_rates):
        cells = [_grid_cell(result, row, column) for column in range(len(result.grid.lambda0s))]
        table.add_row(f"{rate:.4g}", *cells)
    return table


def _grid_cell(result: tuning.Tuned, row: int, column: int) -> str:
    diverged = result.num_diverged[row, column]
    text = f"{diverged} div." if diverged else f"{np.mean(result.losses[row, column]):.4f}"
    # Escaped: rich reads square brackets as markup.
    return f"\\[{text}]" if (row, column) == result.best else text


def new_table() -> "Table":
    """A table without columns, in the style of all of ours."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _plus_minus(console: "Console") -> str:
    return "±" if console.encoding.lower().startswith("utf") else "+-"


def _loss_cell(statistic: report.Statistic, plus_minus: str) -> str:
    form = ".4f" if statistic.mean >= 0.001 else ".1e"
    spread = "" if statistic.std is None else f" {plus_minus} {statistic.std:{form}}"
    return f"{statistic.mean:{form}}{spread}"


def _error_cell(statistic: report.Statistic | None, plus_minus: str) -> str:
    if statistic is None:
        return "-"
    form = ".2f" if statistic.mean < 10 else ".1f"
    spread = "" if statistic.std is None else f" {plus_minus} {statistic.std:{form}}"
    return f"{statistic.mean:{form}}{spread}"


def _ratio_cell(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:{'.3g' if ratio < 100 else '.1e'}}"
