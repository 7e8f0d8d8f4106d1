"""Data sets that come with an installed package, with one fixed split each."""

import functools
from typing import NamedTuple

import numpy as np

from dcasgd_jax.experiments import errors

NUM_TRAIN_DIGITS = 1347
NUM_TEST_DIGITS = 450


class Split(NamedTuple):
    """Images and their classes."""

    images: np.ndarray  # [num_images, num_pixels], float32 in [0, 1]
    labels: np.ndarray  # [num_images], int32


class Dataset(NamedTuple):
    """A data set split once and for all: no seed of an experiment moves an image."""

    train: Split
    test: Split


@functools.cache
def load_digits() -> Dataset:
    """Scikit-learn's digits: 1797 real 8x8 images, 1347 to train on and 450 to test on.

    Pixels are divided by 16, so they lie in [0, 1]; nothing else is done to them. The split is
    stratified by class and fixed.

    Raises:
      MissingExtraError: If scikit-learn is not installed.
    """
    errors.require_packages("sklearn")
    from sklearn import datasets, model_selection

    images, labels = datasets.load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = model_selection.train_test_split(
        images, labels, test_size=NUM_TEST_DIGITS, stratify=labels, random_state=0
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


def _split(images, labels) -> Split:
    return Split((images / 16).astype(np.float32), labels.astype(np.int32))
