"""`dcasgd-jax reproduce`: the paper's experiments; needs the extra `reproduce`."""

import argparse
from collections.abc import Sequence

from dcasgd_jax.commands.reproduce import experiment, options, texts


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a subcommand for every experiment."""
    parser.description = "Repeats the paper's experiments."
    subparsers = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, words in texts.TEXTS.items():
        subparser = subparsers.add_parser(name, help=words.help, allow_abbrev=False)
        options.add_options(subparser, name)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs one experiment.

    Raises:
      UsageError: If it cannot be run; before any training.
    """
    del command  # every option that matters is in the settings of a line
    experiment.run(arguments)
