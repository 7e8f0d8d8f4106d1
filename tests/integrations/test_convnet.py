"""The small network: the same as with XLA's convolutions, and without any of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcasgd_jax import sim
from dcasgd_jax.integrations import convnet
from dcasgd_jax.integrations import nnx as dc_nnx

IMAGES = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    found = convnet.ConvNet(widths=(4, 6, 8), rngs=nnx.Rngs(1))
    rng = np.random.default_rng(2)
    draw = lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)
    nnx.update(found, jax.tree.map(draw, nnx.state(found, nnx.Param)))
    return found


def by_xla(model, images):
    """Standardised by NumPy, convolved by XLA."""
    x = jnp.asarray(images)
    for layer, size in zip(model.convolutions, (4, 3, 3), strict=True):
        kernel = np.asarray(layer.kernel[...], np.float64)
        kernel = kernel - kernel.mean(axis=0)
        kernel *= np.sqrt(2 / kernel.shape[0]) / kernel.std(axis=0) * np.asarray(layer.scale[...])
        kernel = kernel.reshape(size, size, -1, kernel.shape[1]).astype(np.float32)
        padding = [((size - 1) // 2, (size - 2) // 2)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), padding, dimension_numbers=numbers
        )
        x = nnx.relu(convolved + layer.bias[...][None, None, None])
    # The last axis of the network is the batch: channels come before places.
    flat = x.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return flat @ model.head.kernel[...] + model.head.bias[...][None]


def test_it_is_what_xla_convolves(model):
    np.testing.assert_allclose(model(IMAGES), by_xla(model, IMAGES), rtol=2e-4, atol=2e-4)


def test_gradients_are_those_of_xla(model):
    graph, params = nnx.split(model, nnx.Param)
    ours = jax.grad(lambda p: (nnx.merge(graph, p)(IMAGES) ** 2).sum())(params)
    theirs = jax.grad(lambda x: (by_xla(model, x) ** 2).sum())(jnp.asarray(IMAGES))
    found = jax.grad(lambda x: (model(x) ** 2).sum())(jnp.asarray(IMAGES))
    np.testing.assert_allclose(found, theirs, rtol=2e-3, atol=2e-3 * np.abs(theirs).max())
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(ours))


def test_the_parameters_are_as_said():
    model = convnet.ConvNet(rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 68_698
    np.testing.assert_array_equal(model(IMAGES), np.zeros((5, 10)))  # the head begins at zero


def test_there_is_no_convolution_so_the_compiled_loop_is_chosen(model):
    def loss(model, batch):
        return -jax.nn.log_softmax(model(batch["images"]))[:, 0].mean()

    problem = dc_nnx.split_model(model, loss)
    text = str(jax.make_jaxpr(problem.loss_fn)(problem.params, {"images": jnp.asarray(IMAGES)}))
    assert "dot_general" in text
    assert "conv_general" not in text
    schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=4, seed=0)
    batches = {"images": np.stack([IMAGES] * 4)}
    result = sim.simulate(problem, optax.sgd(0.1), schedule, batches)
    assert result.losses[-1] < result.losses[0]


def test_bfloat16_computes_and_float32_comes_out(model):
    half = convnet.ConvNet(widths=(4, 6, 8), dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    nnx.update(half, nnx.state(model, nnx.Param))
    found, wanted = half(IMAGES), model(IMAGES)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 32, 32, 1), (2, 3, 32, 32)])
def test_other_images_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"images must be \[batch, 32, 32, 3\]"):
        model(jnp.zeros(shape))
