"""Outer products against the Hessian: by definition in NumPy, and where theory knows the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from dcasgd_jax import diagnostics

LOSS = problems.softmax_loss
STRENGTHS = np.linspace(0.0, 1.5, 7)


errors_of = jax.jit(diagnostics.outer_product_error, static_argnums=0)


def problem(labels="data", num_samples=40, seed=0):
    """Softmax regression on generated images; the labels are given or drawn from the model."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(num_samples, 6)))
    params = jax.tree.map(lambda leaf: 5 * leaf, problems.softmax_params(np.float64))
    if labels == "model":
        logits = images @ params["w"] + params["b"][None]
        chosen = jax.random.categorical(jax.random.key(seed), logits)
    else:
        chosen = jnp.argmax(images[:, :3], axis=1)
    return params, (images, chosen)


def by_definition(params, batch):
    """G of each sample and H, from the formulas of softmax regression: b first, then w."""
    images, labels = (np.asarray(part) for part in batch)
    logits = images @ np.asarray(params["w"]) + np.asarray(params["b"])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = p - np.eye(3)[labels]
    inputs = np.hstack([np.ones((len(images), 1)), images])
    gradients = (inputs[:, :, None] * error[:, None, :]).reshape(len(images), -1)
    middle = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    hessian = np.einsum("na,nb,nij->aibj", inputs, inputs, middle) / len(images)
    size = gradients.shape[1]
    return np.einsum("ni,nj->nij", gradients, gradients), hessian.reshape(size, size)


@pytest.mark.parametrize("labels", ["data", "model"])
@pytest.mark.parametrize("matrix", ["full", "diagonal"])
def test_errors_are_those_of_the_definition(matrix, labels, x64):
    params, batch = problem(labels)
    found = getattr(errors_of(LOSS, params, batch, STRENGTHS), matrix)
    products, hessian = by_definition(params, batch)
    if matrix == "diagonal":
        products = np.einsum("nii->ni", products)
        hessian = np.diagonal(hessian)
    products, hessian = products.reshape(len(products), -1), hessian.ravel()
    square = lambda error: np.sum(error**2, axis=-1)
    mean, scale = products.mean(axis=0), square(hessian)
    for i, strength in enumerate(STRENGTHS):
        mse = square(strength * products - hessian).mean()
        bias = square(strength * mean - hessian)
        variance = strength**2 * square(products - mean).mean()
        np.testing.assert_allclose(found.mse[i], mse / scale, rtol=1e-10)
        np.testing.assert_allclose(found.bias_square[i], bias / scale, rtol=1e-10)
        np.testing.assert_allclose(found.variance[i], variance / scale, rtol=1e-10)
    np.testing.assert_allclose(found.hessian_square, scale, rtol=1e-10)


@pytest.mark.parametrize("labels", ["data", "model"])
def test_mse_is_bias_plus_variance_and_some_strength_below_1_beats_1(labels, x64):
    strengths = np.linspace(0.0, 1.5, 3001)
    for found in errors_of(LOSS, *problem(labels), strengths):
        np.testing.assert_allclose(found.mse, found.bias_square + found.variance, rtol=1e-12)
        assert found.mse[0] == 1  # of the estimate zero
        best = strengths[np.argmin(found.mse)]
        assert best == pytest.approx(float(found.best_strength), abs=0.00026)
        assert found.least_mse <= np.min(found.mse)
        assert 0 < found.best_strength < 1
        assert found.least_mse < found.mse[np.argmin(np.abs(strengths - 1))]


def test_labels_of_the_model_make_the_outer_product_unbiased(x64):
    found = errors_of(LOSS, *problem("model", num_samples=20_000), jnp.ones(1))
    for error in found:
        assert error.bias_square[0] < 0.02
        # |H|²/E|G|² then, which is below 1: Zheng et al.'s trade of bias for variance.
        assert float(error.best_strength) == pytest.approx(1 / (float(error.mse[0]) + 1), rel=0.05)


def test_equal_samples_have_no_variance_and_may_have_any_best_strength():
    loss = lambda w, x: 0.5 * jnp.mean((w - x) ** 2)  # H = 1
    for distance in (0.5, 2.0):
        found = errors_of(loss, jnp.asarray(0.0), jnp.full(3, distance), STRENGTHS)
        assert not np.any(found.full.variance)
        assert found.full.best_strength == distance**-2
        assert found.full.least_mse == 0


def test_undefined_is_nan_and_a_key_reaches_the_loss():
    line = lambda w, x: jnp.mean(w * x)
    found = diagnostics.outer_product_error(line, jnp.asarray(1.0), jnp.ones(3), STRENGTHS)
    assert np.isnan(found.full.mse).all()
    shifted = lambda w, x, key: line(w - jax.random.normal(key) * w**2, x)
    key = jax.random.key(0)
    found = errors_of(shifted, jnp.asarray(0.0), jnp.ones(3), STRENGTHS, key=key)
    assert found.full.hessian_square == pytest.approx(4 * float(jax.random.normal(key)) ** 2)


def test_refused():
    loss = lambda w, x: jnp.mean((w - x) ** 2)
    with pytest.raises(ValueError, match="leading axis of samples"):
        diagnostics.outer_product_error(loss, jnp.asarray(1.0), jnp.asarray(1.0), STRENGTHS)
    with pytest.raises(ValueError, match="strengths must have one axis, got 0"):
        diagnostics.outer_product_error(loss, jnp.asarray(1.0), jnp.ones(3), 0.5)
