"""Named arrays in npz files: written whole or not at all, and read whole or refused."""

import io
import os
import pathlib
import zlib
from typing import Any

import numpy as np

from dcasgd_jax import files

_CHECKSUM = "checksum"


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays with a checksum of their names and values."""
    content: dict[str, Any] = {**arrays, _CHECKSUM: np.uint32(_checksum(arrays))}
    with files.replacing(path) as stream:
        np.savez_compressed(stream, **content)


def load(path: str | os.PathLike, names: set[str]) -> dict[str, np.ndarray]:
    """Reads what `save` wrote.

    Args:
      path: The file.
      names: Of the arrays that must be there, and no others.

    Raises:
      ValueError: Whatever is wrong with the content; does not name the file.
      OSError: If there is no such file, or it cannot be read.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # whatever a damaged file makes zipfile, zlib and NumPy raise
        raise ValueError(f"{type(error).__name__}: {error}") from None
    expected = {*names, _CHECKSUM}
    missing, foreign = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    if missing or foreign:
        lacks = f"has no {', '.join(missing)}" if missing else f"has {', '.join(foreign)}"
        raise ValueError(f"it {lacks}")
    checksum = arrays.pop(_CHECKSUM)
    if checksum.shape or int(checksum) != _checksum(arrays):
        raise ValueError("its arrays are not those that were saved")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        total = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, total)
    return total
