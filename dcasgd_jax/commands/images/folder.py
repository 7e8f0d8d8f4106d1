"""Images as files in one folder per class, as ImageNet is distributed."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dcasgd_jax.commands import errors

SUFFIXES = (".jpeg", ".jpg", ".png")


class ImageFolder:
    """Encoded images in `directory/<class>/<name>.JPEG`; classes and names in sorted order.

    The label of a class is its place among the sorted class names. Hidden files are passed over.

    Args:
      directory: With one folder per class.
      classes: Names that the folders must have, all of them; None takes what is there.

    Raises:
      UsageError: If there is no class folder, one is empty, missing or not among `classes`, or
        holds anything but `SUFFIXES` files.
    """

    def __init__(self, directory: str | os.PathLike, classes: Sequence[str] | None = None):
        self._directory = pathlib.Path(directory)
        found = _folders(self._directory)
        self.classes = found if classes is None else list(classes)
        self._check_classes(found)
        self._names: list[str] = []  # relative, since full paths of a million files add up
        counts = []
        for name in self.classes:
            images = _images(self._directory / name)
            counts.append(len(images))
            self._names += [f"{name}/{image}" for image in images]
        self.num_classes = len(self.classes)
        self.labels = np.repeat(np.arange(self.num_classes, dtype=np.int32), counts)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> bytes:
        """See `ImageSource.read`."""
        return (self._directory / self._names[row]).read_bytes()

    def where(self, row: int) -> str:
        """See `ImageSource.where`."""
        return _printable(self._directory / self._names[row])

    def _check_classes(self, found: list[str]) -> None:
        if not self.classes or not found:
            raise errors.UsageError(
                f"{self._directory} has no class folders: it must hold <class>/<name>.JPEG files."
            )
        expected = set(self.classes)
        for name in found:
            if name not in expected:
                raise errors.UsageError(
                    f"{_printable(self._directory / name)} is not one of the "
                    f"{len(expected)} classes: move it elsewhere, or add the class to train/."
                )
        for name in expected.difference(found):
            raise errors.UsageError(
                f"{self._directory} lacks the class folder {_printable(name)}: copy it there."
            )


def _folders(directory: pathlib.Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise errors.UsageError(f"cannot list {directory}: {error.strerror}.") from error


def _images(folder: pathlib.Path) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
    except OSError as error:
        raise errors.UsageError(f"cannot list {_printable(folder)}: {error.strerror}.") from error
    if not names:
        raise errors.UsageError(
            f"{_printable(folder)} is empty: copy the images of that class there, or remove it "
            "from every split."
        )
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            raise errors.UsageError(
                f"{_printable(folder / name)} is no image by its name ({', '.join(SUFFIXES)}): "
                "move it elsewhere."
            )
    return names


def _printable(path: str | pathlib.Path) -> str:
    """A path for a message: bytes that are no UTF-8, which could not be printed, are escaped."""
    return str(path).encode(errors="backslashreplace").decode()
