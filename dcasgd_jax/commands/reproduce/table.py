"""The table: one row per method, workers and numbers, over the seeds that there are."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_jax.commands import methods, statistics, terminal
from dcasgd_jax.commands.reproduce import results, settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed."""

    run: settings.Run  # the first of them
    lines: tuple[results.Line, ...]

    @property
    def finished(self) -> list[results.Line]:
        """Those that did not diverge."""
        return [line for line in self.lines if not line["diverged"]]

    def final(self, name: str) -> list[float]:
        """What the runs that did not diverge ended with."""
        return [line["final"][name] for line in self.finished]

    @property
    def paper_percent(self) -> float | None:
        """The paper's test error with this method, workers and λ0."""
        run, reported = self.run, results.paper_of(self.lines[0])
        if run.lambda0 != reported.lambda0.get(run.method):
            return None
        return reported.test_error_percent.get((run.method, run.workers))


def rows(lines: Sequence[results.Line]) -> list[Row]:
    """Grouped over seeds; few workers first, then as the methods are listed, then by numbers."""
    groups: dict[settings.Run, list[results.Line]] = {}
    for line in lines:
        groups.setdefault(results.run_of(line)._replace(seed=0), []).append(line)
    found = [Row(run, tuple(group)) for run, group in groups.items()]
    return sorted(found, key=_place)


def _place(row: Row) -> tuple:
    run = row.run
    method = list(methods.METHODS).index(run.method)
    return run.workers, method, -run.learning_rate, run.lambda0 or 0.0, run.max_pull or 0.0


def best_rows(lines: Sequence[results.Line]) -> list[Row]:
    """Of each method and number of workers the row with fewest diverged, then with least loss."""
    best: dict[tuple[str, int], Row] = {}
    for row in rows(lines):
        key = row.run.method, row.run.workers
        if key not in best or _merit(row) < _merit(best[key]):
            best[key] = row
    return list(best.values())


def _merit(row: Row) -> tuple[float, float]:
    losses = row.final("train_loss")
    diverged = 1 - len(losses) / len(row.lines)
    return diverged, float(np.mean(losses)) if losses else 0.0


def make_table(console: "Console", lines: Sequence[results.Line]) -> "Table":
    """What `terminal.print_table` takes."""
    plus_minus, lambda0 = terminal.symbols(console)
    table = terminal.new_table(
        *("method", "M", "lr", lambda0, "test\nerror %", "paper\n%", "train\nloss"),
        *("simul.\nsecs", "stale-\nness", "median\nratio", "max\nratio", "runs"),
    )
    for row in rows(lines):
        table.add_row(*_cells(row, plus_minus))
    return table


def _cells(row: Row, plus_minus: str) -> list[str]:
    run = row.run
    ratios = [line["compensation_ratio"] for line in row.lines if line["compensation_ratio"]]
    diverged = len(row.lines) - len(row.finished)
    error, loss = (statistics.statistic(row.final(n)) for n in ("test_error", "train_loss"))
    cap = "" if run.max_pull in (None, 1.0) else f" {run.max_pull:g}"
    return [
        run.method + cap,
        str(run.workers),
        f"{run.learning_rate:g}",
        "-" if run.lambda0 is None else f"{run.lambda0:g}",
        "-" if error is None else error.text(".2f", f" {plus_minus} ", factor=100),
        "-" if row.paper_percent is None else f"{row.paper_percent:.2f}",
        "-" if loss is None else f"{loss.mean:.3f}",
        f"{np.mean([line['simulated_seconds'] for line in row.lines]):.0f}",
        f"{np.mean([line['mean_staleness'] for line in row.lines]):.1f}",
        _ratio([ratio["median"] for ratio in ratios], np.mean),
        _ratio([ratio["max"] for ratio in ratios], max),
        f"{diverged}/{len(row.lines)} div." if diverged else str(len(row.lines)),
    ]


def _ratio(values: list[float | None], together: Callable[[list[float]], Any]) -> str:
    """JSON has no infinity: a ratio that overflowed in a run that diverged is None."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "inf"
    return f"{together(finite):.2g}" if finite else "-"


def explanation(lines: Sequence[results.Line]) -> str:
    """What stands under the table."""
    setting, reported = lines[0]["settings"], results.paper_of(lines[0])
    text = (
        "Mean and sample std over the runs that did not diverge; error on "
        f"{setting['test_images']} test images, loss on {setting['loss_images']} training images "
        "without augmentation; ratio: |compensation|/|gradient|."
    )
    top5 = [line["final"].get("test_top5_error") for line in lines if not line["diverged"]]
    if top5 and None not in top5:
        text += f" Top-5 errors: {100 * min(top5):.2f} to {100 * max(top5):.2f} %."
    if any(row.paper_percent is not None for row in rows(lines)):
        text += (
            f" paper: Zheng et al. 2017, {reported.trained} with batches of "
            f"{reported.batch_size}, learning rate {reported.learning_rate:g}"
        )
        same = (setting["epochs"], setting["train_images"], setting["batch_size"]) == (
            *(reported.epochs, reported.num_images, reported.batch_size),
        )
        text += "." if same else "; the runs here are scaled down, so do not compare directly."
    return text


def title(lines: Sequence[results.Line]) -> str:
    """One line: network, data and budget."""
    setting = lines[0]["settings"]
    epochs = setting["epochs"]
    return (
        f"{setting['model']} on {setting['train_images']} images of "
        f"{results.paper_of(lines[0]).data_set}, {epochs} "
        f"epoch{'s' * (epochs > 1)}, batch {setting['batch_size']} per worker, "
        f"{setting['law']} times"
    )
