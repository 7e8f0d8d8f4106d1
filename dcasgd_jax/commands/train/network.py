"""A small convolutional network without batch normalisation, whose statistics a push has not."""

import jax
import jax.numpy as jnp

from dcasgd_jax.typing import PyTree

_CHANNELS = (3, 32, 64, 64)
_CLASSES = 10


def init(seed: int) -> PyTree:
    """Parameters: normal with variance 2/fan-in, biases zero, the last layer 1/fan-in."""
    *keys, last = jax.random.split(jax.random.key(seed), len(_CHANNELS))
    layers = []
    for key, fan_in, channels in zip(keys, _CHANNELS[:-1], _CHANNELS[1:], strict=True):
        kernel = jax.random.normal(key, (3, 3, fan_in, channels)) * jnp.sqrt(2 / (9 * fan_in))
        layers.append({"kernel": kernel, "biases": jnp.zeros(channels)})
    size = _CHANNELS[-1]
    head = jax.random.normal(last, (size, _CLASSES)) / jnp.sqrt(size)
    return {"layers": layers, "head": {"weights": head, "biases": jnp.zeros(_CLASSES)}}


def logits(params: PyTree, pixels: jax.Array) -> jax.Array:
    """Scores of the classes, [batch, 10]; each layer halves the sides, then all places' mean."""
    activations = pixels
    for layer in params["layers"]:
        convolved = jax.lax.conv_general_dilated(
            activations, layer["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        activations = jax.nn.relu(convolved + layer["biases"].reshape(1, 1, 1, -1))
    mean = activations.mean(axis=(1, 2))
    return mean @ params["head"]["weights"] + params["head"]["biases"].reshape(1, -1)
