import os
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dcasgd_jax import extras
from dcasgd_jax.commands import errors, images
from dcasgd_jax.commands.images import archive, cifar10

from . import writers

REAL = "DCASGD_JAX_CIFAR10"


def check_equal(data, expected):
    for split, (pixels, labels) in zip(data, expected, strict=True):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.images.flags.c_contiguous
        np.testing.assert_array_equal(split.images, pixels)
        np.testing.assert_array_equal(split.labels, labels)


def write_split(directory, encoded, labels, **options):
    """A test split as given beside a good training split."""
    writers.write_cifar_parquet(directory)
    path = directory / "test-00000-of-00001.parquet"
    return writers.write_parquet(path, encoded, labels, **options)


@pytest.mark.parametrize("folder", ["", "plain_text", "data"])
def test_parquet(tmp_path, folder):
    expected = writers.write_cifar_parquet(tmp_path / folder)
    check_equal(images.load_cifar10(tmp_path), expected)


def test_parquet_in_several_parts(tmp_path):
    expected = writers.write_cifar_parquet(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    pixels, labels = expected[0]
    for part, rows in enumerate((slice(0, 7), slice(7, None))):
        encoded = [writers.encode(image) for image in pixels[rows]]
        path = tmp_path / f"train-{part:05}-of-00002.parquet"
        writers.write_parquet(path, encoded, labels[rows])
    check_equal(images.load_cifar10(tmp_path), expected)
    path.unlink()
    with pytest.raises(errors.UsageError, match=r"lacks train-00001-of-00002.parquet"):
        images.load_cifar10(tmp_path)
    writers.write_parquet(tmp_path / "train-00001-of-00003.parquet", encoded, labels[rows])
    with pytest.raises(errors.UsageError, match="of 2 and of 3 parts"):
        images.load_cifar10(tmp_path)


def test_jpeg_and_grey_images(tmp_path):
    image = writers.smooth(32, 32)
    encoded = [writers.encode(image, "JPEG"), writers.encode(image, mode="L")]
    write_split(tmp_path, encoded, [3, 4])
    jpeg, grey = images.load_cifar10(tmp_path).test.images
    assert np.abs(jpeg.astype(int) - image).mean() < 8
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_no_files(tmp_path):
    with pytest.raises(errors.UsageError, match=r"train-00000-of-00001\.parquet and") as caught:
        images.load_cifar10(tmp_path)
    assert archive.NAME in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_download_is_not_read(tmp_path):
    writers.write_cifar_parquet(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    path.rename(f"{path}.incomplete")
    with pytest.raises(errors.UsageError, match="no CIFAR-10 test files"):
        images.load_cifar10(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -9])
def test_truncated_parquet(tmp_path, keep):
    writers.write_cifar_parquet(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.UsageError, match=r"train-00000.*truncated or corrupt.*again"):
        images.load_cifar10(tmp_path)


def test_parquet_with_damaged_pages(tmp_path):
    writers.write_cifar_parquet(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(errors.UsageError, match="train-00000"):
        images.load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=[0, 10]), r"test-00000-of-00001.parquet, row 1: label 10 is not"),
        (dict(labels=[-1, 0]), r"row 0: label -1 is not"),
        (dict(labels=[3, None]), r"row 1 has no label"),
        (dict(encoded=[], labels=[]), "has no rows"),
        (dict(image="picture"), r"no column img, only picture, label"),
        (dict(label="class"), r"no column label, only img, class"),
        (dict(img=pa.array([1, 2])), "column img is int64, not a struct"),
        (dict(second=writers.encode(writers.smooth(32, 31))), "row 1: the image has 32 x 31"),
        (dict(second=b"no image"), r"row 1: no whole JPEG or PNG image"),
        (dict(second=writers.encode(writers.pixels(1)[0])[:900]), r"row 1: no whole JPEG"),
        (dict(second=writers.encode(writers.pixels(1)[0], "JPEG")[:900]), r"row 1: no whole"),
        (dict(second=None), "row 1: img has no bytes"),
    ],
)
def test_bad_parquet(tmp_path, change, message):
    good = writers.encode(writers.smooth(32, 32))
    options = dict(change)
    encoded = options.pop("encoded", [good, options.pop("second", good)])
    write_split(tmp_path, encoded, options.pop("labels", [1, 2]), **options)
    with pytest.raises(errors.UsageError, match=message):
        images.load_cifar10(tmp_path)


def test_labels_that_are_names(tmp_path):
    path = write_split(tmp_path, [b""], [0], label="unused", label_=pa.array(["cat"]))
    table = parquet.read_table(path).drop_columns("unused").rename_columns({"label_": "label"})
    parquet.write_table(table, path)
    with pytest.raises(errors.UsageError, match="column label is string, not of integers"):
        images.load_cifar10(tmp_path)


