"""The file of a study: a line of JSON for each thing that is finished, whole or not counted."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dcasgd_jax import files
from dcasgd_jax.commands import errors, kept, records

RESULTS, SETTINGS = "results.jsonl", "settings.json"

Line = dict[str, Any]

KINDS = "run", "tuned"
"""A line has one of these: what tells a run, or a tuning, from all others."""


def read(folder: pathlib.Path, program: str, check: Callable[[Line], None]) -> list[Line]:
    """All lines, in the order in which they were finished.

    A last line without its end, which a killed process may leave, is no result.

    Args:
      folder: Where the file is, if there is one.
      program: Whose; for messages.
      check: Raises ValueError or TypeError, in words, for a run that is no result of it.

    Raises:
      UsageError: If another line is no result of this program; names it.
    """
    path = folder / RESULTS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for number, text in _whole_lines(content).items():
        try:
            line = json.loads(text)
            kept.check_fields(line, {})
            kind = next((kind for kind in KINDS if kind in line), "run")
            kept.check_fields(line, {kind: dict})
            if kind == "run":
                check(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise errors.UsageError(
                f"{path}, line {number}, is no result of {program} ({error}): remove it"
            ) from None
        found.append(line)
    return found


def append(folder: pathlib.Path, line: Line) -> None:
    """Adds one line that is on the disk when this returns; removes a torn one before it.

    Several processes may do this at once. What is there already is not added again.
    """
    text = json.dumps(records.finite_or_none(line), allow_nan=False, ensure_ascii=False)
    handle = os.open(folder / RESULTS, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as stream:
        files.wait_for_lock(stream)
        content = stream.read()
        others = map(json.loads, _whole_lines(content).values())
        if identity(json.loads(text)) in map(identity, others):
            return
        stream.seek(content.rfind(b"\n") + 1)
        stream.truncate()
        stream.write(f"{text}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def identity(line: Line) -> str:
    """Equal for lines about the same run, or the same tuning."""
    return json.dumps({kind: line.get(kind) for kind in KINDS}, sort_keys=True)


def check_settings(folder: pathlib.Path, program: str, present: Mapping[str, Any]) -> None:
    """Refuses to mix results of other settings; keeps the settings of a new folder.

    Raises:
      UsageError: Names the first setting that differs from those of the folder.
    """
    with files.Lock(folder / kept.LOCK, patience_seconds=60.0):
        path = folder / SETTINGS
        if path.exists():
            kept.check_same(f"the runs in {folder} have", kept.read(path, program, {}), present)
        elif (folder / RESULTS).exists():
            raise errors.UsageError(f"{folder} has runs but no {SETTINGS}: choose another --out")
        else:
            records.write_json(path, present)


def _whole_lines(content: bytes) -> dict[int, bytes]:
    """Those that are not empty and have an end, by number."""
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}
