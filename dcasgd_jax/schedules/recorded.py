"""Compute times that were measured."""

import dataclasses
import os

import numpy as np

from dcasgd_jax.schedules import tables


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecordedTime:
    """Compute times that were measured, replayed in order and from the start when they run out.

    Args:
      times_seconds: `[num_gradients, num_workers]`, or `[num_gradients]` for all workers alike.

    Raises:
      ValueError: If a time is not positive and finite (the first one is named), or none is there.
    """

    times_seconds: np.ndarray

    def __post_init__(self):
        recorded = np.array(self.times_seconds, np.float64)
        if recorded.ndim not in (1, 2) or not recorded.size:
            raise ValueError(
                "RecordedTime needs an array [num_gradients, num_workers] or [num_gradients], "
                f"got shape {recorded.shape}."
            )
        bad = first_impossible_time(recorded)
        if bad is not None:
            raise ValueError(
                f"RecordedTime: the time at {list(bad)} is {recorded[bad]}; compute times must "
                "be positive and finite."
            )
        recorded.setflags(write=False)
        object.__setattr__(self, "times_seconds", recorded)

    @classmethod
    def from_csv(cls, path: str | os.PathLike, num_rows: int | None = None) -> "RecordedTime":
        """Reads times in seconds: one column per worker, one row per gradient, header optional.

        The first row is a header if each of its cells is a name: a letter first, and nothing that
        looks like a mistyped number (O.5, l0, x1.5).

        Args:
          path: The file.
          num_rows: Gradients that must be there, to notice a file that was cut off between two
            rows. Default: any number; how many were read is in the `repr` of the result.

        Raises:
          ValueError: If the file is no such table; names the file, the line and the column.
        """
        table = tables.read_table(path, num_rows)
        bad = first_impossible_time(table.values)
        if bad is not None:
            row, column = bad
            hint = ""
            finite = np.isfinite(table.values).all()
            if finite and np.all((table.values >= 0) & (table.values == np.floor(table.values))):
                hint = " (these look like delays in versions; see sim.Schedule.from_delays_csv)"
            raise ValueError(
                f"{path}: line {table.lines[row]}, column {column + 1} is "
                f"{table.values[row, column]:g}; compute times must be positive and finite{hint}."
            )
        return cls(table.values)

    def __repr__(self) -> str:
        """How many there are."""
        gradients, *workers = self.times_seconds.shape
        of = f"{workers[0]} workers" if workers else "all workers alike"
        return f"RecordedTime: {gradients:,} gradients of {of}"

    def check(self, num_workers: int) -> None:
        """Raises ValueError unless there is one column for each worker."""
        if self.times_seconds.ndim == 2 and self.times_seconds.shape[1] != num_workers:
            raise ValueError(
                f"RecordedTime has {self.times_seconds.shape[1]} columns, but there are "
                f"{num_workers} workers."
            )

    def times(self, worker: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """See `WorkerTimeLaw.times`."""
        del generator
        one_column = self.times_seconds.ndim == 1
        column = self.times_seconds if one_column else self.times_seconds[:, worker]
        return np.resize(column, count)


def first_impossible_time(times: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first time that is not positive and finite, None if all are."""
    bad = np.argwhere(~((times > 0) & np.isfinite(times)))
    return tuple(bad[0].tolist()) if len(bad) else None
