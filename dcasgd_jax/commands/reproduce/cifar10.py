"""CIFAR-10 in memory: loaded, identified, and fed to the simulator from the device."""

import zlib

import jax.numpy as jnp
import numpy as np

from dcasgd_jax import sim
from dcasgd_jax.commands import images
from dcasgd_jax.commands.images import cifar10
from dcasgd_jax.commands.reproduce import jobs, settings, training


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
        sample=examples,
        batches=lambda schedule, sampler: sim.Indexed(examples, sampler.rows(schedule)),
    )
