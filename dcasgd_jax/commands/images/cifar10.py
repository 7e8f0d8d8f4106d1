"""CIFAR-10, whole in memory: 60,000 colour images of 32 x 32 pixels in ten classes."""

import contextlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dcasgd_jax import archives, extras
from dcasgd_jax.commands import errors
from dcasgd_jax.commands.images import (
    archive,
    cache,
    decoding,
    hub,
    parquet,
    shards,
    sources,
)

HUB_NAME = "uoft-cs/cifar10"
NUM_CLASSES = 10
SIZE = 32

_FOLDERS = ("plain_text", "data")
_INSTEAD = (
    "Without the hub, put train-00000-of-00001.parquet and test-00000-of-00001.parquet (the files "
    f"in plain_text/ at https://huggingface.co/datasets/{HUB_NAME}), or {archive.NAME} (from "
    "https://www.cs.toronto.edu/~kriz/cifar.html), into a folder and pass it as data_dir."
)


class LabelledImages(NamedTuple):
    """Images and their classes, NumPy arrays."""

    images: np.ndarray  # [num_images, 32, 32, 3], uint8
    labels: np.ndarray  # [num_images], int32 in [0, 10)


class Cifar10(NamedTuple):
    """The two splits; 50,000 and 10,000 images unless the files hold a subset."""

    train: LabelledImages
    test: LabelledImages


def load_cifar10(
    data_dir: str | os.PathLike | None = None,
    *,
    cache_dir: str | os.PathLike | None = None,
) -> Cifar10:
    """Reads CIFAR-10 from local files, or from the Hugging Face hub.

    Pixels come as they are stored; see `augment` and `normalise` for what training needs.
    Decoding the 60,000 JPEG or PNG files of the Parquet layout takes some seconds of one core;
    more threads do not help, since at this size most of it is Python.

    Args:
      data_dir: A folder with `cifar-10-binary.tar.gz`, which is preferred and must have the
        published checksum, or `train-*.parquet` and `test-*.parquet` with columns `img` {bytes,
        path} and `label`. None downloads the latter into the hub's own cache.
      cache_dir: If given, decoded images are kept there and found again until their files change.

    Returns:
      Train and test images, uint8 [num_images, 32, 32, 3], with labels, int32.

    Raises:
      UsageError: If there are no files, or they are not what they should be; names the file, and
        the row if it is about one.
      MissingExtraError: If a package of the extra `images` is not installed.

    Example:
      >>> from dcasgd_jax.commands import images
      >>> data = images.load_cifar10("~/data/cifar10")  # doctest: +SKIP
      >>> data.train.images.shape  # doctest: +SKIP
      (50000, 32, 32, 3)
    """
    if data_dir is None:
        folder = hub.download(HUB_NAME, [f"{_FOLDERS[0]}/*.parquet"], _INSTEAD)
    else:
        folder = pathlib.Path(data_dir).expanduser()
    if (path := folder / archive.NAME).is_file():
        archive.check_md5(path)
        return Cifar10(
            train=LabelledImages(*archive.read_members(path, archive.TRAIN_MEMBERS)),
            test=LabelledImages(*archive.read_members(path, archive.TEST_MEMBERS)),
        )
    cached_in = None if cache_dir is None else pathlib.Path(cache_dir).expanduser()
    found = {split: shards.find_shards(folder, _FOLDERS, split) for split in ("train", "test")}
    for split, paths in found.items():
        if not paths:
            raise errors.UsageError(f"{folder} has no CIFAR-10 {split} files. {_INSTEAD}")
    return Cifar10(**{split: _read_split(paths, cached_in) for split, paths in found.items()})


def _read_split(paths: list[pathlib.Path], cache_dir: pathlib.Path | None) -> LabelledImages:
    parts = [_read_file(path, cache_dir) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return LabelledImages(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _read_file(path: pathlib.Path, cache_dir: pathlib.Path | None) -> LabelledImages:
    if cache_dir is None:
        return _decode_file(path)
    kept = cache.derived_path(cache_dir, path, "cifar10 1", ".npz")
    with contextlib.suppress(OSError, ValueError):  # not there, or damaged: made again
        return LabelledImages(**archives.load(kept))
    decoded = _decode_file(path)
    archives.save(kept, decoded._asdict(), compressed=False)
    return decoded


def _decode_file(path: pathlib.Path) -> LabelledImages:
    extras.require_packages("PIL", "pyarrow", extra="images")
    source = parquet.ParquetImages([path], image_column="img", num_classes=NUM_CLASSES)
    return LabelledImages(_decode_all(source), source.labels)


def _decode_all(source: sources.ImageSource) -> np.ndarray:
    images = np.empty((len(source), SIZE, SIZE, 3), np.uint8)
    for row in range(len(source)):
        with decoding.opened(source, row) as image:
            if image.size != (SIZE, SIZE):
                raise errors.UsageError(
                    f"{source.where(row)}: the image has {image.width} x {image.height} pixels, "
                    f"but CIFAR-10's have {SIZE} x {SIZE}: the file is of another data set."
                )
            images[row] = np.asarray(decoding.to_rgb(image))
    return images
