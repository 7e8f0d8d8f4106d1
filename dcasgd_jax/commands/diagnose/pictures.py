"""The picture of a diagnosis: what each curvature explains, and what that does to the direction."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.commands import figures
from dcasgd_jax.commands.diagnose import events, fisher, summary
from dcasgd_jax.plots import axes

_COLOURS = dict(zip(events.MOMENTS, ("#56B4E9", "#0072B2", "#1B3A57"), strict=True))
_CASES = {  # (params, labels) of a curve -> colour, words
    ("initial", "model"): ("#0072B2", "initial, model's labels"),
    ("trained", "model"): ("#D55E00", "trained, model's labels"),
    ("trained", "data"): ("#009E73", "trained, data's labels"),
}


def save(
    path: str | os.PathLike,
    rows: Sequence[summary.Row],
    curves: Sequence[fisher.Curve],
    title: str,
) -> None:
    """Draws two panels into a PNG, and a third one if there are curves."""
    from matplotlib import figure

    count = 3 if curves else 2
    picture = figure.Figure(figsize=(5.6 * count, 4.6), dpi=130, layout="constrained")
    explained, direction, *rest = picture.subplots(1, count)
    _draw_explained(explained, rows)
    _draw_direction(direction, rows)
    for ax in rest:
        _draw_curves(ax, curves)
    picture.suptitle(title, fontsize=11)
    figures.save(path, picture)


def _draw_explained(ax, rows: Sequence[summary.Row]) -> None:
    """Bars of the median share, whiskers over the quartiles, a tick for one λ0 for all pushes."""
    names = events.NAMES
    for moment, left, width in _groups(rows):
        of_moment = [row for row in rows if row.moment == moment]
        height = 100 * np.array([row.r_squared for row in of_moment])
        quartiles = 100 * np.array([row.r_squared_quartiles for row in of_moment]).T
        whiskers = np.abs(quartiles - height)
        position = np.arange(len(names)) + left
        style = {"color": _COLOURS[moment], "label": moment, "ecolor": axes.GREY, "capsize": 2}
        ax.bar(position, height, 0.9 * width, yerr=whiskers, **style)
        shared = [100 * row.shared_r_squared for row in of_moment]
        label = None if left > 0 or moment != rows[0].moment else "one λ0 for all pushes"
        ax.plot(position, shared, "D", ms=4, mfc="white", mec=axes.ORANGE, mew=1.3, label=label)
    axes.finish(ax, "", "share of the gradient's change explained (%)")
    _label(ax, [*names[:-1], f"{names[-1]}_(control)"])
    ax.set_ylim(0, 103)
    ax.grid(visible=False, axis="x")
    if rows:
        ax.legend(frameon=False, fontsize=9)


def _draw_direction(ax, rows: Sequence[summary.Row]) -> None:
    """The cosine with the true gradient, before (also as dotted lines) and after."""
    names = ("stale", *events.NAMES)
    for moment, left, _ in _groups(rows):
        of_moment = [row for row in rows if row.moment == moment]
        cosines = [of_moment[0].cosine_stale, *(row.cosine_compensated for row in of_moment)]
        ax.plot(np.arange(len(names)) + left, cosines, "o", ms=7, color=_COLOURS[moment])
        ax.axhline(cosines[0], color=_COLOURS[moment], lw=1.0, ls=":")
    axes.finish(ax, "", "cosine with the true gradient (median)")
    _label(ax, names)
    ax.grid(visible=False, axis="x")


def _draw_curves(ax, curves: Sequence[fisher.Curve]) -> None:
    """The error of λG against λ; bias and variance of the first case apart."""
    for curve in curves:
        case = _CASES.get((curve.params, curve.labels))
        if case is None or curve.matrix != "full":
            continue
        colour, words = case
        label = f"{words}: best λ = {curve.best_strength:.2g}"
        ax.plot(curve.strengths, curve.mse, color=colour, lw=1.8, label=label)
        ax.plot(curve.best_strength, curve.least_mse, "o", color=colour, ms=5)
        if curve.params == "initial":
            thin = {"color": colour, "lw": 1.0}
            ax.plot(curve.strengths, curve.bias_square, ls="--", label="  its bias²", **thin)
            ax.plot(curve.strengths[1:], curve.variance[1:], ls=":", label="  its variance", **thin)
    ax.set_yscale("log")
    ax.set_ylim(0.02, 200 * max(max(curve.mse) for curve in curves))  # room for the legend
    axes.finish(ax, "λ", "|λ g gᵀ - H|² / |H|², softmax regression")
    ax.legend(frameon=False, fontsize=8.5)


def _label(ax, names: Sequence[str]) -> None:
    """The names under the axis, in lines of a word each, which leaves room for ten."""
    ax.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7.5)


def _groups(rows: Sequence[summary.Row]) -> list[tuple[str, float, float]]:
    """Moment, and where its bars stand beside those of the others, and how wide."""
    moments = list(dict.fromkeys(row.moment for row in rows))
    width = 0.8 / max(len(moments), 1)
    middle = (len(moments) - 1) / 2
    return [(moment, (i - middle) * width, width) for i, moment in enumerate(moments)]
