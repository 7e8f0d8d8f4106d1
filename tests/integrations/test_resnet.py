"""The residual networks: counted by hand, shortcuts by hand, and trained for a few events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcasgd_jax.integrations import nnx as dc_nnx
from dcasgd_jax.integrations import resnet
from integrations import models


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def shapes(model, *images):
    return nnx.eval_shape(lambda model, x: model(x), model, jnp.ones(images))


def filled(make):
    """A network without the time that compiling its random weights takes."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(make)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    ones = lambda leaf: jnp.ones(leaf.shape, leaf.dtype)
    nnx.update(model, jax.tree.map(ones, nnx.state(model, nnx.BatchStat)))
    return model


def tiny(dtype=None):
    return filled(
        lambda: resnet.CifarResNet(1, widths=(4, 8), num_classes=3, dtype=dtype, rngs=nnx.Rngs(0))
    )


def test_resnet20_has_the_parameters_of_the_paper():
    model = nnx.eval_shape(lambda: resnet.resnet20(rngs=nnx.Rngs(0)))
    kernels = 9 * (3 * 16 + 6 * 16 * 16)  # the first convolution, and the first stage
    kernels += 9 * (16 * 32 + 5 * 32 * 32) + 9 * (32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    linear = 64 * 10 + 10
    assert count(model) == kernels + norms + linear == 269_722
    layers = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Conv | nnx.Linear)]
    assert len(layers) == 20  # and no layers in the shortcuts
    assert shapes(model, 2, 32, 32, 3).shape == (2, 10)


def test_resnet50_has_the_known_parameters():
    model = nnx.eval_shape(lambda: resnet.resnet50(rngs=nnx.Rngs(0)))
    total, channels_in = 3 * 49 * 64 + 2 * 64, 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        norms = 2 * (width + width + 4 * width)
        for _ in range(blocks):
            total += channels_in * width + 9 * width * width + width * 4 * width + norms
            channels_in, before = 4 * width, channels_in
            if before != channels_in:  # the shortcut has a convolution
                total += before * 4 * width + 2 * 4 * width
    assert count(model) == total + 2048 * 1000 + 1000 == 25_557_032
    assert shapes(model, 2, 224, 224, 3).shape == (2, 1000)
    strided = [
        (node.kernel_size, node.in_features)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Conv) and node.strides == 2 and "shortcut" not in path
    ]
    assert sorted(strided) == [((3, 3), 128), ((3, 3), 256), ((3, 3), 512), ((7, 7), 3)]


@pytest.mark.parametrize(("size", "final"), [(32, 8), (8, 2)])
def test_stages_halve_the_images(size, final):
    model = nnx.eval_shape(lambda: resnet.resnet20(rngs=nnx.Rngs(0)))

    def features(model, x):
        x = model.stem(x)
        for block in model.blocks:
            x = block(x)
        return x

    images = jnp.ones((2, size, size, 3))
    assert nnx.eval_shape(features, model, images).shape == (2, final, final, 64)


def test_the_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    """Without convolutions a block is the rectified shortcut; every number by hand."""
    block = tiny().blocks[1]
    assert (block.stride, block.channels_added) == (2, 4)
    block.second.norm.scale[...] = block.second.norm.bias[...] = jnp.zeros(8)
    x = jnp.arange(64.0).reshape(1, 4, 4, 4) - 20
    y = block(x)
    assert y.shape == (1, 2, 2, 8)
    for row in range(2):
        for column in range(2):
            pixel = 4 * (2 * row * 4 + 2 * column) - 20  # its first channel
            expected = [max(pixel + channel, 0) for channel in range(4)] + [0] * 4
            np.testing.assert_array_equal(y[0, row, column], expected)


def test_a_strided_convolution_sees_the_pixels_around_those_of_the_shortcut():
    block = tiny().blocks[1]
    convolution = block.first.convolution
    kernel = jnp.zeros(convolution.kernel.shape).at[1, 1, 0, 0].set(1.0)
    convolution.kernel[...] = kernel  # the central pixel, channel 0
    x = jnp.arange(64.0).reshape(1, 4, 4, 4)
    np.testing.assert_array_equal(convolution(x)[..., 0], x[:, ::2, ::2, 0])


def test_weights_are_drawn_as_he_has_it():
    model = resnet.CifarResNet(1, widths=(16, 64), rngs=nnx.Rngs(0))
    kernel = model.blocks[1].second.convolution.kernel[...]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert abs(float(kernel.mean())) < 1e-3
    assert (model.head.bias[...] == 0).all()


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_everything_that_is_kept_is_float32_and_statistics_move(dtype):
    images, labels = models.examples(0, 16)
    images = jnp.tile(images[:, None, None, :3], (1, 2, 2, 1))
    problem = dc_nnx.split_model(tiny(dtype), models.loss)
    gradient = jax.jit(jax.value_and_grad(problem.loss_fn, has_aux=True))
    (loss, model_state), grads = gradient(problem.params, problem.model_state, (images, labels))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((loss, model_state, grads))}
    assert dtypes == {np.dtype(np.float32)}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads["stem"])) > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), model_state, problem.model_state)
    assert len(jax.tree.leaves(moved)) == 2 * 5
    assert all(jax.tree.leaves(moved))
    computed = jax.make_jaxpr(problem.loss_fn)(
        problem.params, problem.model_state, (images, labels)
    )
    assert ("bf16" in str(computed)) == (dtype is not None)


def test_bottleneck_blocks_run():
    model = filled(
        lambda: resnet.BottleneckResNet((1, 1), num_classes=5, width=2, rngs=nnx.Rngs(0))
    )
    logits = nnx.jit(lambda model, x: model(x))(model, jnp.ones((2, 16, 16, 3)))
    assert logits.shape == (2, 5)
    assert jnp.isfinite(logits).all()


def test_the_maximum_is_that_of_the_image():
    """Rectified inputs: zeros around them are as good as minus infinity."""
    model = filled(lambda: resnet.BottleneckResNet((), num_classes=2, width=2, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), jnp.float32)
    y = np.maximum(nnx.clone(model).stem(x), 0)[0]
    around = lambda k: slice(max(2 * k - 1, 0), 2 * k + 2)
    maxima = [y[around(r), around(c)].max(axis=(0, 1)) for r in range(2) for c in range(2)]
    np.testing.assert_allclose(model(x), model.head(np.mean(maxima, axis=0)[None]), rtol=1e-5)
