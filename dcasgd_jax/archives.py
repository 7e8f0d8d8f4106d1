"""Named arrays in npz files: written whole or not at all, and read whole or refused."""

import io
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcasgd_jax import files


def save(path: str | os.PathLike, arrays: Mapping[str, Any], compressed: bool) -> None:
    """Writes arrays of NumPy's own dtypes."""
    write = np.savez_compressed if compressed else np.savez
    with files.replacing(path) as stream:
        write(stream, **arrays)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `save` wrote.

    Raises:
      ValueError: Whatever is wrong with the content; does not name the file.
      OSError: If there is no such file, or it cannot be opened.
    """
    with pathlib.Path(path).open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                names = archive.namelist()
                return {name.removesuffix(".npy"): _read(archive, name) for name in names}
        except MemoryError:
            raise
        except Exception as error:  # whatever damage makes zipfile, zlib and NumPy raise
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # The whole entry before any of it is believed: `np.load` checks the checksum of an entry only
    # if it reads it to its end, which a damaged shape may keep it from.
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
