"""The tables of the study."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcasgd_jax.commands import terminal
from pipeline import delays, methods, study, summary

if TYPE_CHECKING:
    from rich.console import Console


def print_all(console: "Console", job: study.Job, found: Sequence[summary.Summary]) -> None:
    """Gap and overhead of each optimizer, a row for each method, a column for each delay."""
    for optimizer in job.optimizers:
        of_optimizer = [s for s in found if s.optimizer == optimizer]
        reference = of_optimizer[0]
        loss = "diverged" if reference.gap is None else _text(reference.validation_loss, "{:.3f}")
        terminal.print_text(
            console,
            f"{optimizer} without delay: validation loss {loss} at learning rate "
            f"{chosen_cell(reference)}",
        )
        for title, cell in (
            ("loss gap", gap_cell),
            ("token overhead, %", overhead_cell),
            (
                "chosen learning rate (* the smallest or largest tried), lambda0, max_pull",
                chosen_cell,
            ),
        ):
            table = terminal.new_table()
            table.add_column("method", no_wrap=True)
            for delay in job.delays:
                table.add_column(delays.title(delay), justify="right")
            for method in job.methods:
                cells = {s.delay: cell(s) for s in of_optimizer if s.method == method}
                row = [cells[delay] for delay in job.delays]
                table.add_row(methods.METHODS[method].title, *row)
            terminal.print_table(console, f"{optimizer}: {title}", table)
    terminal.print_text(console, summary.EXPLANATION)


def gap_cell(found: summary.Summary) -> str:
    """Mean and spread, and how many runs diverged."""
    return _with_diverged(found, _text(found.gap, "{:.3f}"))


def overhead_cell(found: summary.Summary) -> str:
    """In percent, over the seeds for which the reference came as low."""
    parts = [] if found.overhead is None else [_text(found.overhead, "{:.0f}", 100)]
    if found.num_not_reached:
        parts.append(f"{found.num_not_reached}/{found.num_runs} not reached")
    return _with_diverged(found, ", ".join(parts))


def chosen_cell(found: summary.Summary) -> str:
    """The numbers that tuning chose; a star where a better rate may lie beyond those tried."""
    rates = methods.rates_of(found.optimizer, found.method)
    star = "*" if len(rates) > 1 and found.learning_rate in (rates[0], rates[-1]) else ""
    strength = [f"{number:g}" for number in (found.lambda0, found.max_pull) if number is not None]
    return ", ".join([f"{found.learning_rate:g}{star}", *strength])


def _with_diverged(found: summary.Summary, text: str) -> str:
    if not found.num_diverged:
        return text
    return ", ".join(filter(None, [text, f"{found.num_diverged}/{found.num_runs} diverged"]))


def _text(spread: summary.Spread | None, form: str, factor: float = 1) -> str:
    if spread is None:
        return ""
    mean = form.format(factor * spread.mean)
    return mean if spread.std is None else f"{mean} ± {form.format(factor * spread.std)}"
