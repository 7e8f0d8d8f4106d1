"""The comparison from an empty folder, or a half full one, to tables and a picture."""

import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from dcasgd_jax import extras
from dcasgd_jax.commands import catalogue, errors, kept, options, records, runs, terminal
from dcasgd_jax.commands.catalogue import cells, picture, report
from dcasgd_jax.commands.catalogue.entry import Entry

FOLDER, RESULTS, PICTURE = "cells", "every-method.json", "every-method.png"

Kept = dict[str, Any]

_FIELDS: dict[str, kept.Kinds] = {"name": str, "setting": dict, "seeds": list, "rows": list}
_ROW: dict[str, kept.Kinds] = {
    "name": str, "title": str, "learning_rate": kept.NUMBER, "number": kept.NUMBER_OR_NONE,
    "train_loss": list, "test_error": list, "stable": (list, type(None)),
    "within_twice": (list, type(None)), "warnings": list, "seconds": kept.NUMBER,
}  # fmt: skip


def run(
    todo: Sequence[cells.Cell],
    names: Collection[str],
    num_seeds: int,
    out: pathlib.Path,
    command: Sequence[str],
) -> None:
    """Runs the methods that are missing in each cell, then reports all cells.

    Args:
      todo: The cells.
      names: Of the methods.
      num_seeds: Fresh seeds.
      out: Folder for the results; each cell is a file in it, rewritten after every method.
      command: What was typed, for the record.

    Raises:
      UsageError: If a package is missing, there are too many seeds, no method is for any cell,
        `out` cannot be written or holds cells of other settings; before any training.
    """
    extras.require_packages("sklearn", "matplotlib", "rich")
    options.check_seeds(num_seeds)
    todo = [cell for cell in todo if any(entry.name in names for entry in cell.entries())]
    if not todo:
        raise errors.UsageError(
            "--methods: none of these is for these cells, which have no momentum"
        )
    records.prepare_folder(out, RESULTS, PICTURE)
    records.prepare_folder(out / FOLDER)
    contents = [read(out, cell, num_seeds) for cell in todo]
    missing = [list(_missing(*of_cell, names)) for of_cell in zip(todo, contents, strict=True)]
    total = sum(
        len(entries) * cells.num_pushes(cell, num_seeds)
        for cell, entries in zip(todo, missing, strict=True)
    )
    console = terminal.make_console()
    if total:
        started = f"{sum(map(len, missing))} methods in {len(todo)} cells to run."
        terminal.print_text(console, started)
    compiled_for = None
    with terminal.progress_bar(total) as advance:
        for cell, content, entries in zip(todo, contents, missing, strict=True):
            if compiled_for not in (None, _programs(cell)):
                # A process that keeps a thousand programs runs out of memory maps, and crashes.
                jax.clear_caches()
            compiled_for = _programs(cell)
            for entry in entries:
                progress = _progress(advance, f"{cell.name} {entry.name}")
                content["rows"].append(cells.run(cell, entry, num_seeds, progress))
                content |= {"date": records.today(), "versions": records.versions()}
                records.write_json(_path(out, cell), content)
    found = [report.only(records.finite_or_none(content), names) for content in contents]
    report.print_all(console, found)
    summary = {
        "date": records.today(),
        "command": list(command),
        "configurations_per_method": catalogue.NUM_CONFIGURATIONS,
        "tuning_seeds": list(cells.TUNING_SEEDS),
        "seeds": list(range(num_seeds)),
        "seconds": sum(row["seconds"] for cell in found for row in cell["rows"]),
        "summary": report.summarise(found),
        # What was tried stays in the files of the cells.
        "cells": [report.without(cell, "tuning") for cell in found],
    }
    records.write_json(out / RESULTS, summary)
    picture.save(out / PICTURE, found)
    terminal.print_text(console, f"Saved {out / RESULTS} and {PICTURE} beside it.", wrap=False)


def read(out: pathlib.Path, cell: cells.Cell, num_seeds: int) -> Kept:
    """What there is of a cell.

    Raises:
      UsageError: If its file is of another setting, or no such file.
    """
    path = _path(out, cell)
    wanted = {"name": cell.name, "setting": cell.describe(), "seeds": list(range(num_seeds))}
    if not path.exists():
        return {**wanted, "rows": []}
    content = kept.read(path, "dcasgd-jax compare", _FIELDS)
    flat = lambda found: {"name": found["name"], **found["setting"], "seeds": found["seeds"]}
    kept.check_same(f"{path} has", flat(content), flat(wanted))
    kept.check_rows(path, "dcasgd-jax compare", "row", content["rows"], _ROW)
    return content


def _missing(cell: cells.Cell, content: Kept, names: Collection[str]) -> Iterator[Entry]:
    done = {row["name"] for row in content["rows"]}
    for entry in cell.entries():
        if entry.name in names and entry.name not in done:
            yield entry


def _programs(cell: cells.Cell) -> tuple[Any, ...]:
    """Cells that agree in this share compiled programs."""
    setting = cell.setting
    return setting.model, setting.num_workers, setting.num_pushes, cell.momentum


def _path(out: pathlib.Path, cell: cells.Cell) -> pathlib.Path:
    return out / FOLDER / f"{cell.name}.json"


def _progress(advance: terminal.Advance, text: str) -> runs.Progress:
    advance(text, 0)
    return lambda pushes: advance(text, pushes)
