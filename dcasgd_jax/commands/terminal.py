"""Texts, tables and the progress bar, with rich."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_WIDTH = 80


def make_console(*, stderr: bool = False) -> "Console":
    """A console at most 80 columns wide."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH) if console.is_terminal else MAX_WIDTH
    return console


class Progress:
    """What a command has done: a bar on a terminal, a line for each finished part elsewhere."""

    def __init__(self, advance: Callable[[str, float], None], say: Callable[[str], None]):
        self._advance, self.say = advance, say

    def of(self, text: str) -> Callable[[float], None]:
        """Begins a part; the function that it returns is told of what is done in it."""
        self._advance(text, 0)
        return lambda done: self._advance(text, done)


@contextlib.contextmanager
def progress_bar(total: float) -> Iterator[Progress]:
    """Shows how much of `total` is done, on the error output; nothing if there is nothing to do."""
    from rich import progress

    console = make_console(stderr=True)
    if not total or not console.is_terminal:
        say = lambda text: print(text, file=sys.stderr, flush=True)
        yield Progress(lambda text, done: None, say)
        return
    bar = progress.Progress(
        progress.TextColumn("{task.description:<22}"),
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("compiling", total=total)
        advance = lambda text, done: bar.update(task, description=text, advance=done)
        yield Progress(advance, lambda text: None)


def print_text(console: "Console", text: str, *, wrap: bool = True) -> None:
    """One paragraph without markup; `wrap=False` keeps a path in one piece."""
    console.print(text, markup=False, soft_wrap=not wrap)


def print_table(console: "Console", title: str, table: "Table") -> None:
    """The title, not wrapped to the table's width, and the table."""
    console.print()
    print_text(console, title)
    console.print()
    # A terminal too narrow folds the lines; rich would cut the numbers.
    width, console.width = console.width, 10 * MAX_WIDTH
    console.print(table)
    console.width = width
    console.print()


def new_table(*columns: str) -> "Table":
    """A table in the style of all of ours: the first column to the left, numbers to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def symbols(console: "Console") -> tuple[str, str]:
    """How to write ± and λ0 there."""
    return ("±", "λ0") if console.encoding.lower().startswith("utf") else ("+-", "lam0")
