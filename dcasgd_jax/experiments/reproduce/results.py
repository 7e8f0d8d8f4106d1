"""The file of results: one line of JSON per finished run, whole or not counted."""

import json
import os
import pathlib
from typing import Any

from dcasgd_jax.experiments import errors, records
from dcasgd_jax.experiments.reproduce import paper, settings

RESULTS, SETTINGS = "results.jsonl", "settings.json"

Line = dict[str, Any]


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
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def append(folder: pathlib.Path, line: Line) -> None:
    """Adds one line that is on the disk when this returns; removes a torn one before it."""
    text = json.dumps(records.finite_or_none(line), allow_nan=False, ensure_ascii=False)
    handle = os.open(folder / RESULTS, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as stream:
        content = stream.read()
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
    path = folder / SETTINGS
    kept = [line["settings"] for line in lines]
    if path.exists():
        try:
            kept.insert(0, dict(records.read_json(path)))
        except (ValueError, TypeError):
            raise errors.UsageError(
                f"{path} is damaged: delete it, or choose another --out"
            ) from None
    # As JSON gives them back, so that tuples and lists are one.
    present = json.loads(json.dumps(present))
    for before in kept:
        for name in [*present, *(name for name in before if name not in present)]:
            if before.get(name) != present.get(name):
                raise errors.UsageError(
                    f"the runs in {folder} have {name} {_text(before.get(name))}, not "
                    f"{_text(present.get(name))}: choose another --out, or the same settings"
                )
    if not path.exists():
        records.write_json(path, present)


def _parse(path: pathlib.Path, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
        run_of(line)
        if not {"settings", "curve", "diverged", "final"} <= set(line):
            raise KeyError
    except (ValueError, TypeError, KeyError):
        raise errors.UsageError(
            f"{path}, line {number}, is no result of dcasgd-jax reproduce: remove it"
        ) from None
    return line


def _text(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
