"""The picture of the comparison: a square for each method in each cell."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import files
from dcasgd_jax.commands.catalogue import report

DECADES = 1.5  # beyond which the colour no longer changes


def save(path: pathlib.Path, found: Sequence[report.Cell]) -> None:
    """Train loss by that of plain asynchronous SGD, as colours; a cross: some seed diverged."""
    from matplotlib import figure

    names = [line["name"] for line in report.ranked(found)]
    width, height = 2.6 + 0.5 * len(found), 1.9 + 0.24 * len(names)
    drawing = figure.Figure(figsize=(max(width, 5.0), height), dpi=130, layout="constrained")
    axes = drawing.subplots()
    values = np.array([[_decades(cell, name) for cell in found] for name in names])
    axes.set_facecolor("#c8c8c8")
    image = axes.imshow(values, cmap="PuOr", vmin=-DECADES, vmax=DECADES, aspect="auto")
    for row, name in enumerate(names):
        for column, cell in enumerate(found):
            of_method = report.find(cell, name)
            if of_method is not None and report.num_diverged(of_method):
                axes.text(column, row, "x", ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(found)), map(_heading, found), fontsize=7, rotation=90)
    bar = drawing.colorbar(image, ax=axes, orientation="horizontal", shrink=0.7, pad=0.01)
    ticks = [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    bar.set_ticks(ticks, labels=[f"{10**tick:.2g}" for tick in ticks])
    bar.set_label(
        f"final train loss / that of {report.REFERENCE} in the same cell "
        "(x: a seed diverged; grey: not run)",
        fontsize=8,
    )
    with files.replacing(path) as stream:
        drawing.savefig(stream, format="png")


def _decades(cell: report.Cell, name: str) -> float:
    row = report.find(cell, name)
    if row is None:
        return math.nan
    ratio = report.relative(cell, row)
    return math.nan if math.isnan(ratio) else math.log10(ratio)


def _heading(cell: report.Cell) -> str:
    setting = cell["setting"]
    momentum = "" if setting["momentum"] is None else ", mom."
    return f"{setting['model']} {setting['workers']} {setting['law'][:5]}{momentum}"
