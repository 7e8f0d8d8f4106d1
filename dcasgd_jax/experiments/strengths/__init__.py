"""`dcasgd-jax strengths`: does one setting of the strength do for all tasks?"""

import argparse
import pathlib
from collections.abc import Sequence

from dcasgd_jax.experiments import errors, options, records, settings, tasks, terminal
from dcasgd_jax.experiments.strengths import candidates, report, study

HELP = "compare rules for lambda0 with a tuned lambda0 on scikit-learn's digits"
RESULTS, PICTURE = "strengths.json", "strengths.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.description = (
        "Trains every task with every number of workers and every candidate for an automatic or "
        "fixed strength. The learning rate of each is tuned on seeds of its own; the reference "
        "also tunes lambda0. Finished cells are kept in --out: call it again to go on."
    )
    count = options.integer_from(1)
    models = list(tasks.MODELS)
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
    errors.require_packages("sklearn", "matplotlib", "rich")
    chosen = [c for c in candidates.CANDIDATES if c.name in arguments.candidates]
    todo = [
        settings.Setting(
            model=model, num_workers=workers, num_pushes=options.budget(arguments.updates, workers)
        )
        for model in arguments.models
        for workers in arguments.workers
    ]
    records.prepare_folder(arguments.out)
    path = arguments.out / RESULTS
    kept = records.read_json(path)["cells"] if path.exists() else []
    names = [study.TUNED, candidates.UNTUNED.name, *(c.name for c in chosen)]
    for cell in kept:
        if (
            cell["seeds"] != list(range(arguments.seeds))
            or [row["name"] for row in cell["rows"]] != names
        ):
            raise errors.UsageError(
                f"{path} holds cells of other --candidates or --seeds: choose another --out"
            )
    console = terminal.make_console()
    done = [cell["setting"] for cell in kept]
    missing = [setting for setting in todo if setting.describe() not in done]
    total = sum(study.num_pushes(setting, chosen, arguments.seeds) for setting in missing)
    with terminal.progress_bar(total) as advance:
        for setting in missing:
            kept.append(study.run_cell(setting, chosen, arguments.seeds, advance))
            content = {
                "date": records.today(),
                "command": ["dcasgd-jax", *command],
                "versions": records.versions(),
                "cells": kept,
            }
            records.write_json(path, content)
    cells = records.read_json(path)["cells"]
    report.print_table(console, cells)
    report.save_picture(arguments.out / PICTURE, cells)
    terminal.print_text(console, f"Saved {path} and {PICTURE} beside it.", wrap=False)
