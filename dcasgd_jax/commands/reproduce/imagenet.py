"""ImageNet streamed from the disk: to train on, and to evaluate inside the compiled program."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import sim
from dcasgd_jax.commands import images
from dcasgd_jax.commands.images import augmentation, loading, sources
from dcasgd_jax.commands.reproduce import jobs, settings, training

_BATCH_OF_EVALUATION = 250


class Split(NamedTuple):
    """Some of the images of a source."""

    source: sources.ImageSource
    rows: np.ndarray  # [num_images], in the source

    @property
    def labels(self) -> np.ndarray:
        """Classes; [num_images]."""
        return self.source.labels[self.rows]


class Data(NamedTuple):
    """What is trained and tested on; nothing is decoded until it is needed."""

    train: Split
    test: Split  # ImageNet's validation images


def load(job: jobs.Job) -> Data:
    """All images, in an order that does not sort them by class."""
    found = images.open_imagenet(
        job.data_dir, num_classes=job.setting.num_classes or 1000, cache_dir=job.cache_dir
    )
    # Files lie sorted by class, so that the first images would be of a few classes.
    order = lambda source: np.random.default_rng(0).permutation(len(source))
    return Data(*(Split(source, order(source)) for source in found))


def take(split: Split, count: int | None) -> Split:
    """The first images in the order of `load`."""
    return split._replace(rows=split.rows[:count])


def checksum(data: Data) -> str:
    """Of the places and labels of all images in use: the pixels are too many to read."""
    total = 0
    for split in data:
        for array in (split.rows.astype(np.int64), split.labels):
            total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def make_feed(setting: settings.Setting, data: Data) -> training.Feed:
    """Batches that threads decode ahead of need; one at a time is on the device."""
    size, (source, rows) = _size(setting), data.train

    def batches(schedule: sim.Schedule, sampler: sim.ShardedEpochs) -> images.ImageBatches:
        own = schedule.batch == np.arange(len(schedule))
        shuffled = rows[sampler.rows(schedule)[own]]
        return images.ImageBatches(source, shuffled, training=True, seed=sampler.seed, size=size)

    # A scan would hold the batches of thousands of events at once.
    return training.Feed(len(rows), batches, sim.HostEngine())


def problem_maker(
    setting: settings.Setting, data: Data, eval_batch_size: int | None = None
) -> Callable[[int], Any]:
    """As `cifar10.problem_maker`, but what is evaluated is read from the disk every time."""
    # Only here, so that help and reports need no flax.
    from dcasgd_jax.integrations import nnx as dc_nnx

    dtype = jnp.dtype(setting.dtype)
    size = eval_batch_size or _BATCH_OF_EVALUATION
    seen = take(data.train, settings.num_loss_images(data))
    train, test = (_Stream.of(split, size, _size(setting)) for split in (seen, data.test))

    def loss(model, batch, key):
        del key  # crops and flips are the loader's
        logits = model(_normalise(batch.images, dtype))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    def evaluate(model):
        of_batch = functools.partial(_sums, model, dtype)
        names = "test_loss", "test_error", "test_top5_error"
        return {
            "train_loss": train.means(of_batch)[0],
            **dict(zip(names, test.means(of_batch), strict=True)),
        }

    return lambda seed: dc_nnx.split_model(make_model(setting, seed), loss, evaluate)


def make_model(setting: settings.Setting, seed: int) -> Any:
    """ResNet-50, or its small relative."""
    from dcasgd_jax.integrations import resnet

    options: dict[str, Any] = {
        "num_classes": setting.num_classes,
        "dtype": jnp.dtype(setting.dtype),
        "rngs": resnet.nnx.Rngs(seed),
    }
    if setting.model == "tiny":
        return resnet.BottleneckResNet((1, 1), width=4, **options)
    return resnet.resnet50(**options)


def _size(setting: settings.Setting) -> int:
    return setting.image_size or 224


def _normalise(pixels: Any, dtype: Any) -> jax.Array:
    return augmentation.normalise(pixels, augmentation.IMAGENET_PIXELS, dtype=dtype)


def _sums(model: Any, dtype: Any, batch: loading.ImageBatch, there: jax.Array) -> jax.Array:
    """Total loss, errors and top-5 errors of the images that are there; [3]."""
    logits = model(_normalise(batch.images, dtype))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch.labels[:, None]
    wrong = ~best[:, 0], ~best.any(axis=1)
    return jnp.stack([jnp.where(there, values, 0).sum() for values in (losses, *wrong)])


@dataclasses.dataclass(eq=False)
class _Stream:
    """Batches that a compiled program asks for by number; asked in order, they are decoded ahead.

    Args:
      batches: All of one size, the last filled up.
      num_images: Without what fills up.
    """

    batches: images.ImageBatches
    num_images: int
    _next: int = 0
    _given: Iterator[images.ImageBatch] = dataclasses.field(default_factory=lambda: iter(()))

    @classmethod
    def of(cls, split: Split, batch_size: int, image_size: int) -> "_Stream":
        """The central crops of a split."""
        count = len(split.rows)
        batch_size = min(batch_size, count)
        # In the order of the files, which reads Parquet faster.
        rows = np.resize(np.sort(split.rows), (math.ceil(count / batch_size), batch_size))
        return cls(images.ImageBatches(split.source, rows, training=False, size=image_size), count)

    def means(self, of_batch: Callable[..., jax.Array]) -> jax.Array:
        """Of the sums that `of_batch` makes over images; traced."""
        num_batches, size = self.batches.rows.shape
        side = self.batches.size
        shapes = images.ImageBatch(
            images=jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),  # type: ignore[arg-type]
            labels=jax.ShapeDtypeStruct((size,), jnp.int32),  # type: ignore[arg-type]
        )

        def body(total, number):
            batch = jax.pure_callback(self._read, shapes, number)
            there = number * size + jnp.arange(size) < self.num_images
            return total + of_batch(batch, there), None

        # A sum of one batch has the shape of the total.
        zeros = jnp.zeros(jax.eval_shape(lambda: body(0.0, jnp.int32(0))[0]).shape)
        return jax.lax.scan(body, zeros, jnp.arange(num_batches))[0] / self.num_images

    def _read(self, number: Any) -> images.ImageBatch:
        number = int(number)
        if number != self._next or not number:
            self._given = iter(self.batches.starting_at(number))
        self._next = number + 1
        return next(self._given)
