"""`dcasgd-jax reproduce`: the paper's experiments; needs the extra `reproduce`."""

import argparse
from collections.abc import Sequence

from dcasgd_jax.experiments.reproduce import experiment

HELP = "repeat the paper's experiments on CIFAR-10"

EXPERIMENTS = {"cifar10": experiment}
"""Name -> module with `HELP`, `add_options(parser)` and `run(arguments)`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a subcommand for every experiment."""
    parser.description = "Repeats the paper's experiments."
    subparsers = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, module in EXPERIMENTS.items():
        module.add_options(subparsers.add_parser(name, help=module.HELP, allow_abbrev=False))


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs one experiment.

    Raises:
      UsageError: If it cannot be run; before any training.
    """
    del command  # every option that matters is in the settings of a line
    EXPERIMENTS[arguments.experiment].run(arguments)
