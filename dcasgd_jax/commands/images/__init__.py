"""Images to train on: CIFAR-10 in memory, ImageNet by row; needs the extra `images`.

    pip install "dcasgd-jax[images]"

`load_cifar10` and `open_imagenet` read local files, or fetch them with `huggingface_hub` and read
the Parquet files with `pyarrow`. The heavier `datasets` library is not used: its streams have no
access by row, which the per-epoch shards of the workers need (`sim.sampling.ShardedEpochs`).
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
