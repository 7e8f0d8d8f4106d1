"""A small convolutional network that a CPU can carry, in Flax NNX.

Its convolutions are matrix products: XLA's own on the CPU are slower, and far slower inside a loop.
Inside, the batch is the last axis, so that a patch is copied row by row and never entry by entry.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["ConvNet"]


class _Convolution(nnx.Module):
    """A convolution with stride 2 whose filters are standardised, a scale, a bias, a rectifier."""

    def __init__(self, channels_in, channels_out, size, *, dtype, rngs):
        self.size, self.dtype = size, dtype
        shape = size * size * channels_in, channels_out
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) / math.sqrt(shape[0]))
        self.scale = nnx.Param(jnp.ones(channels_out))
        self.bias = nnx.Param(jnp.zeros(channels_out))

    def __call__(self, x):
        kernel = self.kernel[...]
        centred = kernel - kernel.mean(axis=0, keepdims=True)
        length = jnp.sqrt((centred**2).sum(axis=0, keepdims=True) + 1e-8)
        # He's variance, whatever the length of the filter: 2 / fan_in of each weight.
        filters = centred * (math.sqrt(2) * self.scale[...][None] / length)
        patches, side = _patches(x, self.size)
        flat = filters.astype(self.dtype).T @ patches
        flat += self.bias[...].astype(self.dtype)[:, None]
        return nnx.relu(flat).reshape(-1, side, side, x.shape[-1])


class ConvNet(nnx.Module):
    """Three convolutions with stride 2 and a linear layer, for images of 32 x 32 pixels.

    Filters of 4x4, 3x3 and 3x3 pixels; each is brought to mean 0 and a fixed length before it is
    used, and has a scale of its own (weight standardisation, Qiao et al. 2019): as fast to train as
    with batch normalisation, without a state. 68,698 parameters. The kernels are matrices
    [height * width * in, out], as `dcasgd_jax.curvatures.rotated` takes them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dcasgd_jax.integrations.convnet import ConvNet
      >>> from flax import nnx
      >>> model = ConvNet(rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (24, 48, 96),
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """Draws the weights.

        Args:
          num_classes: Length of the logits.
          widths: Filters of each convolution.
          dtype: Of the computation, such as `jnp.bfloat16`. Parameters and logits are float32.
          rngs: Random streams for the weights.
        """
        self.dtype = jnp.dtype(dtype or jnp.float32)
        self.convolutions = nnx.List([])
        channels = 3
        for size, width in zip((4, 3, 3), widths, strict=True):
            self.convolutions.append(
                _Convolution(channels, width, size, dtype=self.dtype, rngs=rngs)
            )
            channels = width
        # From zero: the first loss is that of chance, whatever the seed.
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(
            16 * channels, num_classes, kernel_init=zeros, dtype=self.dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]` of images `[batch, 32, 32, 3]`, float32."""
        if images.shape[1:] != (32, 32, 3):
            raise ValueError(f"images must be [batch, 32, 32, 3], got {list(images.shape)}.")
        x = images.astype(self.dtype).transpose(3, 1, 2, 0)
        for convolution in self.convolutions:
            x = convolution(x)
        return self.head(x.reshape(-1, x.shape[-1]).T).astype(jnp.float32)


def _patches(x: jax.Array, size: int) -> tuple[jax.Array, int]:
    """What a filter sees at every second place, `[height * width * in, places * batch]`.

    Args:
      x: `[in, side, side, batch]`, with an even side.
      size: Of the filter; half of a side of zeros surrounds x.

    Returns:
      The patches, and the side of the image that comes out.
    """
    side = x.shape[1] // 2
    around = (size - 1) // 2, (size - 2) // 2
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    last = 2 * side - 1
    shifted = [x[:, i : i + last : 2, j : j + last : 2] for i in range(size) for j in range(size)]
    stacked = jnp.concatenate(shifted)
    return stacked.reshape(stacked.shape[0], -1), side
