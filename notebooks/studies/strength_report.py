"""The table and the picture of the study, drawn from its cells."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import strength_candidates as candidates
import strength_cells as study

from dcasgd_jax import files
from dcasgd_jax.commands import terminal

if TYPE_CHECKING:
    from rich.console import Console

GOAL = 1.05  # of the tuned λ0's train loss, in every cell


def names(cells: Sequence[study.Cell]) -> dict[str, str]:
    """Name -> title of the rows that all cells have."""
    return {
        row["name"]: row["title"]
        for row in cells[0]["rows"]
        if all(row["name"] in {other["name"] for other in cell["rows"]} for cell in cells)
    }


def relative(cells: Sequence[study.Cell], name: str) -> list[float]:
    """Train loss relative to the tuned λ0's in each cell; nan where a seed diverged."""
    found = []
    for cell in cells:
        row = next(row for row in cell["rows"] if row["name"] == name)
        found.append(math.nan if row["relative"] is None else row["relative"])
    return found


def verdict(cells: Sequence[study.Cell]) -> str:
    """Whether some setting meets the goal; no control does, but one that is as good is named."""
    worst: dict[str, float] = {}
    controls: dict[str, float] = {}
    for name, title in names(cells).items():
        values = relative(cells, name)
        if name != study.TUNED and not np.isnan(values).any():
            of = controls if name in candidates.CONTROLS else worst
            of[title] = max(values)
    if not worst:
        tried = names(cells).keys() - candidates.CONTROLS - {study.TUNED}
        return "Every setting diverged in some cell." if tried else "Only controls were tried."
    best = min(worst, key=lambda title: worst[title])
    goal = f"the goal of {GOAL:g} times the tuned λ0's train loss in every cell"
    if worst[best] <= GOAL:
        sentence = f"{best} meets {goal}: at worst {worst[best]:.2f}."
    else:
        sentence = (
            f"No setting meets {goal}; the best of them, {best}, is at {worst[best]:.2f} in its "
            "worst cell."
        )
    control = min(controls, key=lambda title: controls[title], default=None)
    if control is not None and controls[control] <= worst[best]:
        sentence += (
            f" The control {control} does no worse, {controls[control]:.2f}: there is no proof "
            "that the curvature helps."
        )
    return sentence


def print_table(console: "Console", cells: Sequence[study.Cell]) -> None:
    """A row for each setting, a column for each cell."""
    table = terminal.new_table()
    table.add_column("strength", no_wrap=True)
    for cell in cells:
        setting = cell["setting"]
        table.add_column(
            f"{setting['model']}\nM={setting['workers']}", justify="right", no_wrap=True
        )
    table.add_column("worst", justify="right")
    for name, title in names(cells).items():
        values = relative(cells, name)
        table.add_row(title, *(_cell(value) for value in [*values, _worst(values)]))
    title = "Final train loss relative to that of a tuned λ0 (capped), mean over the seeds"
    terminal.print_table(console, title, table)
    terminal.print_text(console, verdict(cells))


def save_picture(path: pathlib.Path, cells: Sequence[study.Cell]) -> None:
    """One line of dots for each setting, a dot for each cell; a cross at the edge: diverged."""
    from matplotlib import figure

    titles = names(cells)
    picture = figure.Figure(figsize=(8.6, 0.32 * len(titles) + 1.4), dpi=130, layout="constrained")
    axes = picture.subplots()
    edge = 30.0
    markers = "osD^vP*h"
    for row, name in enumerate(titles):
        for index, value in enumerate(relative(cells, name)):
            lost = math.isnan(value) or value > edge
            setting = cells[index]["setting"]
            axes.plot(
                edge if lost else value,
                row,
                "x" if lost else markers[index % len(markers)],
                color="#D55E00" if setting["model"] == "mlp" else "#0072B2",
                markersize=4 + math.log2(setting["workers"]),
                alpha=0.75,
                label=f"{setting['model']}, M={setting['workers']}" if row == 0 else None,
            )
    axes.axvline(1.0, color="#000000", linewidth=0.8)
    axes.axvline(GOAL, color="#000000", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(titles)), titles.values())
    axes.invert_yaxis()
    axes.set_xlabel("final train loss / that of a tuned λ0 (cross: diverged, or above 30)")
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    picture.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    with files.replacing(path) as stream:
        picture.savefig(stream, format="png")


def _worst(values: Sequence[float]) -> float:
    return math.nan if np.isnan(values).any() else max(values)


def _cell(value: float) -> str:
    return "div." if math.isnan(value) else f"{value:.2f}"
