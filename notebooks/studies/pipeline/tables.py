"""The tables of the study."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcasgd_jax.commands import terminal
from pipeline import delays, methods, summary

if TYPE_CHECKING:
    from rich.console import Console


def print_all(console: "Console", found: Sequence[summary.Summary]) -> None:
    """A table for each optimizer, a row for each method with each delay."""
    _, lambda0 = terminal.symbols(console)
    for optimizer in dict.fromkeys(s.optimizer for s in found):
        reference, *others = [s for s in found if s.optimizer == optimizer]
        loss = "diverged"
        if reference.validation_loss is not None:
            loss = reference.validation_loss.text(".3f")
        terminal.print_text(
            console,
            f"{optimizer} without delay: validation loss {loss} at learning rate "
            f"{rate_cell(reference)}",
        )
        table = terminal.new_table(
            *("delay", "method", "loss gap", "overhead\n%", "never", "lr", lambda0),
            *("max\npull", "div."),
        )
        table.columns[1].justify = "left"
        for one in others:
            table.add_row(delays.title(one.delay), one.method, *cells(one))
        terminal.print_table(console, f"{optimizer}: with delays", table)
    terminal.print_text(console, summary.EXPLANATION)


def cells(found: summary.Summary) -> list[str]:
    """The numbers of one row."""
    text = lambda statistic, form, factor=1: (
        "-" if statistic is None else statistic.text(form, factor=factor)
    )
    number = lambda value: "-" if value is None else f"{value:g}"
    count = lambda some: f"{some}/{found.num_runs}" if some else ""
    return [
        text(found.gap, ".3f"),
        text(found.overhead, ".0f", 100),
        count(found.num_not_reached),
        rate_cell(found),
        number(found.lambda0),
        number(found.max_pull),
        count(found.num_diverged),
    ]


def rate_cell(found: summary.Summary) -> str:
    """What tuning chose; a star where a better rate may lie beyond those tried."""
    rates = methods.rates_of(found.optimizer, found.method)
    star = "*" if len(rates) > 1 and found.learning_rate in (rates[0], rates[-1]) else ""
    return f"{found.learning_rate:g}{star}"
