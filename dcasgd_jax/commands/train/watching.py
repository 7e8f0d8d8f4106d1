"""What a live run shows on a terminal."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from dcasgd_jax.commands import terminal


@contextlib.contextmanager
def progress_bar(num_updates: int) -> Iterator[Callable[[Any], None]]:
    """A bar with rate, staleness and loss on a terminal, nothing elsewhere; yields `show(status)`.

    Args:
      num_updates: Of the run.
    """
    from rich import progress

    console = terminal.make_console(stderr=True)
    bar = progress.Progress(
        progress.TextColumn("{task.completed}/{task.total}"),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("starting processes", total=num_updates)
        yield lambda status: bar.update(task, completed=status.version, description=line(status))


def line(status: Any) -> str:
    """A `Status` in a few words."""
    if not status.num_pushes:
        return "waiting for the first push"
    return (
        f"{status.updates_per_second:.0f} updates/s, staleness {status.mean_staleness:.2f} "
        f"(max {status.max_staleness}), loss {status.loss:.4f}"
    )
