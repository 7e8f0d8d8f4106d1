"""The picture: the loss gap for each delay, and the curves of the largest uniform one."""

import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import files
from dcasgd_jax.plots import axes
from pipeline import delays, methods, record, study, summary

COLOURS = {
    "uncorrected": axes.COLOURS["asgd"],
    "dcasgd-a": axes.COLOURS["dcasgd-a"],
    "capped": axes.COLOURS["dcasgd-capped"],
    "prediction": "#009E73",
}


def save(
    path: str | os.PathLike,
    job: study.Job,
    kept: record.Record,
    found: Sequence[summary.Summary],
) -> None:
    """Draws a row of two panels for each optimizer into a PNG."""
    from matplotlib import figure

    count = len(job.optimizers)
    picture = figure.Figure(figsize=(11, 0.8 + 3.7 * count), dpi=130, layout="constrained")
    panels = picture.subplots(count, 2, squeeze=False)
    for optimizer, (gaps, curves) in zip(job.optimizers, panels, strict=True):
        _draw_gaps(gaps, job, [s for s in found if s.optimizer == optimizer])
        gaps.set_title(f"{optimizer}: loss gap to no delay, mean and std", fontsize=10)
        shown = _delay_of_curves(job)
        _draw_curves(curves, job, kept, optimizer, shown)
        curves.set_title(f"{optimizer}: {delays.title(shown)}, mean and range", fontsize=10)
    handles, labels = panels[0][1].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    with files.replacing(path) as stream:
        picture.savefig(stream, format="png")


def _draw_gaps(ax, job: study.Job, found: Sequence[summary.Summary]) -> None:
    """A dot with an error bar each; a cross at the bottom where all runs diverged."""
    for index, method in enumerate(job.methods):
        shift = 0.15 * (index - (len(job.methods) - 1) / 2)
        for position, delay in enumerate(job.delays):
            (cell,) = [s for s in found if s.delay == delay and s.method == method]
            style = {"color": COLOURS[method], "ms": 5}
            if cell.gap is None:
                ax.plot(position + shift, 0, "x", **style)
            else:
                std = cell.gap.std or 0.0
                ax.errorbar(position + shift, cell.gap.mean, std, fmt="o", capsize=3, **style)
    ax.axhline(0, color="#000000", lw=0.8)
    ax.set_xticks(range(len(job.delays)), [delays.title(delay) for delay in job.delays])
    axes.finish(ax, "", "validation loss gap")


def _draw_curves(ax, job: study.Job, kept: record.Record, optimizer: str, delay: str) -> None:
    cells = [(study.reference_of(optimizer), "no delay", "#000000")]
    cells += [
        (study.Cell(optimizer, delay, method), methods.METHODS[method].title, COLOURS[method])
        for method in job.methods
    ]
    for cell, label, colour in cells:
        lines = [kept.lines[run] for run in study.fresh_runs(cell, kept, job.num_seeds)]
        losses = [line["validation_loss"] for line in lines if not record.diverged(line)]
        if not losses:
            continue
        losses, tokens = np.array(losses, float), np.array(job.setting.tokens) / 1000
        ax.plot(tokens, losses.mean(axis=0), color=colour, lw=1.6, label=label)
        ax.fill_between(
            tokens, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, lw=0
        )
    axes.finish(ax, "thousand tokens", "validation loss")
    ax.set_ylim(top=min(ax.get_ylim()[1], 1.1 * np.log(len(job.data.vocabulary))))


def _delay_of_curves(job: study.Job) -> str:
    return max(job.delays, key=lambda name: delays.largest(name, job.setting.blocks))
