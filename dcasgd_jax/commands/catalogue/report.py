"""What the cells say: a table per task, and a line per method over all cells."""

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dcasgd_jax.commands import terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Cell = dict[str, Any]
Row = dict[str, Any]

REFERENCE = "asgd"
"""Every method is compared with this one in the same cell."""


def only(cell: Cell, names: Collection[str]) -> Cell:
    """The cell with these methods alone, in the order of `names`."""
    order = {name: place for place, name in enumerate(names)}
    rows = [row for row in cell["rows"] if row["name"] in order]
    return {**cell, "rows": sorted(rows, key=lambda row: order[row["name"]])}


def without(cell: Cell, field: str) -> Cell:
    """The cell, its rows without a field."""
    drop = lambda row: {name: value for name, value in row.items() if name != field}
    return {**cell, "rows": list(map(drop, cell["rows"]))}


def losses(row: Row) -> list[float]:
    """Train loss of the seeds that did not diverge."""
    return [loss for loss in row["train_loss"] if loss is not None]


def num_diverged(row: Row) -> int:
    """Of the fresh seeds."""
    return len(row["train_loss"]) - len(losses(row))


def mean(row: Row) -> float:
    """Train loss; nan if any seed diverged: what sometimes fails is not ranked."""
    return math.nan if num_diverged(row) else statistics.fmean(losses(row))


def relative(cell: Cell, row: Row) -> float:
    """Mean train loss by that of plain asynchronous SGD; nan if either diverged or is missing."""
    reference = find(cell, REFERENCE)
    return math.nan if reference is None else mean(row) / mean(reference)


def error_difference(cell: Cell, row: Row) -> float:
    """Mean test error less that of plain asynchronous SGD, in points; nan as in `relative`."""
    if math.isnan(relative(cell, row)):
        return math.nan
    reference = find(cell, REFERENCE)
    assert reference is not None
    return 100 * (statistics.fmean(row["test_error"]) - statistics.fmean(reference["test_error"]))


def rate_room(row: Row) -> float:
    """Factor between the learning rates whose loss is within twice the best; nan: no such range."""
    return (
        math.nan if row["within_twice"] is None else row["within_twice"][1] / row["within_twice"][0]
    )


def verdict(cell: Cell, row: Row) -> str:
    """`better` or `worse` than the reference if no seed of the one reaches any of the other's."""
    reference = find(cell, REFERENCE)
    if reference is None or row is reference or not losses(reference):
        return ""
    if num_diverged(row):
        return "diverged"
    mine, others = losses(row), losses(reference)
    if max(mine) < min(others):
        return "better"
    return "worse" if min(mine) > max(others) and not num_diverged(reference) else "equal"


def find(cell: Cell, name: str) -> Row | None:
    """The row of a method, if the cell has it."""
    return next((row for row in cell["rows"] if row["name"] == name), None)


