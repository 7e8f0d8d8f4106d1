"""Tables of numbers in CSV files, read with errors that name the line and the column."""

import csv
import os
import pathlib
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """A rectangle of numbers and where each row stood in its file."""

    values: np.ndarray  # float64 [num_rows, num_columns]
    lines: list[int]  # line number of each row, from 1


def read_table(path: str | os.PathLike) -> Table:
    r"""Reads a CSV file of numbers; a first row without any number is a header and left out.

    Args:
      path: The file. Empty lines are passed over.

    Returns:
      The numbers, with the line of each row.

    Raises:
      ValueError: If the file has no numbers, a row is longer or shorter than the first, or a cell
        is no number; names the line, and the column from 1.

    Example:
      >>> import pathlib, tempfile
      >>> from dcasgd_jax.sim.schedules.tables import read_table
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "times.csv")
      ...     _ = path.write_text("fast,slow\n1,2.5\n1.5,3\n")
      ...     read_table(path).values.tolist()
      [[1.0, 2.5], [1.5, 3.0]]
    """
    try:
        with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}.") from None
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} holds no rows of numbers.")
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise ValueError(
                f"{path}: line {line} has {len(row)} cells, but the first row of numbers has "
                f"{width}; every row needs one cell per worker."
            )
        for column, cell in enumerate(row, start=1):
            if not _is_number(cell):
                raise ValueError(f"{path}: line {line}, column {column} is {cell!r}, not a number.")
    values = np.array([[float(cell) for cell in row] for _, row in rows])
    return Table(values, [line for line, _ in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
