"""Tables of numbers in CSV files, read with errors that name the line and the column."""

import csv
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

# What is mistaken for a digit.
_MISTYPED = str.maketrans("OoIl", "0011")


class Table(NamedTuple):
    """A rectangle of numbers and where each row stood in its file."""

    values: np.ndarray  # float64 [num_rows, num_columns]
    lines: list[int]  # line number of each row, from 1


Row = tuple[int, list[str]]  # the line and its cells


def read_table(path: str | os.PathLike, num_rows: int | None = None) -> Table:
    r"""Reads a CSV file of numbers, with or without a header.

    The first row is a header, and left out, if each of its cells is a name: it begins with a
    letter (after a # if there is one), holds no digit beside a dot, and is no number with a letter
    instead of a digit, such as O.5 or l0. A first row of neither names nor numbers is refused.

    Args:
      path: The file. Empty lines are passed over.
      num_rows: Rows of numbers that the file must have; a file that was cut off between two rows
        cannot be told from a whole one otherwise. Default: any number.

    Returns:
      The numbers, with the line of each row.

    Raises:
      ValueError: If the file has no numbers or not `num_rows` rows of them, a row is longer or
        shorter than the first, or a cell is no number; names the line, and the column from 1.

    Example:
      >>> import pathlib, tempfile
      >>> from dcasgd_jax.schedules.tables import read_table
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
    header, rows = _split_header(path, rows)
    if not rows:
        raise ValueError(f"{path} holds no rows of numbers.")
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise ValueError(
                f"{path}: line {line} has {len(row)} cells, but the first row of numbers has "
                f"{width}; every row needs as many."
            )
        for column, cell in enumerate(row, start=1):
            if not _is_number(cell):
                raise ValueError(f"{path}: line {line}, column {column} is {cell!r}, not a number.")
    if header and len(header) != width:
        raise ValueError(
            f"{path}: the header has {len(header)} cells, but line {rows[0][0]} has {width}; give "
            "every column a name, or leave out the header."
        )
    if num_rows is not None and len(rows) != num_rows:
        raise ValueError(
            f"{path} holds {len(rows)} rows of numbers, not {num_rows}: was it cut off, or is "
            "num_rows another?"
        )
    values = np.array([[float(cell) for cell in row] for _, row in rows])
    return Table(values, [line for line, _ in rows])


def _split_header(path: str | os.PathLike, rows: list[Row]) -> tuple[list[str], list[Row]]:
    """The names of the columns, if there are any, and the rows of numbers."""
    if not rows or any(_is_number(cell) for cell in rows[0][1]):
        return [], rows
    line, header = rows[0]
    for column, cell in enumerate(header, start=1):
        if not _is_name(cell):
            raise ValueError(
                f"{path}: line {line}, column {column} is {cell!r}, not a number; nor is it the "
                "name of a column, which begins with a letter and has no digit beside a dot."
            )
    return header, rows[1:]


def _is_name(cell: str) -> bool:
    text = cell.strip().removeprefix("#").strip()
    mistyped = _is_number(text.translate(_MISTYPED))
    return text[:1].isalpha() and not re.search(r"\d\.|\.\d", text) and not mistyped


def _is_number(cell: str) -> bool:
    if "_" in cell:  # float takes 1_5 for 15
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
