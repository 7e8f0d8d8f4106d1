"""What a source of encoded images gives, and the checks that every source makes."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dcasgd_jax.commands import errors


class ImageSource(Protocol):
    """Encoded images by row: nothing is decoded, and little is in memory, until a row is read."""

    labels: np.ndarray  # [num_images], int32 in [0, num_classes)
    num_classes: int

    def __len__(self) -> int:
        """Images in the source."""
        ...

    def read(self, row: int) -> bytes | memoryview:
        """The encoded image, as stored; threads may call this at the same time."""
        ...

    def where(self, row: int) -> str:
        """The file, and the row in it, for a message."""
        ...


def check_labels(labels: np.ndarray, num_classes: int, where: Callable[[int], str]) -> np.ndarray:
    """The labels as int32; raises UsageError, naming the first that is no class."""
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise errors.UsageError(
            f"{where(int(bad[0]))}: label {labels[bad[0]]} is not one of the {num_classes} "
            f"classes 0 to {num_classes - 1}: the file is corrupt or of another data set."
        )
    return labels.astype(np.int32)
