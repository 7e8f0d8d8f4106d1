"""The table and the picture of the study of strengths."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import strength_candidates as candidates

from dcasgd_jax.commands import figures, ledger, study, terminal

if TYPE_CHECKING:
    from rich.console import Console

TITLES = {
    method.name: method.title
    for method in (candidates.TUNED, candidates.UNTUNED, *candidates.CANDIDATES)
}

GOAL = 1.05  # of the tuned λ0's train loss, in every cell


def relative(lines: Sequence[ledger.Line]) -> study.Frame:
    """Train loss by that of the tuned λ0 in the same cell, mean over the seeds.

    Returns:
      A row for each method that all cells have, a column for each cell (model, workers); nan where
      a seed diverged: a setting that sometimes fails is no setting to recommend.
    """
    runs = study.frame(lines)
    whole = lambda losses: losses.mean(skipna=False)
    means = runs.groupby(["method", "model", "workers"], sort=False)["train_loss"].agg(whole)
    there = runs.groupby(["model", "workers"])["method"].unique()
    everywhere = set.intersection(*map(set, there))
    table = means.unstack(["model", "workers"])
    order = [name for name in dict.fromkeys(runs["method"]) if name in everywhere]
    return table.loc[order] / table.loc[candidates.TUNED.name]


def verdict(table: study.Frame) -> str:
    """Whether some setting meets the goal; no control does, but one that is as good is named."""
    tried = table.drop(index=candidates.TUNED.name)
    worst_of = tried.max(axis=1, skipna=False).dropna()
    is_control = worst_of.index.isin(candidates.CONTROLS)
    worst, controls = worst_of[~is_control], worst_of[is_control]
    if worst.empty:
        others = set(tried.index) - candidates.CONTROLS
        return "Every setting diverged in some cell." if others else "Only controls were tried."
    best = worst.idxmin()
    goal = f"the goal of {GOAL:g} times the tuned λ0's train loss in every cell"
    if worst[best] <= GOAL:
        sentence = f"{TITLES[best]} meets {goal}: at worst {worst[best]:.2f}."
    else:
        sentence = (
            f"No setting meets {goal}; the best of them, {TITLES[best]}, is at "
            f"{worst[best]:.2f} in its worst cell."
        )
    if not controls.empty and controls.min() <= worst[best]:
        sentence += (
            f" The control {TITLES[controls.idxmin()]} does no worse, {controls.min():.2f}: there "
            "is no proof that the curvature helps."
        )
    return sentence


def print_table(console: "Console", table: study.Frame) -> None:
    """A table of each model: a row for each setting, a column for each number of workers."""
    for model, of_model in table.T.groupby(level="model", sort=False):
        shown = terminal.new_table(
            "strength", *(f"M={workers}" for _, workers in of_model.index), "worst"
        )
        for name, values in of_model.T.iterrows():
            worst = values.max(skipna=False)
            shown.add_row(TITLES[name], *(_cell(value) for value in [*values, worst]))
        title = f"{model}: final train loss by that of a tuned λ0 (capped), mean over the seeds"
        terminal.print_table(console, title, shown)
    terminal.print_text(console, verdict(table))


def save_picture(path: pathlib.Path, table: study.Frame) -> None:
    """One line of dots for each setting, a dot for each cell; a cross at the edge: diverged."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(8.6, 0.32 * len(table) + 1.4), dpi=130, layout="constrained")
    axes = picture.subplots()
    edge = 30.0
    markers = "osD^vP*h"
    for row, (_, values) in enumerate(table.iterrows()):
        for index, ((model, workers), value) in enumerate(values.items()):
            lost = math.isnan(value) or value > edge
            axes.plot(
                edge if lost else value,
                row,
                "x" if lost else markers[index % len(markers)],
                color="#D55E00" if model == "mlp" else "#0072B2",
                markersize=4 + math.log2(workers),
                alpha=0.75,
                label=f"{model}, M={workers}" if row == 0 else None,
            )
    axes.axvline(1.0, color="#000000", linewidth=0.8)
    axes.axvline(GOAL, color="#000000", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(table)), [TITLES[name] for name in table.index])
    axes.invert_yaxis()
    axes.set_xlabel("final train loss / that of a tuned λ0 (cross: diverged, or above 30)")
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    picture.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figures.save(path, picture)


def _cell(value: float) -> str:
    return "div." if math.isnan(value) else f"{value:.2f}"
