"""All methods, tuned with the same effort, in many settings; a program."""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence

from dcasgd_jax import digits
from dcasgd_jax.commands import catalogue, command_line, option_values, options, settings
from dcasgd_jax.commands.catalogue import cells, study

PROGRAM = "every_method.py"
MOMENTUM = 0.9


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains on scikit-learn's digits with every method of this package, in every combination "
        "of model, number of workers, law of times, with and without momentum. Each method gets "
        f"{catalogue.NUM_CONFIGURATIONS} configurations on seeds of their own, then fresh seeds. "
        "What is finished is kept in --out: call it again to go on. Processes with different "
        "--models can share one --out."
    )
    models, laws = list(digits.MODELS), list(settings.LAWS)
    parser.add_argument("--models", nargs="+", choices=models, default=models, metavar="MODEL")
    parser.add_argument(
        "--workers", nargs="+", type=options.integer_from(2), default=[4, 8, 16], metavar="M"
    )
    parser.add_argument(
        "--laws", nargs="+", choices=laws, default=["gamma", "exponential"], metavar="LAW"
    )
    parser.add_argument(
        "--momenta",
        nargs="+",
        type=option_values.momentum,
        default=[None, MOMENTUM],
        metavar="MU",
        help=f"0 is none; default 0 and {MOMENTUM}",
    )
    names = list(catalogue.names())
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=names,
        default=names,
        metavar="METHOD",
        help="which methods; default: all, %(default)s",
    )
    options.add_runs(parser, pathlib.Path("every-method-results"))


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves them with a picture.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds results of other settings; before any training.
    """
    todo = [
        cells.Cell(_setting(arguments, model, workers, law), momentum)
        for model, momentum, workers, law in itertools.product(
            arguments.models, arguments.momenta, arguments.workers, arguments.laws
        )
    ]
    study.run(todo, arguments.methods, arguments.seeds, arguments.out, [PROGRAM, *command])


def _setting(arguments: argparse.Namespace, model, workers, law) -> settings.Setting:
    return settings.Setting(
        model=model,
        num_workers=workers,
        law_name=law,
        law=settings.LAWS[law](),
        num_pushes=options.budget(arguments.updates, workers),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
