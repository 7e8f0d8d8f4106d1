import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcasgd_jax.commands import images

from . import writers

KEY = jax.random.key(3)


def all_views(image, padding):
    """Every result that augmentation may have, by (row, column, flipped); NumPy."""
    mean, std = (np.array(numbers, np.float32) for numbers in images.CIFAR10_PIXELS)
    size = image.shape[0]
    edges = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad((image.astype(np.float32) - mean) / std, edges)
    views = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            view = padded[row : row + size, column : column + size]
            views[row, column, False], views[row, column, True] = view, view[:, ::-1]
    return views


def test_normalise():
    batch = writers.pixels(5)
    mean, std = (np.array(numbers, np.float32) for numbers in images.CIFAR10_PIXELS)
    expected = (batch.astype(np.float32) - mean) / std
    np.testing.assert_allclose(images.normalise(jnp.asarray(batch)), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(images.normalise(batch[0]), images.normalise(batch)[0])
    low = images.normalise(batch, images.IMAGENET_PIXELS, dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_image_is_one_of_the_crops(padding):
    batch = writers.pixels(200, size=8)
    result = np.asarray(images.augment(KEY, batch, padding=padding))
    seen = []
    for image, given in zip(batch, result, strict=True):
        views = all_views(image, padding)
        distance = abs(np.stack(list(views.values())) - given).max((1, 2, 3))
        assert np.sum(distance < 1e-5) == 1
        seen.append(list(views)[distance.argmin()])
    rows, columns, flips = map(np.array, zip(*seen, strict=True))
    assert set(rows) == set(columns) == set(range(2 * padding + 1))
    assert 0.35 < flips.mean() < 0.65
    if padding == 4:  # rows, columns and flips are drawn apart
        assert abs(np.corrcoef([rows, columns, flips]) - np.eye(3)).max() < 0.25


def test_the_key_decides():
    batch = jnp.asarray(writers.pixels(16))
    first = images.augment(KEY, batch)
    np.testing.assert_array_equal(first, images.augment(KEY, batch))
    inside = jax.jit(lambda key: images.augment(key, batch))(KEY)
    np.testing.assert_allclose(first, inside, rtol=1e-6, atol=1e-6)
    assert not np.array_equal(first, images.augment(jax.random.key(4), batch))


def test_vmap_over_workers():
    batches = jnp.asarray(writers.pixels(12).reshape(3, 4, 32, 32, 3))
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(images.augment))(keys, batches)
    for key, batch, result in zip(keys, batches, together, strict=True):
        np.testing.assert_allclose(images.augment(key, batch), result, rtol=1e-6, atol=1e-6)


def test_low_precision():
    batch = writers.pixels(4)
    low = images.augment(KEY, batch, dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, images.augment(KEY, batch).astype(jnp.bfloat16))


def test_normalised_images_are_refused():
    with pytest.raises(TypeError, match="must be uint8"):
        images.augment(KEY, images.normalise(writers.pixels(2)))
    with pytest.raises(TypeError, match="must be uint8"):
        images.normalise(writers.pixels(2) / 255)
    with pytest.raises(ValueError, match="batch, height, width, channels"):
        images.augment(KEY, writers.pixels(2)[0])
