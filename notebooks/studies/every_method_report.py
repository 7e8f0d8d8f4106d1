"""What the comparison of every method says: a table per task, a line per method over all cells."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dcasgd_jax.commands import digits_study, figures, ledger, statistics, study, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REFERENCE = "asgd"
"""Every method is compared with this one in the same cell."""

CELL = list(digits_study.VARIED)
DECADES = 1.5  # beyond which the colour of the picture no longer changes

BETTER = """\
better, worse: cells where no seed of the one reaches any of the other's. 1st: cells with the \
lowest mean of the parallel methods. div.: runs of all cells. error: median difference from \
asgd's, in points. room: median factor between the learning rates whose loss is within twice the \
best."""


def rows(lines: Sequence[ledger.Line], tunings: Sequence[ledger.Line]) -> study.Frame:
    """A row for each method in each cell.

    Args:
      lines: Finished runs.
      tunings: Of the same tasks, for `within_twice` and what else was kept of them.

    Returns:
      What tells the row from others, and lists `train_loss` and `test_error` of its seeds (nan:
      diverged), their `mean` (nan if any diverged), `diverged` runs, and `relative`, `error_change`
      and `verdict` against the reference of its cell.
    """
    runs = study.frame(lines)
    runs["momentum"] = runs["momentum"].fillna(0.0)
    grouped = runs.groupby([*CELL, "method"], sort=False)
    table = grouped.agg(
        learning_rate=("learning_rate", "first"),
        lambda0=("lambda0", "first"),
        train_loss=("train_loss", list),
        test_error=("test_error", list),
        mean=("train_loss", lambda losses: losses.mean(skipna=False)),
        lowest=("train_loss", "min"),
        highest=("train_loss", "max"),
        error=("test_error", lambda errors: errors.mean(skipna=False)),
        diverged=("train_loss", lambda losses: int(losses.isna().sum())),
    ).reset_index()
    kept = pd.DataFrame([{**line["tuned"], **line} for line in tunings])
    if len(kept):
        kept["momentum"] = kept["momentum"].astype(float).fillna(0.0)
        if "within_twice" not in kept:
            kept["within_twice"] = None
        table = table.merge(kept[[*CELL, "method", "within_twice"]], how="left")
    else:
        table["within_twice"] = None
    columns = ["mean", "error", "lowest", "highest", "diverged"]
    reference = table[table["method"] == REFERENCE].set_index(CELL)[columns]
    table = table.join(reference.add_suffix("_of_reference"), on=CELL)
    table["relative"] = table["mean"] / table["mean_of_reference"]
    table["error_change"] = 100 * (table["error"] - table["error_of_reference"])
    table["room"] = [
        range_[1] / range_[0] if isinstance(range_, list) else math.nan
        for range_ in table["within_twice"]
    ]
    table["verdict"] = table.apply(_verdict, axis=1)
    return table


def _verdict(row: Any) -> str:
    """`better` or `worse` than the reference if no seed of the one reaches any of the other's."""
    if row["method"] == REFERENCE or not row["lowest_of_reference"] >= 0:
        return ""
    if row["diverged"]:
        return "diverged"
    if row["highest"] < row["lowest_of_reference"]:
        return "better"
    higher = row["lowest"] > row["highest_of_reference"]
    return "worse" if higher and not row["diverged_of_reference"] else "equal"


def summarise(table: study.Frame) -> study.Frame:
    """A row for each method, over the cells that have it; the lowest median first."""
    parallel = table[(table["method"] != "sgd") & (table["diverged"] == 0)]
    first = parallel.loc[parallel.groupby(CELL, sort=False)["mean"].idxmin()]["method"]
    counts = lambda word: lambda verdicts: int((verdicts == word).sum())
    found = table.groupby("method", sort=False).agg(
        cells=("mean", "size"),
        median_relative=("relative", "median"),
        worst_relative=("relative", "max"),
        median_error_difference=("error_change", "median"),
        median_rate_room=("room", "median"),
        **{word: ("verdict", counts(word)) for word in ("better", "equal", "worse")},
        diverged_cells=("diverged", lambda diverged: int((diverged > 0).sum())),
        diverged_runs=("diverged", "sum"),
        runs=("train_loss", lambda losses: sum(map(len, losses))),
    )
    found["first_in_cells"] = first.value_counts().reindex(found.index, fill_value=0)
    return found.sort_values("median_relative", kind="stable", na_position="last")


