"""`dcasgd-jax compare --methods all`: one cell, from the options of `compare`."""

import argparse

from dcasgd_jax.commands import errors, options
from dcasgd_jax.commands.catalogue import cells


def make_cell(arguments: argparse.Namespace) -> cells.Cell:
    """The one cell of `--methods all`.

    Raises:
      UsageError: If the options do not make one.
    """
    for option, given in (
        ("--tune", arguments.tune),
        ("--learning-rate", arguments.learning_rate),
        ("--lambda0", arguments.lambda0),
    ):
        if given:
            raise errors.UsageError(
                f"{option}: --methods {options.ALL} tunes every method, over the same range and "
                "with the same number of runs; leave it out"
            )
    if len(arguments.methods) > 1:
        raise errors.UsageError(f"--methods {options.ALL} has every method in it: name no other")
    if arguments.workers < 2:
        raise errors.UsageError(
            f"--workers {arguments.workers}: --methods {options.ALL} needs 2 or more"
        )
    options.check_batch(arguments.batch)
    pushes = options.budget(arguments.updates, arguments.workers)
    return cells.Cell(options.make_setting(arguments, pushes), arguments.momentum)
