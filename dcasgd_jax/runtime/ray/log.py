"""A log of JSON lines: one object per line, complete at every moment."""

import json
import math
import os
import pathlib
from typing import IO, Any


class JsonLines:
    """Appends objects to a file, or to nothing if there is no path."""

    def __init__(self, path: str | os.PathLike | None):
        self._stream: IO[str] | None = None
        if path is not None:
            self._stream = pathlib.Path(path).open("a", encoding="utf-8")  # noqa: SIM115

    def write(self, event: str, **fields: Any) -> None:
        """One line; numbers that are not finite, which JSON does not have, become null."""
        if self._stream is None:
            return
        line = {"event": event, **{name: _plain(value) for name, value in fields.items()}}
        self._stream.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """What was written is in the file."""
        if self._stream is not None:
            self._stream.flush()

    def close(self) -> None:
        """No more lines."""
        if self._stream is not None:
            self._stream.close()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