def summarise(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """A line for each method, over the cells that have it."""
    lines = []
    for name in method_names(found):
        pairs = [(cell, row) for cell in found if (row := find(cell, name)) is not None]
        ratios = _finite(relative(cell, row) for cell, row in pairs)
        verdicts = [verdict(cell, row) for cell, row in pairs]
        lines.append(
            {
                "name": name,
                "title": pairs[0][1]["title"],
                "cells": len(pairs),
                "median_relative": _median(ratios),
                "worst_relative": max(ratios, default=None),
                "median_error_difference": _median(
                    _finite(error_difference(cell, row) for cell, row in pairs)
                ),
                "median_rate_room": _median(_finite(rate_room(row) for _, row in pairs)),
                **{word: verdicts.count(word) for word in ("better", "equal", "worse")},
                "diverged_cells": sum(num_diverged(row) > 0 for _, row in pairs),
                "diverged_runs": sum(num_diverged(row) for _, row in pairs),
                "runs": sum(len(row["train_loss"]) for _, row in pairs),
                "first_in_cells": sum(_is_first(cell, row) for cell, row in pairs),
            }
        )
    return lines


def ranked(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """The lines of `summarise`, the lowest median first."""
    infinite = lambda line: math.inf if (m := line["median_relative"]) is None else m
    return sorted(summarise(found), key=infinite)


def _finite(numbers: Iterable[float]) -> list[float]:
    return [number for number in numbers if not math.isnan(number)]


def _median(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None


def method_names(found: Sequence[Cell]) -> list[str]:
    """Of all cells, in the order of the first that has each."""
    return list(dict.fromkeys(row["name"] for cell in found for row in cell["rows"]))


def _is_first(cell: Cell, row: Row) -> bool:
    """Lowest mean train loss of those that run in parallel."""
    ranked = [r for r in cell["rows"] if r["name"] != "sgd" and not num_diverged(r)]
    return bool(ranked) and row is min(ranked, key=mean)


def print_all(console: "Console", found: Sequence[Cell]) -> None:
    """A table for each task, and the summary of all."""
    tasks = dict.fromkeys((c["setting"]["model"], c["setting"]["momentum"]) for c in found)
    for model, momentum in tasks:
        of_task = [
            c for c in found
            if (c["setting"]["model"], c["setting"]["momentum"]) == (model, momentum)
        ]  # fmt: skip
        title = f"{model} on digits, {momentum_text(momentum)}: 1000 x final train loss, mean±std"
        terminal.print_table(console, title, task_table(of_task))
    if len(found) == 1:
        title = "The same cell: what was chosen, and how far the learning rate can be moved"
        terminal.print_table(console, title, choices_table(found[0]))
    if any(find(cell, REFERENCE) is not None for cell in found):
        title = f"Train loss by that of {REFERENCE} in the same cell, over {len(found)} cells"
        terminal.print_table(console, title, summary_table(found))
        terminal.print_text(
            console,
            "better, worse: cells where no seed of the one reaches any of the other's. first: "
            "cells with the lowest mean of the parallel methods. diverged: runs of all cells. test "
            f"error: median difference from {REFERENCE}'s, in points. lr room: median factor "
            "between the learning rates whose loss is within twice the best.",
        )


def momentum_text(momentum: float | None) -> str:
    """For titles."""
    return "without momentum" if momentum is None else f"momentum {momentum:g}"


def task_table(of_task: Sequence[Cell]) -> "Table":
    """A row for each method, a column for each cluster."""
    table = terminal.new_table()
    table.add_column("method", no_wrap=True)
    for cell in of_task:
        setting = cell["setting"]
        heading = f"M={setting['workers']}\n{setting['law']}"
        table.add_column(heading, justify="right", no_wrap=True)
    for name in method_names(of_task):
        table.add_row(name, *(loss_text(find(cell, name)) for cell in of_task))
    return table


def loss_text(row: Row | None) -> str:
    """Mean and sample standard deviation of the train loss, in thousandths."""
    if row is None:
        return "-"
    if num_diverged(row):
        return f"{num_diverged(row)}/{len(row['train_loss'])} div."
    found = [1000 * loss for loss in losses(row)]
    text = _digits(statistics.fmean(found), 3)
    return text if len(found) == 1 else f"{text}±{_digits(statistics.stdev(found), 1)}"


def _digits(number: float, count: int) -> str:
    """That many significant digits, but all before the point and no exponent."""
    if not number:
        return "0"
    return f"{number:.{max(count - 1 - math.floor(math.log10(number)), 0)}f}"


def choices_table(cell: Cell) -> "Table":
    """A row for each method: the chosen numbers, their room, test error."""
    table = terminal.new_table()
    table.add_column("method", no_wrap=True)
    for name in ("lr", "number", "stable to", "loss within twice", "test error %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in cell["rows"]:
        table.add_row(
            row["name"],
            f"{row['learning_rate']:.3g}",
            "-" if row["number"] is None else f"{row['number']:g}",
            "-" if row["stable"] is None else f"{row['stable'][1]:.3g}",
            "-" if row["within_twice"] is None else "{:.3g} to {:.3g}".format(*row["within_twice"]),
            error_text(row),
        )
    return table


def error_text(row: Row) -> str:
    """Mean and sample standard deviation of the test error in per cent."""
    errors = [100 * error for error in row["test_error"] if error is not None]
    if not errors or num_diverged(row):
        return "-"
    text = f"{statistics.fmean(errors):.2f}"
    return text if len(errors) == 1 else f"{text}±{statistics.stdev(errors):.2f}"


def summary_table(found: Sequence[Cell]) -> "Table":
    """A row for each method over all cells, the lowest median first."""
    table = terminal.new_table()
    table.add_column("method", no_wrap=True)
    counts = "better", "equal", "worse", "first", "cells"
    for name in ("median", "worst", *counts, "diverged", "test\nerror", "lr\nroom"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in ranked(found):
        table.add_row(
            line["name"],
            *(_ratio_text(line[key]) for key in ("median_relative", "worst_relative")),
            *(str(line[key]) for key in ("better", "equal", "worse", "first_in_cells", "cells")),
            f"{line['diverged_runs']}/{line['runs']}",
            "-" if (error := line["median_error_difference"]) is None else f"{error:+.2f}",
            "-" if (room := line["median_rate_room"]) is None else f"{room:.1f}",
        )
    return table


def _ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
