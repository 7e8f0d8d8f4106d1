"""Does one setting of the strength do for all tasks? `python notebooks/studies/strengths.py`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import strength_candidates as candidates
import strength_cells as study
import strength_report as report

from dcasgd_jax import digits, extras
from dcasgd_jax.commands import command_line, kept, options, records, settings, terminal

PROGRAM = "strengths.py"
RESULTS, PICTURE = "strengths.json", "strengths.png"

_CELL: dict[str, kept.Kinds] = {"setting": dict, "seeds": list, "rows": list}
_SETTING: dict[str, kept.Kinds] = {"model": str, "workers": int, "updates": int}
_ROW: dict[str, kept.Kinds] = {"name": str, "title": str, "relative": kept.NUMBER_OR_NONE}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains every task with every number of workers and every candidate for an automatic or "
        "fixed strength. The learning rate of each is tuned on seeds of its own; the reference "
        "also tunes lambda0. Finished cells are kept in --out: call it again to go on."
    )
    count = options.integer_from(1)
    models = list(digits.MODELS)
    parser.add_argument("--models", nargs="+", choices=models, default=models, metavar="MODEL")
    parser.add_argument("--workers", nargs="+", type=count, default=[4, 8, 16, 32], metavar="M")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=[candidate.name for candidate in candidates.CANDIDATES],
        default=[candidate.name for candidate in candidates.CANDIDATES],
        metavar="NAME",
        help="which settings; default: all, %(default)s",
    )
    options.add_runs(parser, pathlib.Path("strengths-results"))


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs the cells that are missing, prints the table and saves it with a picture.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds cells of other settings; before any training.
    """
    extras.require_packages("sklearn", "matplotlib", "rich")
    chosen = [c for c in candidates.CANDIDATES if c.name in arguments.candidates]
    todo = [
        settings.Setting(
            model=model, num_workers=workers, num_pushes=options.budget(arguments.updates, workers)
        )
        for model in arguments.models
        for workers in arguments.workers
    ]
    records.prepare_folder(arguments.out, RESULTS, PICTURE)
    with kept.held(arguments.out):
        cells = _run_missing(arguments, todo, chosen, command)
    console = terminal.make_console()
    report.print_table(console, cells)
    report.save_picture(arguments.out / PICTURE, cells)
    saved = f"Saved {arguments.out / RESULTS} and {PICTURE} beside it."
    terminal.print_text(console, saved, wrap=False)


def _run_missing(
    arguments: argparse.Namespace,
    todo: Sequence[settings.Setting],
    chosen: Sequence[candidates.Candidate],
    command: Sequence[str],
) -> list[study.Cell]:
    """All cells of the folder, with those that were missing."""
    path = arguments.out / RESULTS
    cells = _read(path, arguments, chosen) if path.exists() else []
    done = [cell["setting"] for cell in cells]
    missing = [setting for setting in todo if setting.describe() not in done]
    total = sum(study.num_pushes(setting, chosen, arguments.seeds) for setting in missing)
    with terminal.progress_bar(total) as advance:
        for setting in missing:
            cells.append(study.run_cell(setting, chosen, arguments.seeds, advance))
            content = {
                "date": records.today(),
                "command": [PROGRAM, *command],
                "versions": records.versions(),
                "cells": cells,
            }
            records.write_json(path, content)
    return records.finite_or_none(cells)


def _read(
    path: pathlib.Path, arguments: argparse.Namespace, chosen: Sequence[candidates.Candidate]
) -> list[study.Cell]:
    """The cells in a file.

    Raises:
      UsageError: If the file is damaged, or its cells are of other settings.
    """
    always = (study.TUNED, candidates.UNTUNED.name)
    cells = kept.read(path, PROGRAM, {"cells": list})["cells"]
    kept.check_rows(path, PROGRAM, "cell", cells, _CELL)
    for number, cell in enumerate(cells, 1):
        what = f"cell {number}: row"
        kept.check_rows(path, PROGRAM, what, cell["rows"], _ROW)
        kept.check_rows(path, PROGRAM, f"cell {number}: setting", [cell["setting"]], _SETTING)
        workers = max(cell["setting"]["workers"], 1)
        present = settings.Setting(
            model=cell["setting"]["model"],
            num_workers=workers,
            num_pushes=arguments.updates - arguments.updates % workers,
        )
        kept.check_same(
            f"the cells in {path} have",
            {
                **cell["setting"],
                "seeds": cell["seeds"],
                "candidates": [row["name"] for row in cell["rows"] if row["name"] not in always],
            },
            {
                **present.describe(),
                "seeds": list(range(arguments.seeds)),
                "candidates": [candidate.name for candidate in chosen],
            },
        )
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
