"""The picture: the loss gap for each delay, and the curves of the largest uniform one."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.commands import figures, ledger
from dcasgd_jax.plots import axes
from pipeline import delays, methods, settings, summary

COLOURS = {
    "uncorrected": axes.COLOURS["asgd"],
    "dcasgd-a": axes.COLOURS["dcasgd-a"],
    "capped": axes.COLOURS["dcasgd-capped"],
    "prediction": "#CC79A7",
    "pull": axes.COLOURS["rotated"],
}


def save(
    path: str | os.PathLike,
    lines: Sequence[ledger.Line],
    found: Sequence[summary.Summary],
    setting: settings.Setting,
    highest: float,
) -> None:
    """Draws a row of two panels for each optimizer into a PNG.

    Args:
      path: Of the picture.
      lines: Fresh runs.
      found: What they come to.
      setting: Of the transformer.
      highest: Validation loss above which nothing is drawn.
    """
    from matplotlib import figure

    optimizers = list(dict.fromkeys(s.optimizer for s in found))
    picture = figure.Figure(
        figsize=(11, 0.8 + 3.7 * len(optimizers)), dpi=130, layout="constrained"
    )
    panels = picture.subplots(len(optimizers), 2, squeeze=False)
    for optimizer, (gaps, curves) in zip(optimizers, panels, strict=True):
        _draw_gaps(gaps, [s for s in found if s.optimizer == optimizer][1:])
        gaps.set_title(f"{optimizer}: loss gap to no delay, mean and std", fontsize=10)
        of_optimizer = [line for line in lines if line["run"]["optimizer"] == optimizer]
        late = {line["run"]["delay"] for line in of_optimizer}
        shown = max(sorted(late), key=lambda name: delays.largest(name, setting.blocks))
        _draw_curves(curves, of_optimizer, shown, setting, highest)
        curves.set_title(f"{optimizer}: {delays.title(shown)}, mean and range", fontsize=10)
    handles, labels = panels[0][1].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figures.save(path, picture)


def _draw_gaps(ax, found: Sequence[summary.Summary]) -> None:
    """A dot with an error bar each; a cross at the bottom where all runs diverged."""
    names = list(dict.fromkeys(s.method for s in found))
    all_delays = list(dict.fromkeys(s.delay for s in found))
    for cell in found:
        shift = 0.15 * (names.index(cell.method) - (len(names) - 1) / 2)
        position = all_delays.index(cell.delay) + shift
        style = {"color": COLOURS[cell.method], "ms": 5}
        if cell.gap is None:
            ax.plot(position, 0, "x", **style)
        else:
            std = cell.gap.std or 0.0
            ax.errorbar(position, cell.gap.mean, std, fmt="o", capsize=3, **style)
    ax.axhline(0, color="#000000", lw=0.8)
    ax.set_xticks(range(len(all_delays)), [delays.title(delay) for delay in all_delays])
    axes.finish(ax, "", "validation loss gap")


def _draw_curves(ax, lines: Sequence[ledger.Line], delay, setting, highest) -> None:
    groups = {("no delay", "#000000"): (delays.REFERENCE, methods.REFERENCE)}
    for name, colour in COLOURS.items():
        groups[methods.METHODS[name].title, colour] = (delay, name)
    tokens = np.array(setting.tokens) / 1000
    for (label, colour), cell in groups.items():
        of_cell = [line for line in lines if (line["run"]["delay"], line["run"]["method"]) == cell]
        losses = [line["validation_loss"] for line in of_cell if not summary.diverged(line)]
        if not losses:
            continue
        losses = np.array(losses, float)
        ax.plot(tokens, losses.mean(axis=0), color=colour, lw=1.6, label=label)
        ax.fill_between(
            tokens, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, lw=0
        )
    axes.finish(ax, "thousand tokens", "validation loss")
    ax.set_ylim(top=min(ax.get_ylim()[1], highest))
