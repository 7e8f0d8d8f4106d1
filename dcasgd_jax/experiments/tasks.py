"""Tasks: a model on a data set, as the functions that the simulator and the reports call."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax.experiments import datasets
from dcasgd_jax.typing import PyTree

MODELS = {
    "softmax": (64, 10),
    "mlp": (64, 64, 10),
}
"""Layer widths; softmax regression is a network without a hidden layer."""

CHANCE_LOSS = math.log(10)
"""Cross entropy of giving each of the ten digits the same probability: nothing was learnt."""


class Evaluation(NamedTuple):
    """How good some parameters are; scalars."""

    train_loss: jax.Array  # mean cross entropy over all training images
    test_error: jax.Array  # fraction of test images


class Task(NamedTuple):
    """What an experiment needs of a model on a data set.

    The functions are the same objects at every call of `digits_task`, so compiled programs are
    found again.
    """

    init: Callable[[int], PyTree]  # seed -> params
    loss_fn: Callable[[PyTree, jax.Array], jax.Array]  # params, rows of the training set
    evaluate: Callable[[PyTree], Evaluation]


@functools.cache
def digits_task(model: str) -> Task:
    """Classifies scikit-learn's digits with `model`, one of `MODELS`.

    `softmax` is linear; `mlp` has one hidden layer of 64 tanh units. Weights start normal with
    variance 1/fan-in, biases at zero. The loss is the mean cross entropy, without weight decay.
    """
    widths = MODELS[model]
    data = jax.tree.map(jnp.asarray, datasets.load_digits())

    def loss_fn(params: PyTree, rows: jax.Array) -> jax.Array:
        return _cross_entropy(params, data.train.images[rows], data.train.labels[rows])

    @jax.jit
    def evaluate(params: PyTree) -> Evaluation:
        predictions = jnp.argmax(_logits(params, data.test.images), axis=1)
        return Evaluation(
            train_loss=_cross_entropy(params, data.train.images, data.train.labels),
            test_error=jnp.mean(predictions != data.test.labels),
        )

    return Task(init=lambda seed: _init(widths, seed), loss_fn=loss_fn, evaluate=evaluate)


def _init(widths: tuple[int, ...], seed: int) -> PyTree:
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return [
        {
            "weights": jax.random.normal(key, (fan_in, fan_out)) / jnp.sqrt(fan_in),
            "biases": jnp.zeros(fan_out),
        }
        for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def _logits(params: PyTree, images: jax.Array) -> jax.Array:
    *hidden, last = params
    activations = images
    for layer in hidden:
        activations = jnp.tanh(_affine(layer, activations))
    return _affine(last, activations)


def _affine(layer: PyTree, activations: jax.Array) -> jax.Array:
    return activations @ layer["weights"] + layer["biases"][None, :]


def _cross_entropy(params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, images), labels)
    return jnp.mean(losses)
