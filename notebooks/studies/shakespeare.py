"""A transformer in an asynchronous pipeline; a program that needs the extra `reproduce`."""

import argparse
import sys
from collections.abc import Sequence

from pipeline import (
    options,
    pictures,
    record,
    study,
    summary,
    tables,
    training,
)

from dcasgd_jax import extras
from dcasgd_jax.commands import command_line, kept, records, terminal

PROGRAM = "shakespeare.py"
PICTURE = "shakespeare.png"

add_options = options.add_options


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves them with a picture.

    Raises:
      UsageError: If the options or the text are wrong, a package is missing, or `--out` cannot be
        written or holds runs of other settings; before any training.
    """
    del command  # names the user's folders; every option that matters is in the settings
    job = options.make_job(arguments)
    extras.require_packages("flax", "sklearn", "matplotlib", "rich", extra="reproduce")
    records.prepare_folder(job.out, record.RESULTS, PICTURE)
    with kept.held(job.out):
        _run(job)


def _run(job: study.Job) -> None:
    """With the folder to ourselves."""
    runs = record.Record(job.out, job.setting, job.data.describe())
    console = terminal.make_console()
    missing = study.num_missing(job, runs)
    terminal.print_text(
        console, f"{missing} runs to train, {len(runs.lines)} in {runs.path} already.", wrap=False
    )
    workload = training.Workload(job.setting, job.data)
    with terminal.progress_bar(missing) as advance:
        study.run_missing(job, runs, workload, advance)
    found = summary.summarise(job, runs)
    runs.save(explanation=summary.EXPLANATION, summaries=[one.describe() for one in found])
    tables.print_all(console, job, found)
    pictures.save(job.out / PICTURE, job, runs, found)
    seconds = runs.seconds["seconds"]
    saved = f"Saved {runs.path} and {PICTURE} beside it ({seconds:.0f} s in all)."
    terminal.print_text(console, saved, wrap=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
