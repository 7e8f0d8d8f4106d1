import os

import numpy as np
import pytest

from dcasgd_jax.commands import errors, images
from dcasgd_jax.commands.images import parquet

from . import writers

LAYOUTS = {"folders": writers.write_folders, "parquet": writers.write_imagenet_parquet}


@pytest.fixture(params=["folders", "parquet", "parquet, cached"])
def data(request, tmp_path):
    """The same nine images in three classes, in every layout."""
    LAYOUTS[request.param.split(",")[0]](tmp_path)
    cache = tmp_path / "cache" if "cached" in request.param else None
    return images.open_imagenet(tmp_path, num_classes=3, cache_dir=cache)


def test_sources(data):
    for source in data:
        assert len(source) == 9
        assert source.num_classes == 3
        assert source.labels.dtype == np.int32
        np.testing.assert_array_equal(source.labels, np.repeat(np.arange(3), 3))
        for row in (8, 0, 4, 5, 4):
            expected = writers.smooth(60, 48, seed=10 * (row // 3) + row % 3)
            assert bytes(source.read(row)) == writers.encode(expected, "JPEG")
    assert data.train.where(5) != data.train.where(6)


def test_where(tmp_path):
    writers.write_imagenet_parquet(tmp_path)
    source = images.open_imagenet(tmp_path, num_classes=3).train
    assert source.where(4) == f"{tmp_path}/train-00000-of-00002.parquet, row 4"
    assert source.where(5) == f"{tmp_path}/train-00001-of-00002.parquet, row 0"


def test_a_batch_reads_few_groups(tmp_path, monkeypatch):
    writers.write_imagenet_parquet(tmp_path)
    source = images.open_imagenet(tmp_path, num_classes=3).train
    reads = []
    read = parquet.ParquetImages._read_group
    monkeypatch.setattr(
        parquet.ParquetImages, "_read_group", lambda *args: reads.append(args) or read(*args)
    )
    for row in range(9):
        source.read(row)
    assert len(reads) == 5  # of 2, 2 and 1 rows, then 2 and 2


def test_the_copy_is_made_once_and_again_if_damaged(tmp_path, monkeypatch):
    writers.write_imagenet_parquet(tmp_path)
    cache = tmp_path / "cache"
    open_ = lambda: images.open_imagenet(tmp_path, num_classes=3, cache_dir=cache).train
    expected = [bytes(open_().read(row)) for row in range(9)]
    assert len(list(cache.iterdir())) == 3
    read = parquet.ParquetImages._read_group
    monkeypatch.setattr(parquet.ParquetImages, "_read_group", None)
    assert [bytes(open_().read(row)) for row in range(9)] == expected
    monkeypatch.setattr(parquet.ParquetImages, "_read_group", read)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    assert [bytes(open_().read(row)) for row in range(9)] == expected


def test_a_copy_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    writers.write_imagenet_parquet(tmp_path)
    read = parquet.ParquetImages._read_group

    def interrupted(self, path, number):
        if number == 1:
            raise KeyboardInterrupt
        return read(self, path, number)

    monkeypatch.setattr(parquet.ParquetImages, "_read_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.open_imagenet(tmp_path, num_classes=3, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_files(tmp_path):
    message = r"no ImageNet train files.*train/<class>/\*.JPEG"
    with pytest.raises(errors.UsageError, match=message):
        images.open_imagenet(tmp_path)


@pytest.mark.parametrize("label", [3, -1])
def test_label_out_of_range(tmp_path, label):
    writers.write_imagenet_parquet(tmp_path)
    path = tmp_path / "validation-00000-of-00001.parquet"
    writers.write_parquet(path, [b"", b""], [0, label], image="image")
    with pytest.raises(errors.UsageError, match=f"validation-.*, row 1: label {label} is not one"):
        images.open_imagenet(tmp_path, num_classes=3)


class TestFolder:
    @pytest.fixture
    def folders(self, tmp_path):
        return writers.write_folders(tmp_path)

    def check(self, folders, message):
        with pytest.raises(errors.UsageError, match=message) as caught:
            images.open_imagenet(folders, num_classes=3)
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_empty_class(self, folders, split):
        for path in (folders / split / writers.CLASSES[1]).iterdir():
            path.unlink()
        self.check(folders, f"{split}/{writers.CLASSES[1]} is empty")

    def test_missing_class(self, folders):
        (folders / "val" / writers.CLASSES[1]).rename(folders / "elsewhere")
        self.check(folders, f"val lacks the class folder {writers.CLASSES[1]}")

    def test_class_that_is_not_in_train(self, folders):
        (folders / "val" / "n99").mkdir()
        self.check(folders, "val/n99 is not one of the 3 classes")

    def test_number_of_classes(self, folders):
        (folders / "train" / "n99").mkdir()
        (folders / "train" / "n99" / "a.png").write_bytes(b"")
        self.check(folders, "train has 4 class folders, but 3 classes are expected")

    def test_no_classes(self, tmp_path):
        (tmp_path / "train").mkdir()
        self.check(tmp_path, "train has no class folders")

    def test_no_validation(self, folders):
        (folders / "val").rename(folders / "validation")
        self.check(folders, "cannot list .*val: No such file")

    def test_file_that_is_no_image_by_its_name(self, folders):
        (folders / "train" / writers.CLASSES[0] / "notes.txt").write_text("")
        self.check(folders, r"notes.txt is no image by its name \(.jpeg, .jpg, .png\)")

    def test_hidden_files_are_passed_over(self, folders):
        (folders / "train" / ".git").mkdir()
        (folders / "train" / writers.CLASSES[0] / ".DS_Store").write_text("")
        assert len(images.open_imagenet(folders, num_classes=3).train) == 9

    def test_names_that_are_no_text(self, folders):
        """Bytes that are no UTF-8: such files are read, and messages about them can be printed."""
        folder = folders / "train" / writers.CLASSES[0]
        unprintable = folder / os.fsdecode(b"\xff\xfe.JPEG")
        good = writers.encode(writers.smooth(30, 30), "JPEG")
        unprintable.write_bytes(good)
        source = images.open_imagenet(folders, num_classes=3).train
        row = next(row for row in range(10) if "udcff" in source.where(row))
        assert bytes(source.read(row)) == good
        unprintable.write_bytes(good[:50])
        batches = images.ImageBatches(source, np.array([[row]]), training=False)
        with pytest.raises(errors.UsageError, match=r"udcff.udcfe.JPEG: no whole") as caught:
            list(batches)
        assert str(caught.value).isprintable()
        (folder / os.fsdecode(b"\xff.txt")).touch()
        self.check(folders, r"udcff.txt is no image by its name")
