"""The program `dcasgd-jax`: its subcommands, and errors as one line, also for other programs."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import dcasgd_jax
from dcasgd_jax import extras
from dcasgd_jax.commands import errors

SUBCOMMANDS = {
    "compare": "compare sgd, ssgd, asgd, dcasgd and rotated on scikit-learn's digits",
    "diagnose": "measure what each compensation would do to the stale gradients of a run",
    "reproduce": "repeat the paper's experiments on CIFAR-10 and ImageNet",
    "train": "train with real workers on Ray: digits or CIFAR-10",
}
"""Name -> help; a module of that name has `add_options(parser)` and `run(arguments, command)`."""

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
    run = lambda arguments, command: _module(arguments.subcommand).run(arguments, command)
    return _run(_parser(command), run, command)


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


def _module(name: str) -> Any:
    return importlib.import_module(f"dcasgd_jax.commands.{name}")


def _parser(command: Sequence[str]) -> argparse.ArgumentParser:
    """Of all subcommands; only one that the command names is imported, which takes seconds."""
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
    for name, words in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=words, allow_abbrev=False)
        if name in command:
            _module(name).add_options(subparser)
    return parser


def _complain(name: str, message: str, code: int) -> int:
    one_line = " ".join(message.split())
    print(f"{name}: error: {one_line}", file=sys.stderr)
    return code
