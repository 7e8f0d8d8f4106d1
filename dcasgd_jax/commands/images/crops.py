"""Which part of a large image a network sees, at which size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dcasgd_jax.commands.images import decoding

if TYPE_CHECKING:
    from PIL import Image

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
SHORT_SIDE = 256 / 224
"""Of an evaluated image, in units of its crop."""


def evaluation_crop(image: Image.Image, size: int) -> np.ndarray:
    """The central square of the image with its short side brought to `size` * 256 / 224.

    Returns:
      uint8 [size, size, 3].
    """
    from PIL import Image

    short = round(size * SHORT_SIDE)
    scale = short / min(image.size)
    width, height = (max(short, int(side * scale)) for side in image.size)
    resized = decoding.to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def training_crop(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """A random part of the image of random shape, brought to `size`, mirrored half of the time.

    Szegedy et al.'s: 8 to 100 % of the area, an aspect ratio between 3/4 and 4/3. A JPEG much
    larger than needed is decoded at a fraction of its size, which is several times faster.

    Returns:
      uint8 [size, size, 3].
    """
    from PIL import Image

    box = np.array(_random_box(*image.size, generator), float)
    flipped = generator.random() < 0.5
    full = np.array(image.size)
    fraction = size / min(box[2] - box[0], box[3] - box[1])
    # Only a request: the decoder stays at or above this size, and can do only 1, 1/2, 1/4, 1/8.
    image.draft("RGB", (math.ceil(full[0] * fraction), math.ceil(full[1] * fraction)))
    box *= np.tile(np.array(image.size) / full, 2)
    crop = decoding.to_rgb(image).resize(
        (size, size), Image.Resampling.BILINEAR, box=(box[0], box[1], box[2], box[3])
    )
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if flipped else pixels


def _random_box(width: int, height: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Left, top, right and bottom of a part of the image."""
    for _ in range(10):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(generator.integers(width - box_width + 1))
            top = int(generator.integers(height - box_height + 1))
            return left, top, left + box_width, top + box_height
    # A long, thin image: the central part of it with the nearest aspect ratio allowed.
    box_width = min(width, round(height * ASPECT[1]))
    box_height = min(height, round(width / ASPECT[0]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
