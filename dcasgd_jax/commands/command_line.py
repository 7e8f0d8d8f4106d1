"""The program `dcasgd-jax`: its subcommands, and errors as one line, also for other programs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import dcasgd_jax
from dcasgd_jax import extras
from dcasgd_jax.commands import compare, diagnose, errors, reproduce, train

SUBCOMMANDS = {
    "compare": compare,
    "diagnose": diagnose,
    "reproduce": reproduce,
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
    run = lambda arguments, command: SUBCOMMANDS[arguments.subcommand].run(arguments, command)
    return _run(_parser(), run, argv)


def run_program(
    name: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Sequence[str]], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a program of its own with the manners of a subcommand; returns the exit code.

    Args:
      name: In its messages.
      add_options: As a subcommand has it.
      run: Likewise.
      argv: As in `main`.
    """
    parser = _Parser(prog=name, allow_abbrev=False)
    add_options(parser)
    return _run(parser, run, argv)


def leave(code: int) -> NoReturn:
    """Ends the process; one that was interrupted at once.

    Its device may be at work still, and crashes if what it needs is taken away before.
    """
    if code == EXIT_INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Sequence[str]], None],
    argv: Sequence[str] | None,
) -> int:
    command = list(sys.argv[1:] if argv is None else argv)
    name = parser.prog
    try:
        arguments = parser.parse_args(command)
        name = " ".join(filter(None, [name, getattr(arguments, "subcommand", None)]))
        run(arguments, command)
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
