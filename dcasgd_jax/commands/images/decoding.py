"""From the bytes of an image file to pixels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dcasgd_jax.commands import errors
from dcasgd_jax.commands.images import sources

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG")
"""What the data sets hold; Pillow's many other decoders never see the bytes."""


@contextlib.contextmanager
def opened(source: sources.ImageSource, row: int) -> Iterator[Image.Image]:
    """The image of a row, not decoded yet; what goes wrong in the block names the row.

    Raises:
      UsageError: If the bytes cannot be read, or are no whole image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source.read(row)), formats=FORMATS) as image:
            yield image
    except (errors.UsageError, MemoryError):
        raise
    except Exception as error:  # decoders fail in many ways on bytes that are no image
        raise errors.UsageError(
            f"{source.where(row)}: no whole JPEG or PNG image can be read "
            f"({type(error).__name__}): replace the file with a fresh copy."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Red, green and blue, also for grey, CMYK and palette images; decodes the image."""
    return image if image.mode == "RGB" else image.convert("RGB")
