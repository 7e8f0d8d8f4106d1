"""Scikit-learn's digits, with one fixed split, and two small models of them to train."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import extras
from dcasgd_jax.typing import PyTree

NUM_TRAIN = 1347
NUM_TEST = 450

MODELS = {
    "softmax": (64, 10),
    "mlp": (64, 64, 10),
}
"""Layer widths; softmax regression is a network without a hidden layer."""

CHANCE_LOSS = math.log(10)
"""Cross entropy of giving each of the ten digits the same probability, having learnt nothing."""


class Split(NamedTuple):
    """Images and their classes."""

    images: np.ndarray  # [num_images, num_pixels], float32 in [0, 1]
    labels: np.ndarray  # [num_images], int32


class Dataset(NamedTuple):
    """A data set split once and for all: no seed of an experiment moves an image."""

    train: Split
    test: Split


@functools.cache
def load() -> Dataset:
    """Scikit-learn's digits: 1797 real 8x8 images, 1347 to train on and 450 to test on.

    Pixels are divided by 16, so they lie in [0, 1]; nothing else is done to them. The split is
    stratified by class and fixed.

    Raises:
      MissingExtraError: If scikit-learn is not installed.
    """
    extras.require_packages("sklearn")
    from sklearn import datasets, model_selection

    images, labels = datasets.load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = model_selection.train_test_split(
        images, labels, test_size=NUM_TEST, stratify=labels, random_state=0
    )
    return Dataset(train=_split(train_images, train_labels), test=_split(test_images, test_labels))


def batch_rows(num_images: int, batch_size: int, num_batches: int, seed: int) -> np.ndarray:
    """Which images make each batch: a fresh permutation per epoch, its remainder left out.

    Args:
      num_images: Images to draw from.
      batch_size: In [1, num_images].
      num_batches: How many batches, over as many epochs as that takes.
      seed: Integer >= 0.

    Returns:
      Row numbers, int32 [num_batches, batch_size].
    """
    generator = np.random.default_rng([seed, 1])
    per_epoch = num_images // batch_size
    epochs = -(-num_batches // per_epoch)
    orders = [generator.permutation(num_images)[: per_epoch * batch_size] for _ in range(epochs)]
    rows = np.concatenate(orders).reshape(-1, batch_size)
    return rows[:num_batches].astype(np.int32)


class Evaluation(NamedTuple):
    """How good some parameters are; scalars."""

    train_loss: jax.Array  # mean cross entropy over all training images
    test_error: jax.Array  # fraction of test images


class Task(NamedTuple):
    """What an experiment needs of a model on a data set.

    The functions are the same objects at every call of `task`, so compiled programs are
    found again.
    """

    init: Callable[[int], PyTree]  # seed -> params
    loss_fn: Callable[[PyTree, jax.Array], jax.Array]  # params, rows of the training set
    evaluate: Callable[[PyTree], Evaluation]


@functools.cache
def task(model: str) -> Task:
    """Classifies scikit-learn's digits with `model`, one of `MODELS`.

    `softmax` is linear; `mlp` has one hidden layer of 64 tanh units. Weights start normal with
    variance 1/fan-in, biases at zero. The loss is the mean cross entropy, without weight decay.
    """
    widths = MODELS[model]
    data = jax.tree.map(jnp.asarray, load())

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


def _split(images, labels) -> Split:
    return Split((images / 16).astype(np.float32), labels.astype(np.int32))
