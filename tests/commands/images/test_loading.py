import io
import itertools

import calls
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from dcasgd_jax import sim
from dcasgd_jax.commands import errors, images
from dcasgd_jax.commands.images import crops
from dcasgd_jax.schedules.sampling import ShardedEpochs

from . import writers

ROWS = np.random.default_rng(0).integers(0, 9, (7, 4))


@pytest.fixture
def folders(tmp_path):
    return writers.write_folders(tmp_path)


@pytest.fixture
def source(folders):
    return images.open_imagenet(folders, num_classes=3).train


def batches(source, **options):
    return images.ImageBatches(source, ROWS, **dict(training=True, size=16, seed=5) | options)


def check_equal(ones, others):
    for one, other in itertools.zip_longest(ones, others):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("training", [True, False])
def test_batches(source, training):
    found = list(batches(source, training=training))
    assert len(found) == len(batches(source)) == 7
    for batch, rows in zip(found, ROWS, strict=True):
        assert (batch.images.shape, batch.images.dtype) == ((4, 16, 16, 3), np.uint8)
        assert batch.labels.dtype == np.int32
        np.testing.assert_array_equal(batch.labels, rows // 3)


def test_order_and_crops_do_not_depend_on_threads(source):
    expected = list(batches(source, num_threads=1, prefetch=0))
    check_equal(expected, batches(source, num_threads=4, prefetch=5))
    again = batches(source)
    check_equal(expected, again)
    check_equal(expected, again)


def test_formats_give_the_same_batches(source, tmp_path):
    other = writers.write_imagenet_parquet(tmp_path / "parquet")
    for cache in (None, tmp_path / "cache"):
        data = images.open_imagenet(other, num_classes=3, cache_dir=cache)
        check_equal(batches(source), batches(data.train))


def test_the_seed_decides(source):
    first, second = (next(iter(batches(source, seed=seed))).images for seed in (5, 6))
    assert not np.array_equal(first, second)
    repeated = images.ImageBatches(source, np.zeros((2, 2), int), training=True, size=16)
    views = np.concatenate([batch.images for batch in repeated])
    assert len(np.unique(views.reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("first", [0, 1, 5, 7])
def test_resuming_decodes_nothing_twice(source, first, monkeypatch):
    expected = list(batches(source))[first:]
    read = []
    original = type(source).read
    monkeypatch.setattr(type(source), "read", lambda s, row: read.append(row) or original(s, row))
    resumed = batches(source).starting_at(first)
    assert len(resumed) == 7 - first
    check_equal(expected, resumed)
    assert sorted(read) == sorted(ROWS[first:].ravel())


def test_few_batches_are_read_ahead(source, monkeypatch):
    read = []
    original = type(source).read
    monkeypatch.setattr(type(source), "read", lambda s, row: read.append(row) or original(s, row))
    iterator = iter(batches(source, prefetch=1))
    assert not read
    next(iterator)
    iterator.close()
    assert 4 <= len(read) <= 8


def test_a_simulation(source):
    """Two workers go through their shards; the run stopped half-way and resumed is the same."""
    schedule = sim.make_schedule(sim.ExponentialTime(), 2, num_updates=10, seed=0)
    rows = ShardedEpochs(len(source), batch_size=2, num_workers=2, seed=0).rows(schedule)
    batches = images.ImageBatches(source, rows, training=True, size=16)
    tx = optax.sgd(0.1)

    def loss_fn(params, batch):
        brightness = images.normalise(batch.images, images.IMAGENET_PIXELS).mean((1, 2, 3))
        return jnp.mean((brightness * params - batch.labels) ** 2)

    def run(batches, **options):
        return calls.simulate(
            loss_fn, jnp.zeros(()), tx, schedule, batches, engine=sim.HostEngine(), **options
        )

    whole = run(batches)
    half = run(batches, stop=4)
    rest = run(batches.starting_at(4), state=half.state)
    np.testing.assert_array_equal(whole.params, rest.params)
    assert whole.params != 0


@pytest.mark.parametrize(
    "content", [b"", b"no image", writers.encode(writers.smooth(60, 48), "JPEG")[:400]]
)
@pytest.mark.parametrize("training", [True, False])
def test_corrupt_image(folders, source, content, training):
    path = folders / "train" / writers.CLASSES[1] / f"{writers.CLASSES[1]}_1.JPEG"
    path.write_bytes(content)
    with pytest.raises(errors.UsageError, match=f"{path}: no whole JPEG or PNG") as caught:
        list(images.ImageBatches(source, np.array([[0, 4]]), training=training, size=16))
    assert "\n" not in str(caught.value)
    assert len(list(images.ImageBatches(source, np.array([[0, 3]]), training=True, size=16))) == 1


def test_file_that_is_gone(folders, source):
    path = folders / "train" / writers.CLASSES[0] / f"{writers.CLASSES[0]}_0.JPEG"
    path.unlink()
    with pytest.raises(errors.UsageError, match=f"{path}.*FileNotFoundError"):
        list(batches(source))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_colours(folders, source, mode):
    path = folders / "train" / writers.CLASSES[0] / f"{writers.CLASSES[0]}_0.JPEG"
    path.write_bytes(writers.encode(writers.smooth(600, 500), "JPEG", mode))
    for training in (True, False):
        rows = np.array([[0]])
        (batch,) = images.ImageBatches(source, rows, training=training, size=16)
        assert batch.images.std() > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rows=np.array([[0, 9]])), "rows go from 0 to 9, but the source has 9 images"),
        (dict(rows=np.array([[-1, 0]])), "rows go from -1"),
        (dict(rows=np.zeros((2, 2))), r"rows must be integers .*float64 \[2, 2\]"),
        (dict(rows=np.arange(3)), r"rows must be integers .* \[3\]"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(size=0), "size must be at least 1"),
        (dict(num_threads=0), "num_threads must be at least 1"),
        (dict(prefetch=-1), "prefetch must be at least 0"),
        (dict(first=8), r"first must be a batch in \[0, 7\], got 8"),
    ],
)
def test_bad_arguments(source, options, message):
    with pytest.raises(ValueError, match=message):
        images.ImageBatches(source, **dict(rows=ROWS, training=True) | options)


