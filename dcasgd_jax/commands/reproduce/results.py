"""The file of results: one line of JSON per finished run, whole or not counted."""

import json
import os
import pathlib
from typing import Any

from dcasgd_jax import files
from dcasgd_jax.commands import errors, kept, methods, records
from dcasgd_jax.commands.reproduce import paper, settings

RESULTS, SETTINGS = "results.jsonl", "settings.json"

Line = dict[str, Any]

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
    """All finished runs, in the order in which they were finished.

    A last line without its end, which a killed process may leave, is no result.

    Raises:
      UsageError: If another line is no result of this program; names it.
    """
    path = folder / RESULTS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [_parse(path, number, line) for number, line in _whole_lines(content).items()]


def append(folder: pathlib.Path, line: Line) -> None:
    """Adds one line that is on the disk when this returns; removes a torn one before it.

    Several processes may do this at once. A run that is there already is not added again.
    """
    text = json.dumps(records.finite_or_none(line), allow_nan=False, ensure_ascii=False)
    handle = os.open(folder / RESULTS, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as stream:
        files.wait_for_lock(stream)
        content = stream.read()
        if line["run"] in (json.loads(other)["run"] for other in _whole_lines(content).values()):
            return
        stream.seek(content.rfind(b"\n") + 1)
        stream.truncate()
        stream.write(f"{text}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def run_of(line: Line) -> settings.Run:
    """Which run a line is of."""
    return settings.Run(**line["run"])


def paper_of(line: Line) -> paper.Paper:
    """What the paper reports on the data set of a line."""
    return paper.ALL[line["settings"]["experiment"]]


def check_settings(folder: pathlib.Path, lines: list[Line], present: dict[str, Any]) -> None:
    """Refuses to mix runs of other settings; keeps the settings of a new folder.

    Raises:
      UsageError: Names the first setting that differs from those of the runs in the folder.
    """
    with files.Lock(folder / kept.LOCK, patience_seconds=60.0):
        path = folder / SETTINGS
        before = [line["settings"] for line in lines]
        if path.exists():
            before.insert(0, kept.read(path, "dcasgd-jax reproduce", {}))
        for settings_before in before:
            kept.check_same(f"the runs in {folder} have", settings_before, present)
        if not path.exists():
            records.write_json(path, present)


def _whole_lines(content: bytes) -> dict[int, bytes]:
    """Those that are not empty and have an end, by number."""
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}


def _parse(path: pathlib.Path, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
        _check(line)
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.UsageError(
            f"{path}, line {number}, is no result of dcasgd-jax reproduce ({error}): remove it"
        ) from None
    return line


def _check(line: Any) -> None:
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
