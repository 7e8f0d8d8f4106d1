"""All methods, tuned with the same effort, in many settings; a program."""

import argparse
import itertools
from collections.abc import Sequence

import every_method_report as report

from dcasgd_jax import digits
from dcasgd_jax.commands import (
    catalogue,
    command_line,
    digits_study,
    errors,
    options,
    settings,
    terminal,
    tuning,
    values,
)

PROGRAM = "every_method.py"
MOMENTUM = 0.9
PICTURE, SUMMARY = "every-method.png", "every-method.csv"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains on scikit-learn's digits with every method of this package, in every combination "
        "of model, number of workers, law of times, with and without momentum. Each method gets "
        f"{tuning.NUM_CONFIGURATIONS} configurations on seeds of their own, then fresh seeds. "
        "What is finished is kept in --out: call it again to go on. Several processes can share "
        "one --out."
    )
    options.add(parser, "--model", nargs="+", default=list(digits.MODELS))
    several = {"nargs": "+", "type": values.integer_from(2)}
    options.add(parser, "--workers", **several, default=[4, 8, 16], help="numbers of workers")
    options.add(parser, "--law", nargs="+", default=["gamma", "exponential"])
    options.add(parser, "--momentum", nargs="+", default=[None, MOMENTUM], help="0 is none")
    options.add_methods(parser, catalogue.names(), catalogue.names())
    options.add_study(parser, "every-method-results")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves them with a picture.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds results of other settings; before any training.
    """
    del command  # every option that matters is in the settings and the lines
    console, lines, tunings = digits_study.collect(PROGRAM, arguments, _places)
    table = report.rows(lines, tunings)
    report.print_all(console, table)
    report.save_picture(arguments.out / PICTURE, table)
    report.summarise(table).to_csv(arguments.out / SUMMARY)
    saved = f"Saved {arguments.out / PICTURE} and {SUMMARY} beside it."
    terminal.print_text(console, saved, wrap=False)


def _places(
    arguments: argparse.Namespace,
) -> list[tuple[settings.Setting, digits_study.Tried]]:
    """The cells that some of the methods are for, each with what is tried there."""
    found = []
    for model, momentum, workers, law in itertools.product(
        arguments.model, arguments.momentum, arguments.workers, arguments.law
    ):
        setting = settings.Setting(
            model=model,
            num_workers=workers,
            law=settings.LAWS[law](),
            num_pushes=values.budget(arguments.updates, workers),
            momentum=momentum,
        )
        tried = {
            method: tuning.configurations(method, model, momentum)
            for name, method in digits_study.methods_for(setting).items()
            if name in arguments.methods
        }
        if tried:
            found.append((setting, tried))
    if not found:
        raise errors.UsageError(
            "--methods: none of these is for these cells, which have no momentum"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
