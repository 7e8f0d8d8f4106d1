"""Does one setting of the strength do for all tasks? A program."""

import argparse
from collections.abc import Sequence

import strength_candidates as candidates
import strength_report as report

from dcasgd_jax import digits
from dcasgd_jax.commands import (
    command_line,
    digits_study,
    options,
    settings,
    terminal,
    tuning,
    values,
)

PROGRAM = "strengths.py"
PICTURE = "strengths.png"
NAMES = [candidate.name for candidate in candidates.CANDIDATES]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains every task with every number of workers and every candidate for an automatic or "
        "fixed strength. The learning rate of each is tuned on seeds of its own; the reference "
        "also tunes lambda0. What is finished is kept in --out: call it again to go on."
    )
    options.add(parser, "--model", nargs="+", default=list(digits.MODELS))
    options.add(parser, "--workers", nargs="+", default=[4, 8, 16, 32], help="numbers of workers")
    options.add_methods(parser, NAMES, NAMES, help="which candidates; default: all")
    options.add_study(parser, "strengths-results")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the table and saves it with a picture.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds results of other settings; before any training.
    """
    del command  # every option that matters is in the settings and the lines
    console, lines, _ = digits_study.collect(PROGRAM, arguments, _places)
    table = report.relative(lines)
    report.print_table(console, table)
    report.save_picture(arguments.out / PICTURE, table)
    terminal.print_text(console, f"Saved {arguments.out / PICTURE}.", wrap=False)


def _places(arguments: argparse.Namespace) -> list[tuple[settings.Setting, digits_study.Tried]]:
    """All tasks with all numbers of workers, and what is tried in each."""
    chosen = [c for c in candidates.CANDIDATES if c.name in arguments.methods]
    return [
        (
            settings.Setting(
                model=model, num_workers=m, num_pushes=values.budget(arguments.updates, m)
            ),
            {
                candidates.TUNED: tuning.configurations(candidates.TUNED, model, num_rates=8),
                **{
                    method: tuning.configurations(method, model)
                    for method in (candidates.UNTUNED, *chosen)
                },
            },
        )
        for model in arguments.model
        for m in arguments.workers
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
