"""The residual networks of He et al. that the paper trains: CIFAR's ResNet-20 and ResNet-50.

Every convolution has no bias and is followed by batch normalisation (decay 0.9, ε = 1e-5). All
weights are drawn from He's normal distribution with fan-in, N(0, 2/fan_in), as "Delving Deep into
Rectifiers" has it; biases are 0, scales 1. Images are `[batch, height, width, channels]`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["BottleneckResNet", "CifarResNet", "resnet20", "resnet50"]


def _he_normal(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """Drawn in one dimension: in four XLA compiles random numbers several times longer."""
    size, fan_in = math.prod(shape), math.prod(shape[:-1])
    return jnp.reshape(jax.random.normal(key, (size,), dtype) * math.sqrt(2 / fan_in), shape)


class _ConvolutionAndNorm(nnx.Module):
    """A convolution and its batch normalisation."""

    def __init__(self, channels_in, channels_out, size, *, stride=1, dtype, rngs):
        self.convolution = nnx.Conv(
            channels_in,
            channels_out,
            (size, size),
            strides=stride,
            # As in Caffe and PyTorch: "SAME" would shift strided outputs against the shortcut's.
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(channels_out, momentum=0.9, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.convolution(x))


class _BasicBlock(nnx.Module):
    """Two 3x3 convolutions; the shortcut has no parameters (option A)."""

    def __init__(self, channels_in, channels_out, *, stride, dtype, rngs):
        layer = functools.partial(_ConvolutionAndNorm, size=3, dtype=dtype, rngs=rngs)
        self.stride = stride
        self.channels_added = channels_out - channels_in
        self.first = layer(channels_in, channels_out, stride=stride)
        self.second = layer(channels_out, channels_out)

    def __call__(self, x):
        shortcut = x[:, :: self.stride, :: self.stride]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.channels_added)))
        return nnx.relu(self.second(nnx.relu(self.first(x))) + shortcut)


class _BottleneckBlock(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions; a 1x1 shortcut where the shape changes (option B)."""

    def __init__(self, channels_in, channels, *, stride, dtype, rngs):
        layer = functools.partial(_ConvolutionAndNorm, dtype=dtype, rngs=rngs)
        channels_out = 4 * channels
        self.first = layer(channels_in, channels, 1)
        self.second = layer(channels, channels, 3, stride=stride)
        self.third = layer(channels, channels_out, 1)
        changes = stride > 1 or channels_in != channels_out
        self.shortcut = nnx.data(
            layer(channels_in, channels_out, 1, stride=stride) if changes else None
        )

    def __call__(self, x):
        y = self.third(nnx.relu(self.second(nnx.relu(self.first(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class CifarResNet(nnx.Module):
    """The residual network for small images of He et al. 2015, section 4.2, with 6n + 2 layers.

    A 3x3 convolution with 16 filters, three stages of n blocks with 16, 32 and 64 filters, of which
    the last two begin with stride 2, global average pooling, and a linear layer. Shortcuts are of
    option A: every second pixel, and zeros for the new channels (behind the others).

    Example:
      >>> import jax
      >>> from dcasgd_jax.integrations.resnet import CifarResNet
      >>> from flax import nnx
      >>> resnet110 = nnx.eval_shape(lambda: CifarResNet(18, rngs=nnx.Rngs(0)))  # no arrays
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(resnet110, nnx.Param)))
      1727962
    """

    def __init__(
        self,
        blocks_per_stage: int,
        *,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """Draws the weights.

        Args:
          blocks_per_stage: n ≥ 1; 3 is ResNet-20, 18 is ResNet-110.
          num_classes: Length of the logits.
          widths: Filters of each stage; other ones make smaller networks for tests.
          dtype: Of the computation, such as `jnp.bfloat16`. Parameters, statistics and logits are
            float32.
          rngs: Random streams for the weights.
        """
        self.dtype = dtype
        self.stem = _ConvolutionAndNorm(3, widths[0], 3, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([])
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks_per_stage):
                stride = 2 if stage and not block else 1
                self.blocks.append(
                    _BasicBlock(channels, width, stride=stride, dtype=dtype, rngs=rngs)
                )
                channels = width
        self.head = _head(channels, num_classes, dtype, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]`, float32."""
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)


class BottleneckResNet(nnx.Module):
    """The residual network for ImageNet of He et al. 2015, with bottleneck blocks.

    A 7x7 convolution with 64 filters and stride 2, a 3x3 maximum with stride 2, stages with 64,
    128, 256 and 512 (times 4) filters, global average pooling, and a linear layer. Shortcuts are
    of option B. Stride 2 is in the 3x3 convolution of a block ("v1.5", as in PyTorch and in
    Goyal et al. 2017), where the paper has it in the first 1x1; the parameters are the same.

    Example:
      >>> import jax
      >>> from dcasgd_jax.integrations.resnet import BottleneckResNet
      >>> from flax import nnx
      >>> resnet101 = nnx.eval_shape(lambda: BottleneckResNet((3, 4, 23, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(resnet101, nnx.Param)))
      44549160
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        num_classes: int = 1000,
        width: int = 64,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """Draws the weights.

        Args:
          blocks: Number of blocks in each stage; (3, 4, 6, 3) is ResNet-50.
          num_classes: Length of the logits.
          width: Filters of the first convolution; smaller ones make networks for tests.
          dtype: Of the computation, such as `jnp.bfloat16`. Parameters, statistics and logits are
            float32.
          rngs: Random streams for the weights.
        """
        self.dtype = dtype
        self.stem = _ConvolutionAndNorm(3, width, 7, stride=2, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([])
        channels = width
        for stage, num_blocks in enumerate(blocks):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                self.blocks.append(
                    _BottleneckBlock(
                        channels, width * 2**stage, stride=stride, dtype=dtype, rngs=rngs
                    )
                )
                channels = 4 * width * 2**stage
        self.head = _head(channels, num_classes, dtype, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]`, float32."""
        x = nnx.relu(self.stem(images))
        # Nothing is negative after the rectifier, so zeros around it never are the maximum.
        x = nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), strides=(2, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)


def resnet20(
    *, num_classes: int = 10, dtype: jnp.dtype | None = None, rngs: nnx.Rngs
) -> CifarResNet:
    """ResNet-20 for CIFAR-10: 269,722 parameters.

    Args:
      num_classes: Length of the logits.
      dtype: Of the computation, such as `jnp.bfloat16`; `None` is float32.
      rngs: Random streams for the weights.

    Returns:
      The module; `model(images)` gives the logits of images `[batch, 32, 32, 3]`.

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2.

    Example:
      >>> import jax
      >>> from dcasgd_jax.integrations.resnet import resnet20
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: resnet20(rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      269722
    """
    return CifarResNet(3, num_classes=num_classes, dtype=dtype, rngs=rngs)


def resnet50(
    *, num_classes: int = 1000, dtype: jnp.dtype | None = None, rngs: nnx.Rngs
) -> BottleneckResNet:
    """ResNet-50 for ImageNet: 25,557,032 parameters; stride 2 in the 3x3 convolutions ("v1.5").

    Args:
      num_classes: Length of the logits.
      dtype: Of the computation, such as `jnp.bfloat16`; `None` is float32.
      rngs: Random streams for the weights.

    Returns:
      The module; `model(images)` gives the logits of images `[batch, 224, 224, 3]`.

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.1.

    Example:
      >>> import jax
      >>> from dcasgd_jax.integrations.resnet import resnet50
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: resnet50(rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      25557032
    """
    return BottleneckResNet((3, 4, 6, 3), num_classes=num_classes, dtype=dtype, rngs=rngs)


def _head(channels: int, num_classes: int, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(channels, num_classes, dtype=dtype, kernel_init=_he_normal, rngs=rngs)
