"""Images to train on: CIFAR-10 in memory, ImageNet by row; needs the extra `images`.

    pip install "dcasgd-jax[images]"

`load_cifar10` and `open_imagenet` read local files, or fetch them with `huggingface_hub` and read
the Parquet files with `pyarrow`. The `datasets` library reads them by row too. It is not used: it
copies every file first, also what is read once and in order (ImageNet: 150 GB), a row of the copy
takes 0.12 to 0.16 ms where `ParquetImages` takes 0.013 to 0.018 (CIFAR-10 in random order, datasets
5, two cores, 2026-12-01), and the checks that name a bad file and row would remain.
"""

from dcasgd_jax.commands.images.augmentation import (
    CIFAR10_PIXELS,
    IMAGENET_PIXELS,
    PixelStatistics,
    augment,
    normalise,
)
from dcasgd_jax.commands.images.cifar10 import Cifar10, LabelledImages, load_cifar10
from dcasgd_jax.commands.images.folder import ImageFolder
from dcasgd_jax.commands.images.imagenet import ImageNet, open_imagenet
from dcasgd_jax.commands.images.loading import ImageBatch, ImageBatches
from dcasgd_jax.commands.images.parquet import ParquetImages
from dcasgd_jax.commands.images.sources import ImageSource

__all__ = [
    "CIFAR10_PIXELS",
    "IMAGENET_PIXELS",
    "Cifar10",
    "ImageBatch",
    "ImageBatches",
    "ImageFolder",
    "ImageNet",
    "ImageSource",
    "LabelledImages",
    "ParquetImages",
    "PixelStatistics",
    "augment",
    "load_cifar10",
    "normalise",
    "open_imagenet",
]
