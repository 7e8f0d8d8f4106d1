"""The program `dcasgd-jax`: its subcommands, and errors as one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import dcasgd_jax
from dcasgd_jax import extras
from dcasgd_jax.commands import (
    compare,
    diagnose,
    errors,
    every_method,
    reproduce,
    shakespeare,
    strengths,
    train,
)

SUBCOMMANDS = {
    "compare": compare,
    "diagnose": diagnose,
    "every-method": every_method,
    "reproduce": reproduce,
    "shakespeare": shakespeare,
    "strengths": strengths,
    "train": train,
}
"""Name -> module with `HELP`, `add_options(parser)` and `run(arguments, command)`."""

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports errors by an exception, so that one place decides how they look."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code.

    Args:
      argv: Arguments without the program's name. Default: the process's.
    """
    command = list(sys.argv[1:] if argv is None else argv)
    name = "dcasgd-jax"
    try:
        arguments = _parser().parse_args(command)
        name = f"{name} {arguments.subcommand}"
        SUBCOMMANDS[arguments.subcommand].run(arguments, command)
    except (errors.UsageError, extras.MissingExtraError) as error:
        return _complain(name, str(error), EXIT_USAGE)
    except OSError as error:
        return _complain(name, str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain(name, "interrupted", EXIT_INTERRUPTED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dcasgd-jax",
        description="Delay-compensated asynchronous SGD for JAX: experiments.",
        epilog="dcasgd-jax SUBCOMMAND --help lists the options of a subcommand",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"dcasgd-jax {dcasgd_jax.__version__}"
    )
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, module in SUBCOMMANDS.items():
        module.add_options(subparsers.add_parser(name, help=module.HELP, allow_abbrev=False))
    return parser


def _complain(name: str, message: str, code: int) -> int:
    one_line = " ".join(message.split())
    print(f"{name}: error: {one_line}", file=sys.stderr)
    return code
