"""The picture: test error and train loss against epochs and against simulated time."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.commands import figures
from dcasgd_jax.commands.reproduce import results, table
from dcasgd_jax.plots import axes

_COLUMNS = (("epoch", "epochs"), ("simulated_seconds", "simulated seconds (log)"))


def save(path: str | os.PathLike, lines: Sequence[results.Line]) -> None:
    """Draws one row of panels per number of workers into a PNG; sgd is in all of them.

    Of a method that was run with several learning rates or λ0 only those with the lowest train loss
    are drawn. Bands are the range over seeds; runs that diverged are left out.
    """
    from matplotlib import figure

    best = table.best_rows(lines)
    counts = sorted({row.run.workers for row in best if row.run.method != "sgd"}) or [1]
    picture = figure.Figure(figsize=(10.5, 0.7 + 3.6 * len(counts)), dpi=130, layout="constrained")
    panels = picture.subplots(len(counts), 2, squeeze=False, sharey="row")
    labels: dict = {}
    for count, pair in zip(counts, panels, strict=True):
        shown = [row for row in best if row.run.method == "sgd" or row.run.workers == count]
        for ax, (column, label) in zip(pair, _COLUMNS, strict=True):
            if column == "simulated_seconds":
                ax.set_xscale("log")
            for row in shown:
                _draw(ax, row, column, labels)
            axes.finish(ax, label, "" if ax is pair[1] else f"M = {count}: test error (%)")
    if labels:
        picture.legend(
            labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False
        )
    picture.suptitle(table.title(lines), fontsize=11)
    figures.save(path, picture)


def _draw(ax, row: table.Row, column: str, labels: dict) -> None:
    """Mean and range over the runs of one method."""
    if not row.finished:
        return
    curves = [line["curve"] for line in row.finished]
    position = np.mean([curve[column] for curve in curves], axis=0)
    # A loss that is not finite was written as null, an error is always a number.
    errors = 100 * np.array([curve["test_error"] for curve in curves], float)
    colour = axes.COLOURS[row.run.method]
    label = f"{row.run.method} (lr {row.run.learning_rate:g}"
    label += ")" if row.run.lambda0 is None else f", λ0 {row.run.lambda0:g})"
    (drawn,) = ax.plot(position, errors.mean(axis=0), color=colour, lw=1.6, marker=".", ms=4)
    ax.fill_between(
        position, errors.min(axis=0), errors.max(axis=0), color=colour, alpha=0.18, lw=0
    )
    labels.setdefault(label, drawn)