def test_cache(tmp_path, monkeypatch):
    cached = tmp_path / "new" / "cache"
    expected = writers.write_cifar_parquet(tmp_path)
    check_equal(images.load_cifar10(tmp_path, cache_dir=cached), expected)
    decode = cifar10._decode_all
    monkeypatch.setattr(cifar10, "_decode_all", None)
    check_equal(images.load_cifar10(tmp_path, cache_dir=cached), expected)
    monkeypatch.setattr(cifar10, "_decode_all", decode)
    assert len(list(cached.iterdir())) == 2
    for path in cached.iterdir():  # damaged files are made again
        path.write_bytes(path.read_bytes()[:-100])
    check_equal(images.load_cifar10(tmp_path, cache_dir=cached), expected)
    for path in cached.iterdir():
        path.write_bytes(b"")
    check_equal(images.load_cifar10(tmp_path, cache_dir=cached), expected)
    changed = writers.write_cifar_parquet(tmp_path, num_train=20)
    check_equal(images.load_cifar10(tmp_path, cache_dir=cached), changed)


@pytest.fixture
def any_archive(monkeypatch):
    """Generated archives cannot have the published checksum."""
    monkeypatch.setattr(archive, "check_md5", lambda path: None)


@pytest.mark.usefixtures("any_archive")
def test_archive(tmp_path):
    expected = writers.write_cifar_archive(tmp_path / archive.NAME)
    check_equal(images.load_cifar10(tmp_path), expected)
    writers.write_cifar_parquet(tmp_path)  # the originals are preferred
    check_equal(images.load_cifar10(tmp_path), expected)


def test_archive_with_another_checksum(tmp_path):
    path = tmp_path / archive.NAME
    writers.write_cifar_archive(path)
    with pytest.raises(errors.UsageError, match=f"{archive.NAME} has the MD5.*{archive.MD5}"):
        images.load_cifar10(tmp_path)


def test_the_right_checksum_passes(tmp_path):
    (tmp_path / "file").write_bytes(b"hello")
    archive.check_md5(tmp_path / "file", "5d41402abc4b2a76b9719d911017c592")
    with pytest.raises(errors.UsageError, match="cannot read"):
        archive.check_md5(tmp_path / "none")


@pytest.mark.usefixtures("any_archive")
@pytest.mark.parametrize("keep", [0, 50, -200])
def test_truncated_archive(tmp_path, keep):
    path = tmp_path / archive.NAME
    writers.write_cifar_archive(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.UsageError, match=f"{archive.NAME} cannot be read.*download"):
        images.load_cifar10(tmp_path)


def archive_with(path, **changed):
    """All members good but the changed ones; None leaves a member out."""
    good = writers.cifar_records(writers.pixels(2), [1, 2])
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    members = {name: changed.get(name, good) for name in names}
    writers.write_archive(
        path,
        {f"cifar-10-batches-bin/{n}.bin": c for n, c in members.items() if c is not None},
    )


@pytest.mark.usefixtures("any_archive")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(data_batch_3=None), r"lacks the file cifar-10-batches-bin/data_batch_3.bin"),
        (dict(test_batch=bytes(3072)), r"test_batch.bin has 3072 bytes.*3073"),
        (dict(test_batch=b""), r"test_batch.bin has 0 bytes"),
        (
            dict(data_batch_2=bytes(3073) + b"\x0a" + bytes(3072)),
            r"batch_2.bin, record 1: label 10",
        ),
    ],
)
def test_bad_archive(tmp_path, changed, message):
    archive_with(tmp_path / archive.NAME, **changed)
    with pytest.raises(errors.UsageError, match=message):
        images.load_cifar10(tmp_path)


@pytest.mark.usefixtures("any_archive")
def test_names_in_the_archive_lead_nowhere(tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(3073))
    writers.write_archive(inside / archive.NAME, {"../escaped": b"x", "/tmp/escaped": b"x"})
    with pytest.raises(errors.UsageError, match="lacks the file"):
        images.load_cifar10(inside)
    with tarfile.open(inside / archive.NAME, "w:gz") as written:
        for name in (*archive.TRAIN_MEMBERS, *archive.TEST_MEMBERS):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
            written.addfile(link)
    with pytest.raises(errors.UsageError, match="lacks the file"):
        images.load_cifar10(inside)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [archive.NAME, "data", "secret"]


def test_without_the_extra(tmp_path, monkeypatch):
    writers.write_cifar_parquet(tmp_path)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtraError, match=r"needs pillow and pyarrow.*\[images\]"):
        images.load_cifar10(tmp_path)


@pytest.mark.skipif(REAL not in os.environ, reason=f"reads the real CIFAR-10 in ${REAL}")
def test_the_real_cifar10():
    """The one test that needs real data; `test_parquet` and `test_archive` are its twins."""
    data = images.load_cifar10(pathlib.Path(os.environ[REAL]))
    assert data.train.images.shape == (50_000, 32, 32, 3)
    assert data.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    mean, std = images.CIFAR10_PIXELS
    np.testing.assert_allclose(data.train.images.mean((0, 1, 2)), mean, atol=0.5)
    np.testing.assert_allclose(data.train.images.std((0, 1, 2)), std, atol=1)
