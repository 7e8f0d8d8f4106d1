"""Scikit-learn's digits, with one fixed split, and two small models of them to train."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import extras, sim
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree

__all__ = [
    "CHANCE_LOSS",
    "MODELS",
    "NUM_TEST",
    "NUM_TRAIN",
    "Dataset",
    "Evaluation",
    "Split",
    "batch_rows",
    "load",
    "logits",
    "problem",
]

NUM_TRAIN = 1347
"""Images to train on."""

NUM_TEST = 450
"""Images to test on."""

MODELS = {
    "softmax": (64, 10),
    "mlp": (64, 64, 10),
}
"""Layer widths; softmax regression is a network without a hidden layer."""

CHANCE_LOSS = math.log(10)
"""Cross entropy of giving each of the ten digits the same probability, having learnt nothing."""


@document_fields
class Split(NamedTuple):
    """Images and their classes.

    Attributes:
      images: [num_images, num_pixels], float32 in [0, 1].
      labels: [num_images], int32.
    """

    images: np.ndarray
    labels: np.ndarray


@document_fields
class Dataset(NamedTuple):
    """A data set split once and for all: no seed of an experiment moves an image.

    Attributes:
      train: 1347 images.
      test: 450 images.
    """

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


@document_fields
class Evaluation(NamedTuple):
    """How good some parameters are; scalars.

    Attributes:
      train_loss: Mean cross entropy over all training images.
      test_error: Fraction of test images.
    """

    train_loss: jax.Array
    test_error: jax.Array


def problem(model: str = "mlp", seed: int = 0) -> sim.Problem:
    """Classifying the digits, as a problem for `sim.simulate`.

    `softmax` is linear; `mlp` has one hidden layer of 64 tanh units. Weights start normal with
    variance 1/fan-in, biases at zero. The loss is the mean cross entropy, without weight decay.

    Args:
      model: "softmax" or "mlp".
      seed: Of the initial parameters, >= 0.

    Returns:
      A `sim.Problem`: `loss_fn(params, rows)`, where `rows` are numbers of training images, int32
      `[batch_size]`, as `batch_rows` makes them; `eval_fn(params)` gives an `Evaluation`. The
      functions are the same objects for all seeds, so compiled programs are found again.

    Raises:
      ValueError: For another model.
      MissingExtraError: If scikit-learn is not installed.

    Example:
      >>> from dcasgd_jax import digits, sim
      >>> import optax
      >>> problem = digits.problem("softmax", seed=0)
      >>> schedule = sim.make_schedule(sim.GammaTime(), 4, num_updates=200, seed=0)
      >>> rows = digits.batch_rows(digits.NUM_TRAIN, 16, len(schedule), seed=0)
      >>> result = sim.simulate(problem, optax.sgd(0.2), schedule, rows)
      >>> bool(result.evaluations.values.test_error[-1] < 0.2)
      True
    """
    if model not in MODELS:
        raise ValueError(f"There is no model {model!r} of the digits: choose of {list(MODELS)}.")
    loss_fn, evaluate = _functions(model)
    return sim.Problem(loss_fn, _init(MODELS[model], seed), eval_fn=evaluate)


def logits(params: PyTree, images: jax.Array) -> jax.Array:
    """What a model of the digits says of images, before the softmax.

    Args:
      params: Of `problem`, of any model.
      images: Float32 `[images, 64]`, as in `load()`.

    Returns:
      Float32 `[images, 10]`.

    Example:
      >>> from dcasgd_jax import digits
      >>> digits.logits(digits.problem("mlp").params, digits.load().test.images).shape
      (450, 10)
    """
    *hidden, last = params
    activations = images
    for layer in hidden:
        activations = jnp.tanh(_affine(layer, activations))
    return _affine(last, activations)


@functools.cache
def _functions(model: str) -> tuple[Callable[..., jax.Array], Callable[[PyTree], Evaluation]]:
    """The loss and the evaluation; always the same objects."""
    data = jax.tree.map(jnp.asarray, load())

    def loss_fn(params: PyTree, rows: jax.Array) -> jax.Array:
        return _cross_entropy(params, data.train.images[rows], data.train.labels[rows])

    @jax.jit
    def evaluate(params: PyTree) -> Evaluation:
        predictions = jnp.argmax(logits(params, data.test.images), axis=1)
        return Evaluation(
            train_loss=_cross_entropy(params, data.train.images, data.train.labels),
            test_error=jnp.mean(predictions != data.test.labels),
        )

    return loss_fn, evaluate


def _init(widths: tuple[int, ...], seed: int) -> PyTree:
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return [
        {
            "weights": jax.random.normal(key, (fan_in, fan_out)) / jnp.sqrt(fan_in),
            "biases": jnp.zeros(fan_out),
        }
        for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def _affine(layer: PyTree, activations: jax.Array) -> jax.Array:
    return activations @ layer["weights"] + layer["biases"][None, :]


def _cross_entropy(params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
    return jnp.mean(losses)


def _split(images, labels) -> Split:
    return Split((images / 16).astype(np.float32), labels.astype(np.int32))
