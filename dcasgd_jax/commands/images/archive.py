"""CIFAR-10's official binary archive, read without unpacking it."""

import hashlib
import pathlib
import tarfile
import zlib

import numpy as np

from dcasgd_jax.commands import errors
from dcasgd_jax.commands.images import sources

NAME = "cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""As published at https://www.cs.toronto.edu/~kriz/cifar.html."""

TRAIN_MEMBERS = tuple(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6))
TEST_MEMBERS = ("cifar-10-batches-bin/test_batch.bin",)

_SIZE = 32
_RECORD = 1 + 3 * _SIZE * _SIZE  # a label, then all red, all green, all blue pixels


def check_md5(path: pathlib.Path, expected: str = MD5) -> None:
    """Raises UsageError unless the file is the published one."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(
                stream, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise errors.UsageError(f"cannot read {path}: {error.strerror}.") from error
    if found != expected:
        raise errors.UsageError(
            f"{path} has the MD5 checksum {found}, but {expected} is published: it is truncated, "
            "corrupt or another file; download it again from "
            "https://www.cs.toronto.edu/~kriz/cifar.html."
        )


def read_members(path: pathlib.Path, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of the named members.

    Members are read by their exact names and nothing is written, so no name in the archive can
    lead anywhere.

    Raises:
      UsageError: If the archive is truncated, lacks a member, or has a bad record.
    """
    images, labels = [], []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for name in names:
                content = _content(archive, name, path)
                of_member = _split(content, f"{path}, {name}")
                images.append(of_member[0])
                labels.append(of_member[1])
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise errors.UsageError(
            f"{path} cannot be read as a .tar.gz archive, it is truncated or corrupt ({error}): "
            "download it again."
        ) from error
    return np.concatenate(images), np.concatenate(labels)


def _content(archive: tarfile.TarFile, name: str, path: pathlib.Path) -> bytes:
    try:
        member = archive.getmember(name)
    except KeyError:
        member = None
    stream = archive.extractfile(member) if member is not None and member.isreg() else None
    if stream is None:
        raise errors.UsageError(f"{path} lacks the file {name}: it is another archive.")
    return stream.read()


def _split(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    num_records, rest = divmod(len(content), _RECORD)
    if rest or not num_records:
        raise errors.UsageError(
            f"{where} has {len(content)} bytes, which is no number of records of {_RECORD}: it is "
            "truncated."
        )
    records = np.frombuffer(content, np.uint8).reshape(num_records, _RECORD)
    labels = sources.check_labels(records[:, 0], 10, lambda row: f"{where}, record {row}")
    planes = records[:, 1:].reshape(num_records, 3, _SIZE, _SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
