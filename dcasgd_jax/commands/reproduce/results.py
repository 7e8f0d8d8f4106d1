"""A line of the results: what is read of it, and whether it is one."""

import pathlib
from typing import Any

from dcasgd_jax.commands import kept, ledger, methods
from dcasgd_jax.commands.reproduce import paper, settings

PROGRAM = "dcasgd-jax reproduce"

Line = ledger.Line

# What tables and pictures read, by part of a line.
_FIELDS: dict[str, kept.Kinds] = {
    "run": dict, "settings": dict, "curve": dict, "final": dict, "diverged": bool,
    "simulated_seconds": kept.NUMBER, "mean_staleness": kept.NUMBER,
    "compensation_ratio": (dict, type(None)),
}  # fmt: skip
_RUN: dict[str, kept.Kinds] = {
    "method": str, "workers": int, "seed": int, "learning_rate": kept.NUMBER,
    "lambda0": kept.NUMBER_OR_NONE, "max_pull": kept.NUMBER_OR_NONE,
}  # fmt: skip
_SETTINGS: dict[str, kept.Kinds] = {
    "experiment": str, "model": str, "law": str, "epochs": int, "batch_size": int,
    "train_images": int, "test_images": int, "loss_images": int,
}  # fmt: skip
_RATIO: dict[str, kept.Kinds] = dict.fromkeys(("median", "max"), kept.NUMBER_OR_NONE)


def read(folder: pathlib.Path) -> list[Line]:
    """All finished runs of a folder; see `ledger.Ledger`."""
    return ledger.Ledger(folder, PROGRAM, check).lines()


def run_of(line: Line) -> settings.Run:
    """Which run a line is of."""
    return settings.Run(**line["run"])


def paper_of(line: Line) -> paper.Paper:
    """What the paper reports on the data set of a line."""
    return paper.ALL[line["settings"]["experiment"]]


def check(line: Any) -> None:
    """Raises ValueError or TypeError, in words, if no table or picture can be made of a line."""
    kept.check_fields(line, _FIELDS)
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line["settings"], _SETTINGS)
    if line["compensation_ratio"] is not None:
        kept.check_fields(line["compensation_ratio"], _RATIO)
    if run_of(line).method not in methods.METHODS:
        raise ValueError(f"there is no method {line['run']['method']}")
    if line["settings"]["experiment"] not in paper.ALL:
        raise ValueError(f"there is no experiment {line['settings']['experiment']}")
    if line["diverged"]:
        return
    kept.check_fields(line["final"], dict.fromkeys(("test_error", "train_loss"), kept.NUMBER))
    columns = ("epoch", "simulated_seconds", "test_error")
    kept.check_fields(line["curve"], dict.fromkeys(columns, list))
    if len({len(line["curve"][name]) for name in columns}) > 1:
        raise ValueError("the columns of its curve differ in length")
