"""How long a run takes, over all the processes that worked on it."""

import contextlib
import pathlib
import time

from dcasgd_jax.commands import records


class Clock:
    """Counts seconds in a file, so that those of a killed process count as well."""

    def __init__(self, path: pathlib.Path):
        self._path, self._start, self._before = path, time.perf_counter(), 0.0
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._before = float(records.read_json(path))

    @property
    def seconds(self) -> float:
        """Of this process."""
        return time.perf_counter() - self._start

    @property
    def total(self) -> float:
        """Of all processes."""
        return self._before + self.seconds

    def save(self) -> None:
        """Writes the total down."""
        records.write_json(self._path, self.total)