def opened(width, height, form="PNG"):
    return Image.open(io.BytesIO(writers.encode(writers.smooth(width, height), form)))


@pytest.mark.parametrize("shape", [(300, 260), (100, 400), (20, 30), (256, 256)])
def test_evaluation_crop(shape):
    """The centre of the image: its middle colour stays in the middle, whatever the shape."""
    crop = crops.evaluation_crop(opened(*shape), 224)
    assert crop.shape == (224, 224, 3)
    middle = writers.smooth(*shape)[shape[1] // 2, shape[0] // 2].astype(int)
    assert np.abs(crop[112, 112] - middle).max() < 12


def test_evaluation_crop_of_its_own_size():
    np.testing.assert_array_equal(
        crops.evaluation_crop(opened(256, 256), 224), writers.smooth(256, 256)[16:-16, 16:-16]
    )


@pytest.mark.parametrize("shape", [(300, 260), (1000, 10), (10, 1000), (1, 1), (3, 2)])
def test_random_boxes(shape):
    generator = np.random.default_rng(0)
    boxes = np.array([crops._random_box(*shape, generator) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= shape[0]).all()
    assert (bottom <= shape[1]).all()
    assert ((right > left) & (bottom > top)).all()
    if shape == (300, 260):
        share = (right - left) * (bottom - top) / (300 * 260)
        aspect = (right - left) / (bottom - top)
        assert share.min() < 0.12
        assert share.max() > 0.85
        assert 0.73 < aspect.min() < 0.8
        assert 1.25 < aspect.max() < 1.36


def test_training_crop_of_a_fraction_of_a_jpeg():
    """Decoding a large JPEG at a fraction of its size gives nearly the pixels of the whole."""
    for seed in range(4):
        small, exact = (
            crops.training_crop(opened(600, 500, form), 64, np.random.default_rng(seed))
            for form in ("JPEG", "PNG")
        )
        assert np.abs(small.astype(int) - exact).mean() < 3
