"""Every option that more than one program has, declared once."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from dcasgd_jax import digits
from dcasgd_jax.commands import settings, values

_COUNT = values.integer_from(1)
_DEFAULT = settings.Setting()

OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "choices": list(digits.MODELS),
        "default": _DEFAULT.model,
        "help": "softmax regression, or an MLP with one hidden layer of 64",
    },
    "--workers": {
        "type": _COUNT, "default": _DEFAULT.num_workers, "metavar": "M", "help": "how many",
    },
    "--law": {
        "choices": list(settings.LAWS),
        "default": settings.name_of_law(_DEFAULT.law),
        "metavar": "LAW",
        "help": f"how long a gradient takes a worker: {', '.join(settings.LAWS)}",
    },
    "--law-param": {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "parameters of the law; VALUE may be one number per worker, separated by commas",
    },
    "--momentum": {
        "type": values.momentum, "metavar": "MU", "help": "heavy ball in every method; default 0",
    },
    "--updates": {
        "type": _COUNT,
        "default": _DEFAULT.num_pushes,
        "metavar": "N",
        "help": "pushed gradients, the same budget for every method",
    },
    "--batch-size": {
        "type": _COUNT, "default": _DEFAULT.batch_size, "metavar": "N",
        "help": "images per gradient",
    },
    "--seeds": {"type": _COUNT, "default": 5, "metavar": "N", "help": "run seeds 0 to N-1"},
    "--learning-rate": {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "[METHOD=]VALUE",
        "help": "of one method, or of all",
    },
    "--lambda0": {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "[METHOD=]VALUE",
        "help": "of one method, or of all that have one",
    },
    "--data-dir": {"type": pathlib.Path, "metavar": "DIR", "help": "folder with the data"},
    "--out": {
        "type": pathlib.Path, "metavar": "DIR",
        "help": "folder for the results; called again with the same options, the command goes on",
    },
}  # fmt: skip


def add(parser: Any, name: str, **changes: Any) -> None:
    """Adds an option of the table; its help says the default.

    Args:
      parser: Or a group of one.
      name: Of the option.
      **changes: What is different here.
    """
    declared = OPTIONS[name] | changes
    default = declared.get("default")
    if default not in (None, []) and "default" not in declared["help"]:
        shown = "%(default)s"
        if isinstance(default, Sequence) and not isinstance(default, str):
            shown = " ".join("0" if value is None else str(value) for value in default)
        declared["help"] += f"; default {shown}"
    parser.add_argument(name, **declared)


def add_methods(parser: Any, names: Sequence[str], default: Sequence[str], **changes: Any) -> None:
    """Adds `--methods`."""
    help_text = changes.pop("help", f"default: {' '.join(default)}")
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=list(default), metavar="METHOD",
        help=help_text, **changes,
    )  # fmt: skip


def add_study(parser: Any, out: str) -> None:
    """Adds what every study on the digits has: budget, seeds, folder and `--report-only`."""
    add(parser, "--updates")
    add(parser, "--seeds")
    add(parser, "--out", default=pathlib.Path(out))
    add_report_only(parser)


def add_report_only(parser: Any) -> None:
    """Adds `--report-only`."""
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="only print the tables and draw the picture of what is in --out",
    )


def make_setting(
    arguments: argparse.Namespace, num_pushes: int, momentum: float | None = None
) -> settings.Setting:
    """The setting that `--model`, `--workers`, `--law`, `--law-param` and `--batch-size` make."""
    return settings.Setting(
        model=arguments.model,
        num_workers=arguments.workers,
        law=values.make_law(arguments.law, arguments.law_param, arguments.workers),
        num_pushes=num_pushes,
        batch_size=arguments.batch_size,
        momentum=momentum,
    )


def laws_text() -> str:
    """The laws and their parameters, for the end of a help text."""
    lines = ["laws and their parameters:"]
    for name, law in settings.LAWS.items():
        parameters = ", ".join(f"{f.name}={f.default:g}" for f in dataclasses.fields(law))
        lines.append(f"  {name:<15}{parameters}")
    return "\n".join(lines)
