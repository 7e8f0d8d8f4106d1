"""ImageNet, or images laid out like it, read by row; see `ImageBatches` for the pixels."""

import os
import pathlib
from typing import NamedTuple

from dcasgd_jax.commands import errors
from dcasgd_jax.commands.images import folder, hub, parquet, shards, sources

HUB_NAME = "ILSVRC/imagenet-1k"
NUM_CLASSES = 1000

_FOLDERS = ("data",)
_INSTEAD = (
    "Without the hub, pass as data_dir a folder with train/<class>/*.JPEG and "
    "val/<class>/*.JPEG, or one with train-00000-of-00294.parquet and so on and "
    "validation-00000-of-00014.parquet and so on (the files in data/ at "
    f"https://huggingface.co/datasets/{HUB_NAME})."
)


class ImageNet(NamedTuple):
    """The two splits that have labels."""

    train: sources.ImageSource
    validation: sources.ImageSource


def open_imagenet(
    data_dir: str | os.PathLike | None = None,
    *,
    num_classes: int = NUM_CLASSES,
    cache_dir: str | os.PathLike | None = None,
) -> ImageNet:
    """Finds the images and reads their labels; no image is read yet.

    Args:
      data_dir: A folder with `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, classes being
        numbered in sorted order; or with `train-*.parquet` and `validation-*.parquet`, columns
        `image` {bytes, path} and `label`. None downloads the latter, about 150 GB, into the hub's
        own cache; they are given only to those who accept the data set's conditions there.
      num_classes: Classes of the data set.
      cache_dir: Makes Parquet files fast to read in random order; see `ParquetImages`.

    Returns:
      Sources of encoded images.

    Raises:
      UsageError: If there are no files, or they are not what they should be; names the file, and
        the row if it is about one.
      MissingExtraError: If a package of the extra `images` is not installed.

    Example:
      >>> from dcasgd_jax.commands import images
      >>> data = images.open_imagenet("~/data/imagenet")  # doctest: +SKIP
      >>> len(data.train), data.train.num_classes  # doctest: +SKIP
      (1281167, 1000)
    """
    if data_dir is None:
        directory = hub.download(
            HUB_NAME, ["data/train-*.parquet", "data/validation-*.parquet"], _INSTEAD
        )
    else:
        directory = pathlib.Path(data_dir).expanduser()
    if (directory / "train").is_dir():
        return _open_folders(directory, num_classes)
    found = {name: shards.find_shards(directory, _FOLDERS, name) for name in ImageNet._fields}
    for name, paths in found.items():
        if not paths:
            raise errors.UsageError(f"{directory} has no ImageNet {name} files. {_INSTEAD}")
    cached_in = None if cache_dir is None else pathlib.Path(cache_dir).expanduser()
    return ImageNet(
        **{
            name: parquet.ParquetImages(
                paths, image_column="image", num_classes=num_classes, cache_dir=cached_in
            )
            for name, paths in found.items()
        }
    )


def _open_folders(directory: pathlib.Path, num_classes: int) -> ImageNet:
    train = folder.ImageFolder(directory / "train")
    if train.num_classes != num_classes:
        raise errors.UsageError(
            f"{directory / 'train'} has {train.num_classes} class folders, but {num_classes} "
            "classes are expected: complete it, or pass num_classes."
        )
    return ImageNet(train, folder.ImageFolder(directory / "val", classes=train.classes))
