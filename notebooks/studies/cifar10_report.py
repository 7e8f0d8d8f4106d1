"""The tables and the picture of the study of CIFAR-10."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import directions_report

from dcasgd_jax.commands import figures, ledger, study, terminal
from dcasgd_jax.plots import axes

if TYPE_CHECKING:
    from rich.console import Console

NUMBERS = ("test_error", "test_loss", "train_loss")
TITLES = {
    "sgd": "sequential SGD",
    "ssgd": "synchronous SGD",
    "asgd": "asynchronous SGD",
    "dana-zero": "DANA, a velocity per worker",
    "dcasgd-c": "DC-ASGD-c",
    "dcasgd-a": "DC-ASGD-a",
    "dana-dc": "DANA-DC",
    "dcasgd-capped": "DC-ASGD-a, capped",
    "rows": "rows(), capped",
    "rotated": "rotated(), capped",
}
EXPLANATION = (
    "Mean over the seeds ± the half width of a 95 % interval (Student's t); closed: the share of "
    "the gap between the mean test errors of asynchronous and sequential SGD, %, with the noise of "
    "these two means in its interval."
)


def frame(lines: Sequence[ledger.Line]) -> study.Frame:
    """A row for each run, with its final numbers, and the share of the gap that it closes.

    The share is of the gap between the means of asynchronous and sequential SGD.
    """
    import pandas as pd

    runs = study.frame(lines)
    runs["momentum"] = [0.0 if pd.isna(momentum) else momentum for momentum in runs["momentum"]]
    for name in NUMBERS:
        runs[name] = [float("nan") if row[name] is None else row[name] for row in runs["final"]]
    runs.loc[runs["diverged"], list(NUMBERS)] = math.nan
    runs["closed"] = math.nan
    for (momentum, workers), of_place in runs.groupby(["momentum", "workers"]):
        sequential = _mean_error(runs, momentum, 1, "sgd")
        plain = _mean_error(runs, momentum, workers, "asgd")
        share = (plain - of_place["test_error"]) / (plain - sequential)
        runs.loc[of_place.index, "closed"] = 100 * share
    return runs


def _mean_error(runs: study.Frame, momentum: float, workers: int, method: str) -> float:
    place = (runs["momentum"] == momentum) & (runs["workers"] == workers)
    return float(runs[place & (runs["method"] == method)]["test_error"].mean())


def print_tables(console: "Console", lines: Sequence[ledger.Line]) -> None:
    """A table for each momentum and number of workers."""
    runs = frame(lines)
    for title, here in _places(runs).items():
        table = terminal.new_table(
            "method", "rate", "λ0", "test error %", "closed %", "train loss", "seeds"
        )
        for name in TITLES:
            of_method = here[here["method"] == name]
            if len(of_method):
                table.add_row(*_row(name, of_method, here))
        terminal.print_table(console, title, table)
    terminal.print_text(console, EXPLANATION)


def _places(runs: study.Frame) -> dict[str, study.Frame]:
    """The runs of each momentum and number of workers, with those of one worker, by title."""
    return {
        f"{workers} workers" + (f", momentum {momentum:g}" if momentum else ""): of_momentum[
            of_momentum["workers"].isin([1, workers])
        ]
        for momentum, of_momentum in runs.groupby("momentum", sort=False)
        for workers in sorted(set(of_momentum["workers"]) - {1}) or [1]
    }


def _row(name: str, runs: study.Frame, here: study.Frame) -> list[str]:
    """Of a method; `here` are all runs of its place."""
    ends = [here[here["method"] == end]["test_error"].dropna() for end in ("asgd", "sgd")]
    of_share = lambda values: directions_report.interval_of_share(values, *ends)
    first, diverged = runs.iloc[0], int(runs["diverged"].sum())
    spans = name in ("sgd", "asgd")
    return [
        TITLES[name],
        f"{first['learning_rate']:g}",
        "-"
        if first["lambda0"] is None or math.isnan(first["lambda0"])
        else f"{first['lambda0']:g}",
        _interval(100 * runs["test_error"], ".2f", directions_report.interval),
        "-" if spans else _interval(runs["closed"], ".0f", of_share),
        f"{runs['train_loss'].mean():.3f}",
        f"{diverged}/{len(runs)} div." if diverged else str(len(runs)),
    ]


def _interval(values: Any, form: str, of: Callable[[Any], tuple[float, float]]) -> str:
    there = values.dropna()
    if there.empty:
        return "-"
    mean, half = of(there)
    return format(mean, form) + ("" if math.isnan(half) else f" ± {half:{form}}")


def sentence(line: ledger.Line) -> str:
    """One line per finished run."""
    run, error = line["run"], line["final"]["test_error"]
    name = f"{run['method']}, {run['workers']} workers, seed {run['seed']}"
    said = "diverged" if line["diverged"] or error is None else f"test error {100 * error:.2f} %"
    return f"{name}: {said}, {line['seconds']:.0f} s"


def save_picture(path: pathlib.Path, lines: Sequence[ledger.Line]) -> None:
    """A panel for each momentum and number of workers: test error against simulated time."""
    from matplotlib import figure

    places = _places(frame(lines))
    columns = min(len(places), 3)
    rows = math.ceil(len(places) / columns)
    size = (3.6 * columns + 0.6, 2.9 * rows + 0.9)
    picture = figure.Figure(figsize=size, dpi=130, layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, (place, here) in zip(panels, places.items(), strict=False):
        for index, (name, title) in enumerate(TITLES.items()):
            _draw(ax, here[(here["method"] == name) & ~here["diverged"]], f"C{index}", title)
        ax.set_title(place, fontsize=9)
        ax.set_xlim(left=0)
        axes.finish(ax, "epoch", "")
    for ax in panels[len(places) :]:
        ax.set_visible(False)
    picture.supylabel("test error, %", fontsize=9)
    lines_of = {
        label: handle
        for ax in panels
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    picture.legend(
        lines_of.values(), lines_of, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figures.save(path, picture)


def _draw(ax: Any, runs: study.Frame, color: str, title: str) -> None:
    """The mean over the seeds at each evaluation."""
    import pandas as pd

    curves = [
        pd.Series(curve["test_error"], index=[round(epoch, 3) for epoch in curve["epoch"]])
        for curve in runs["curve"]
    ]
    if curves:
        mean = 100 * pd.concat(curves, axis=1).mean(axis=1)
        ax.plot(mean.index, mean, "o-", color=color, label=title, markersize=3, linewidth=1.2)
