"""What real workers train: problems, and the batches that each worker makes for itself."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import digits as digit_images
from dcasgd_jax import sim
from dcasgd_jax.commands import images
from dcasgd_jax.commands.images import cifar10
from dcasgd_jax.commands.train import network
from dcasgd_jax.typing import PyTree

_EVALUATED_AT_ONCE = 500


class Task(NamedTuple):
    """What `runtime.ray.train` takes; `problem.eval_fn` gives a `digits.Evaluation`."""

    problem: sim.Problem
    batches_fn: Callable[[int, int], PyTree]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which examples a gradient uses: every worker shuffles all of them for itself, each epoch.

    Args:
      num_examples: To draw from.
      batch_size: In [1, num_examples]; what does not fill a batch waits for the next epoch.
      seed: Integer ≥ 0.
    """

    num_examples: int
    batch_size: int
    seed: int

    def __call__(self, worker: int, number: int) -> np.ndarray:
        """Rows of gradient `number` of a worker, int32 [batch_size]."""
        epoch, batch = divmod(number, self.num_examples // self.batch_size)
        order = _order(self.num_examples, self.seed, worker, epoch)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]


@functools.lru_cache(maxsize=8)
def _order(num_examples: int, seed: int, worker: int, epoch: int) -> np.ndarray:
    generator = np.random.default_rng([seed, worker, epoch])
    return generator.permutation(num_examples).astype(np.int32)


def digits(*, batch_size: int, seed: int) -> Task:
    """The multilayer perceptron of `dcasgd-jax compare` on scikit-learn's digits."""
    rows = Rows(digit_images.NUM_TRAIN, batch_size, seed)
    return Task(digit_images.problem("mlp", seed), rows)


@dataclasses.dataclass(frozen=True)
class CifarBatches:
    """Batches of CIFAR-10, read by every worker's process from files that its machine has.

    Args:
      data_dir: As in `images.load_cifar10`.
      cache_dir: Likewise.
      rows: Of the training set.
    """

    data_dir: pathlib.Path | None
    cache_dir: pathlib.Path
    rows: Rows

    def __call__(self, worker: int, number: int) -> dict[str, np.ndarray]:
        """The batch of gradient `number` of a worker."""
        train = _load(self.data_dir, self.cache_dir).train
        rows = self.rows(worker, number)
        # What random crops follow from; once per image, so that all arrays are equally long.
        draw = np.random.default_rng([self.rows.seed, worker, number]).integers(2**31)
        draws = np.full(len(rows), draw, np.uint32)
        return {"images": train.images[rows], "labels": train.labels[rows], "draw": draws}


@functools.cache
def _load(data_dir: pathlib.Path | None, cache_dir: pathlib.Path) -> cifar10.Cifar10:
    return images.load_cifar10(data_dir, cache_dir=cache_dir)


def cifar(
    *,
    batch_size: int,
    seed: int,
    data_dir: pathlib.Path | None,
    cache_dir: pathlib.Path,
    subset: int | None,
) -> Task:
    """A small convolutional network without batch normalisation on CIFAR-10.

    Args:
      batch_size: Images per gradient.
      seed: Of parameters, order and crops.
      data_dir: As in `images.load_cifar10`; must be there on every machine with a worker.
      cache_dir: Likewise; decoded images are kept there.
      subset: Train on the first images only, and evaluate on as many.

    Raises:
      UsageError: If there is no CIFAR-10.
    """
    data = _load(data_dir, cache_dir)
    count = min(subset or len(data.train.labels), len(data.train.labels))

    def evaluate(params: PyTree) -> digit_images.Evaluation:
        return digit_images.Evaluation(
            train_loss=_mean_loss_and_error(params, data.train, count)[0],
            test_error=_mean_loss_and_error(params, data.test, subset)[1],
        )

    problem = sim.Problem(cifar_loss, network.init(seed), eval_fn=evaluate)
    return Task(problem, CifarBatches(data_dir, cache_dir, Rows(count, batch_size, seed)))


def cifar_loss(params: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross entropy of randomly cropped and mirrored images."""
    pixels = images.augment(jax.random.key(batch["draw"][0]), batch["images"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        network.logits(params, pixels), batch["labels"]
    )
    return losses.mean()


def _mean_loss_and_error(
    params: PyTree, split: cifar10.LabelledImages, count: int | None
) -> jax.Array:
    count = min(count or len(split.labels), len(split.labels))
    sums = jnp.zeros(2)
    for start in range(0, count, _EVALUATED_AT_ONCE):
        rows = slice(start, min(start + _EVALUATED_AT_ONCE, count))
        sums += _sums(params, split.images[rows], split.labels[rows])
    return sums / count


@jax.jit
def _sums(params: PyTree, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    logits = network.logits(params, images.normalise(pixels))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.stack([losses.sum(), jnp.sum(logits.argmax(axis=1) != labels)])