def print_all(console: "Console", table: study.Frame) -> None:
    """A table for each task, and the summary of all."""
    for (model, momentum), of_task in table.groupby(["model", "momentum"], sort=False):
        words = f"momentum {momentum:g}" if momentum else "without momentum"
        title = f"{model} on digits, {words}: 1000 x final train loss, mean±std"
        terminal.print_table(console, title, task_table(of_task))
    if REFERENCE in set(table["method"]):
        num_cells = len(table.drop_duplicates(CELL))
        title = f"Train loss by that of {REFERENCE} in the same cell, over {num_cells} cells"
        terminal.print_table(console, title, summary_table(summarise(table)))
        terminal.print_text(console, BETTER)


def task_table(of_task: study.Frame) -> "Table":
    """A row for each method, a column for each cluster."""
    clusters = of_task.drop_duplicates(["workers", "law"])[["workers", "law"]]
    pairs = list(clusters.itertuples(index=False, name=None))
    shown = terminal.new_table("method", *(f"M={workers}\n{law[:5]}" for workers, law in pairs))
    for name, of_method in of_task.groupby("method", sort=False):
        texts = {
            (row["workers"], row["law"]): loss_text(row["train_loss"])
            for _, row in of_method.iterrows()
        }
        shown.add_row(str(name), *(texts.get(pair, "-") for pair in pairs))
    return shown


def loss_text(losses: Sequence[float]) -> str:
    """Mean and sample standard deviation of the train loss, in thousandths."""
    lost = int(np.isnan(losses).sum())
    if lost:
        return f"{lost}/{len(losses)} div."
    found = statistics.statistic(1000 * loss for loss in losses)
    assert found is not None
    text = _digits(found.mean, 3)
    return text if found.std is None else f"{text}±{_digits(found.std, 1)}"


def _digits(number: float, count: int) -> str:
    """That many significant digits, but all before the point and no exponent."""
    if not number:
        return "0"
    return f"{number:.{max(count - 1 - math.floor(math.log10(number)), 0)}f}"


def summary_table(summary: study.Frame) -> "Table":
    """A row for each method over all cells."""
    shown = terminal.new_table(
        *("method", "med.", "worst", "better", "equal", "worse", "1st", "cells"),
        *("div.", "error", "room"),
    )
    number = lambda value, form: "-" if math.isnan(value) else f"{value:{form}}"
    for line in summary.reset_index().to_dict("records"):
        counts = ("better", "equal", "worse", "first_in_cells", "cells")
        shown.add_row(
            line["method"],
            *(number(line[key], ".2f") for key in ("median_relative", "worst_relative")),
            *(str(line[key]) for key in counts),
            f"{line['diverged_runs']}/{line['runs']}",
            number(line["median_error_difference"], "+.2f"),
            number(line["median_rate_room"], ".1f"),
        )
    return shown


def save_picture(path: pathlib.Path, table: study.Frame) -> None:
    """Train loss by that of plain asynchronous SGD, as colours; a cross: some seed diverged."""
    from matplotlib import figure

    names = list(summarise(table).index)
    found = table.set_index([*CELL, "method"])
    cells = list(table.drop_duplicates(CELL)[CELL].itertuples(index=False, name=None))
    width, height = 2.6 + 0.5 * len(cells), 1.9 + 0.24 * len(names)
    drawing = figure.Figure(figsize=(max(width, 5.0), height), dpi=130, layout="constrained")
    axes = drawing.subplots()
    values = np.full((len(names), len(cells)), math.nan)
    for row, name in enumerate(names):
        for column, cell in enumerate(cells):
            if (*cell, name) in found.index:
                values[row, column] = np.log10(found.loc[(*cell, name), "relative"])
                if found.loc[(*cell, name), "diverged"]:
                    axes.text(column, row, "x", ha="center", va="center", fontsize=8)
    axes.set_facecolor("#c8c8c8")
    image = axes.imshow(values, cmap="PuOr", vmin=-DECADES, vmax=DECADES, aspect="auto")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(cells)), [_heading(*cell) for cell in cells], fontsize=7, rotation=90)
    bar = drawing.colorbar(image, ax=axes, orientation="horizontal", shrink=0.7, pad=0.01)
    ticks = [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    bar.set_ticks(ticks, labels=[f"{10**tick:.2g}" for tick in ticks])
    bar.set_label(
        f"final train loss / that of {REFERENCE} in the same cell "
        "(x: a seed diverged; grey: not run)",
        fontsize=8,
    )
    figures.save(path, drawing)


def _heading(model: str, workers: int, law: str, momentum: float) -> str:
    return f"{model} {workers} {law[:5]}{', mom.' if momentum else ''}"
