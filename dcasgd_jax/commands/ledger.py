"""The file of a study: a line of JSON for each thing that is finished, whole or not counted."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import IO, Any

from dcasgd_jax import files
from dcasgd_jax.commands import errors, kept, records

RESULTS, SETTINGS = "results.jsonl", "settings.json"

Line = dict[str, Any]

KINDS = "run", "tuned"
"""A line has one of these: what tells a run, or a tuning, from all others."""


class Ledger:
    """The file of a study: read once, and later only what other processes have added to it.

    A last line without its end, which a killed process may leave, is no result.

    Args:
      folder: Where the file is, if there is one.
      program: Whose; for messages.
      check: Raises ValueError or TypeError, in words, for a run that is no result of it.

    Raises:
      UsageError: If another line is no result of this program; names it.
    """

    def __init__(self, folder: pathlib.Path, program: str, check: Callable[[Line], None]):
        self._path, self._program, self._check = folder / RESULTS, program, check
        self._start_over()
        self.refresh()

    def lines(self) -> list[Line]:
        """All, in the order in which they were finished."""
        return list(self._lines.values())

    def find(self, **about: Mapping[str, Any]) -> Line | None:
        """The line about a run, or a tuning, if there is one."""
        return self._lines.get(identity(about))

    def refresh(self) -> None:
        """Reads what other processes have finished meanwhile."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as stream:
            self._read_on(stream)

    def append(self, line: Line) -> Line:
        """Adds one line that is on the disk when this returns; removes a torn one before it.

        Several processes may do this at once. What is there already is not added again.

        Returns:
          The line as it is in the file.
        """
        text = json.dumps(records.finite_or_none(line), allow_nan=False, ensure_ascii=False)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(handle, "r+b") as stream:
            files.wait_for_lock(stream)
            self._read_on(stream)
            line = json.loads(text)
            if identity(line) not in self._lines:
                stream.seek(self._end)
                stream.truncate()
                stream.write(f"{text}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
                self._end, self._count = stream.tell(), self._count + 1
                self._lines[identity(line)] = line
        return self._lines[identity(line)]

    def _start_over(self) -> None:
        self._lines: dict[str, Line] = {}
        self._end = self._count = 0  # bytes and lines that have been read

    def _read_on(self, stream: IO[bytes]) -> None:
        if stream.seek(0, os.SEEK_END) < self._end:  # somebody has removed lines
            self._start_over()
        stream.seek(self._end)
        content = stream.read()
        content = content[: content.rfind(b"\n") + 1]
        for text in content.splitlines():
            self._count += 1
            if text.strip():
                line = self._parse(text)
                self._lines.setdefault(identity(line), line)
        self._end += len(content)

    def _parse(self, text: bytes) -> Line:
        try:
            line = json.loads(text)
            kept.check_fields(line, {})
            kind = next((kind for kind in KINDS if kind in line), "run")
            kept.check_fields(line, {kind: dict})
            if kind == "run":
                self._check(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise errors.UsageError(
                f"{self._path}, line {self._count}, is no result of {self._program} ({error}): "
                "remove it"
            ) from None
        return line


def identity(line: Mapping[str, Any]) -> str:
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
