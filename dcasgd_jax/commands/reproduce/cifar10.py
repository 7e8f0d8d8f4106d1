"""CIFAR-10 in memory: loaded, identified, fed to the simulator and evaluated on the device."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import sim
from dcasgd_jax.commands import images
from dcasgd_jax.commands.images import augmentation, cifar10
from dcasgd_jax.commands.reproduce import jobs, settings, training

_BATCH_OF_EVALUATION = 1000
_BATCH_OF_EVALUATION_ON_CPU = 2500


class _Examples(NamedTuple):
    """Images in batches of one size, filled up with some whose label is -1."""

    images: jax.Array  # [num_batches, batch_size, height, width, channels]
    labels: jax.Array  # [num_batches, batch_size]
    size: int  # without those


def load(job: jobs.Job) -> cifar10.Cifar10:
    """All images."""
    return images.load_cifar10(job.data_dir, cache_dir=job.cache_dir)


def take(split: cifar10.LabelledImages, count: int | None) -> cifar10.LabelledImages:
    """The first images."""
    return cifar10.LabelledImages(*(array[:count] for array in split))


def checksum(data: cifar10.Cifar10) -> str:
    """Of all images and labels in use."""
    total = 0
    for split in data:
        for array in split:
            total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def make_feed(setting: settings.Setting, data: cifar10.Cifar10) -> training.Feed:
    """Rows that point into images on the device."""
    del setting  # the images have one size
    examples = {
        "images": jnp.asarray(data.train.images),
        "labels": jnp.asarray(data.train.labels),
    }
    return training.Feed(
        num_images=len(data.train.labels),
        batches=lambda schedule, sampler: sim.Indexed(examples, sampler.rows(schedule)),
    )


def problem_maker(
    setting: settings.Setting, data: cifar10.Cifar10, eval_batch_size: int | None = None
) -> Callable[[int], Any]:
    """A function of the seed that makes the `Problem` of the integrations, for `sim.simulate`.

    Problems of all seeds share their functions, and thus the compiled programs.

    Args:
      setting: Names the model and its dtype.
      data: What `evaluate` sees; it stays on the device.
      eval_batch_size: Images evaluated at once; None chooses.
    """
    # Only here, so that help and reports need no flax.
    from dcasgd_jax.integrations import nnx as dc_nnx

    dtype = jnp.dtype(setting.dtype)
    on_cpu = jax.default_backend() == "cpu"
    size = eval_batch_size or (_BATCH_OF_EVALUATION_ON_CPU if on_cpu else _BATCH_OF_EVALUATION)
    num_train = settings.num_loss_images(data)
    train = _in_batches(data.train.images[:num_train], data.train.labels[:num_train], size)
    test = _in_batches(data.test.images, data.test.labels, size)

    def loss(model, batch, key):
        pixels = augmentation.augment(key, batch["images"], dtype=dtype)
        logits = model(pixels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    def evaluate(model):
        of_batch = functools.partial(_sums, model, dtype)
        return {
            "train_loss": _means(of_batch, train, on_cpu)[0],
            **dict(zip(("test_loss", "test_error"), _means(of_batch, test, on_cpu), strict=True)),
        }

    return lambda seed: dc_nnx.split_model(_make_model(setting, dtype, seed), loss, evaluate)


def _make_model(setting: settings.Setting, dtype: Any, seed: int) -> Any:
    from dcasgd_jax.integrations import convnet, resnet

    rngs = resnet.nnx.Rngs(seed)
    if setting.model == "small":
        return convnet.ConvNet(dtype=dtype, rngs=rngs)
    if setting.model == "tiny":
        return resnet.CifarResNet(1, widths=(4, 8), dtype=dtype, rngs=rngs)
    return resnet.resnet20(dtype=dtype, rngs=rngs)


def _in_batches(pixels: np.ndarray, labels: np.ndarray, size: int) -> _Examples:
    count = len(labels)
    size = min(size, count)
    missing = -count % size
    pixels = np.concatenate([pixels, pixels[:missing]])
    labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
    batches = (len(labels) // size, size)
    return _Examples(
        images=jnp.asarray(pixels.reshape(*batches, *pixels.shape[1:])),
        labels=jnp.asarray(labels.reshape(batches)),
        size=count,
    )


def _sums(model: Any, dtype: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    """Total loss and number of errors of one batch; [2]."""
    logits = model(augmentation.normalise(pixels, dtype=dtype))
    there = labels >= 0
    safe = jnp.maximum(labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    wrong = logits.argmax(axis=1) != labels
    return jnp.stack([jnp.where(there, losses, 0).sum(), (wrong & there).sum()])


def _means(of_batch: Callable, examples: _Examples, on_cpu: bool) -> jax.Array:
    """Mean loss and share of errors; [2]."""
    if on_cpu:
        # Unrolled: on the CPU, XLA runs convolutions inside a loop far slower than outside.
        batches = zip(examples.images, examples.labels, strict=True)
        total = sum(of_batch(*batch) for batch in batches)
    else:
        of_pair = lambda pair: of_batch(*pair)
        total = jax.lax.map(of_pair, (examples.images, examples.labels)).sum(axis=0)
    return jnp.asarray(total) / examples.size
