"""Random crops, flips and normalisation, on the device and inside compiled programs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class PixelStatistics(NamedTuple):
    """Of a training set's pixels, per channel, in units of its uint8 values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10_PIXELS = PixelStatistics(mean=(125.31, 122.95, 113.87), std=(62.99, 62.09, 66.70))
IMAGENET_PIXELS = PixelStatistics(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@functools.partial(jax.jit, static_argnames=("statistics", "dtype"))
def normalise(
    images: jax.Array,
    statistics: PixelStatistics = CIFAR10_PIXELS,
    *,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Brings the channels of the training set to mean 0 and standard deviation 1.

    He et al. subtract the mean of each pixel position instead, and do not divide; per-channel
    numbers, which crops and flips leave valid, are what reproductions of ResNet have used since.

    Args:
      images: uint8 [..., height, width, channels].
      statistics: Of the training set.
      dtype: Of the result; the arithmetic is float32.

    Returns:
      An array of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax.commands import images
      >>> float(images.normalise(jnp.full((1, 2, 2, 3), 125, jnp.uint8))[0, 0, 0, 0])
      -0.0049...
    """
    _check_images(images)
    mean, std = (jnp.array(numbers, jnp.float32) for numbers in statistics)
    shape = (1,) * (images.ndim - 1) + (-1,)
    return ((images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)).astype(dtype)


@functools.partial(jax.jit, static_argnames=("statistics", "padding", "dtype"))
def augment(
    key: jax.Array,
    images: jax.Array,
    statistics: PixelStatistics = CIFAR10_PIXELS,
    *,
    padding: int = 4,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """A random crop of each padded image, mirrored half of the time, then normalised.

    As in He et al.: `padding` pixels on each side, a crop of the original size at one of the
    (2 padding + 1)² places, a horizontal flip with probability 1/2. The padding has the mean
    colour, that is 0 after normalisation. Everything follows from the key; in a simulation, pass
    the key that `loss_fn` gets for its event.

    Args:
      key: Consumed.
      images: uint8 [batch, height, width, channels].
      statistics: See `normalise`.
      padding: Pixels ≥ 0.
      dtype: Of the result.

    Returns:
      An array of the same shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dcasgd_jax.commands import images
      >>> batch = jnp.zeros((8, 32, 32, 3), jnp.uint8)
      >>> images.augment(jax.random.key(0), batch).shape
      (8, 32, 32, 3)
    """
    _check_images(images)
    if images.ndim != 4:
        raise ValueError(f"images must be [batch, height, width, channels], got {images.shape}.")
    batch, height, width, _ = images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (2, batch, 1), 0, 2 * padding + 1) - padding
    flipped = jax.random.bernoulli(flip_key, shape=(batch, 1))
    across = jnp.arange(width)[None, :]
    rows = offsets[0] + jnp.arange(height)[None, :]
    columns = offsets[1] + jnp.where(flipped, width - 1 - across, across)
    # One gather of single pixels: XLA fuses it with the arithmetic, so that it is the fastest of
    # eight ways tried on CPU (slices per image, one-hot products, shifts), also inside loops.
    crops = images[
        jnp.arange(batch)[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return jnp.where(inside, normalise(crops, statistics, dtype=dtype), 0)


def _check_images(images: jax.Array) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8 as they are read, got {images.dtype}: normalise them once only."
        )
