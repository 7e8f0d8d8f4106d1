import types

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from dcasgd_jax.commands import errors, images

from . import writers

COMMIT = "a" * 40


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The hub's client as it is without a network, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def fill_cache(cache):
    """A data set in the hub's cache, as an earlier download leaves it."""
    repository = cache / "datasets--uoft-cs--cifar10"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT / "plain_text"
    return folder, writers.write_cifar_parquet(folder)


@pytest.mark.parametrize(
    ("load", "file"),
    [
        (images.load_cifar10, r"train-00000-of-00001.parquet .* data_dir"),
        (images.open_imagenet, r"data_dir .* train/<class>/\*.JPEG"),
    ],
)
@pytest.mark.usefixtures("offline_cache")
def test_without_a_network(load, file):
    with pytest.raises(errors.UsageError, match=f"cannot download .*{file}") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_what_was_downloaded_is_found_without_a_network(offline_cache):
    _, expected = fill_cache(offline_cache)
    data = images.load_cifar10()
    np.testing.assert_array_equal(data.train.images, expected[0][0])


def test_an_interrupted_download_is_not_used(offline_cache):
    folder, _ = fill_cache(offline_cache)
    half = folder / "test-00000-of-00001.parquet"
    blobs = offline_cache / "datasets--uoft-cs--cifar10" / "blobs"
    blobs.mkdir()
    half.rename(blobs / "0123.incomplete")  # where the hub's client keeps what it has so far
    with pytest.raises(errors.UsageError, match=r"test files|cannot download"):
        images.load_cifar10()


def test_the_files_asked_for(tmp_path, monkeypatch):
    writers.write_imagenet_parquet(tmp_path / "data")
    asked = []

    def download(name, **options):
        asked.append((name, options["repo_type"], options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    data = images.open_imagenet(num_classes=3)
    assert (len(data.train), len(data.validation)) == (9, 9)
    patterns = ["data/train-*.parquet", "data/validation-*.parquet"]
    assert asked == [("ILSVRC/imagenet-1k", "dataset", patterns)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (hub_errors.GatedRepoError, "accept its conditions.*hf auth login.*data_dir"),
        (hub_errors.RepositoryNotFoundError, "no data set at https.*data_dir"),
        (hub_errors.HfHubHTTPError, r"cannot download.*\(HfHubHTTPError: 503.*data_dir"),
    ],
)
def test_refusals_of_the_hub(monkeypatch, kind, message):
    def download(name, **options):
        response = types.SimpleNamespace(headers={}, request=None, status_code=503)
        raise kind("503 Service Unavailable\nsecond line", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(errors.UsageError, match=message) as caught:
        images.open_imagenet()
    assert "\n" not in str(caught.value)
