"""The formula itself: by hand, its identities, its symmetries, its precision."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import dcasgd_jax as dc

CHECKED = hypothesis.settings(deadline=None, derandomize=True, max_examples=30, database=None)
FLOATS = st.floats(-4, 4, allow_subnormal=False, width=32)


def random_tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"W": (4, 3), "b": (3,), "scale": ()}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def assert_bitwise(actual, expected):
    same_type = jax.tree.map(
        lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape), actual, expected
    )
    assert all(jax.tree.leaves(same_type))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), actual, expected)


def bits(array):
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


def test_by_hand(x64):
    # w = 1, w_stale = .5, g = .2, λ = 2, η = .1; one rounding per operation in float64.
    compensated = dc.compensated_gradient(0.2, 1.0, 0.5, strength=2.0)
    np.testing.assert_allclose(compensated, 0.24, rtol=1e-15)
    np.testing.assert_allclose(1.0 - 0.1 * compensated, 0.976, rtol=1e-15)


def test_adaptive_by_hand(x64):
    mean_square = dc.update_mean_square(jnp.zeros(()), 0.2, 0.95)
    np.testing.assert_allclose(mean_square, 0.002, rtol=1e-14)
    strength = dc.adaptive_strength(mean_square, 2.0, 1e-7)
    np.testing.assert_allclose(strength, 44.720241557931566, rtol=1e-14)
    new = 1.0 - 0.1 * dc.compensated_gradient(jnp.asarray(0.2), 1.0, 0.5, strength)
    np.testing.assert_allclose(new, 0.8905595168841368, rtol=1e-14)


def test_adaptive_by_hand_for_three_steps(x64):
    # m = 1/2, ε = 0, λ0 = 1, g = 1, 2, 4: MS = 1/2, 9/4, 73/8, exact in float64.
    mean_square, expected = jnp.zeros(()), (0.5, 2.25, 9.125)
    for grad, square in zip((1.0, 2.0, 4.0), expected, strict=True):
        mean_square = dc.update_mean_square(mean_square, grad, 0.5)
        assert float(mean_square) == square
        strength = dc.adaptive_strength(mean_square, 1.0, 0.0)
        np.testing.assert_allclose(strength, 1 / np.sqrt(square), rtol=1e-15)


def test_adaptive_floor_at_tiny_gradients(x64):
    # Far below |g| = 3.2e-4 the strength is λ0/sqrt(ε), whatever the gradient: MS/ε = 5e-9.
    mean_square = dc.update_mean_square(jnp.zeros(()), 1e-7, 0.95)
    strength = dc.adaptive_strength(mean_square, 2.0, 1e-7)
    np.testing.assert_allclose(strength, 2.0 / np.sqrt(1e-7), rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_nothing_to_compensate_is_bitwise_the_gradient(dtype):
    grads, params, stale = (random_tree(seed, dtype) for seed in range(3))
    assert_bitwise(dc.compensated_gradient(grads, params, params, 7.0), grads)
    assert_bitwise(dc.compensated_gradient(grads, params, stale, 0.0), grads)
    capped = dc.compensated_gradient(grads, params, stale, 7.0, max_curvature=0.0)
    assert_bitwise(capped, grads)


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, -0.0])
def test_special_gradients_pass_through_without_displacement(special):
    grad = jnp.asarray([special], jnp.float32)
    assert_bitwise(dc.compensated_gradient(grad, jnp.ones(1), jnp.ones(1), 2.0), grad)


def test_infinite_strength_leaves_zero_gradients_and_zero_displacements_alone():
    grad = jnp.asarray([0.0, 1.0, 0.0])
    params, stale = jnp.asarray([1.0, 1.0, 1.0]), jnp.asarray([0.0, 1.0, 1.0])
    np.testing.assert_array_equal(dc.compensated_gradient(grad, params, stale, jnp.inf), grad)


def test_infinite_strength_obeys_the_cap():
    grad, params, stale = jnp.asarray([1.0]), jnp.asarray([1.0]), jnp.asarray([0.0])
    capped = dc.compensated_gradient(grad, params, stale, jnp.inf, max_curvature=3.0)
    np.testing.assert_array_equal(capped, [4.0])


def test_strength_may_be_a_tree_of_arrays_or_scalars():
    grads, params, stale = (random_tree(seed) for seed in range(3))
    scalar = dc.compensated_gradient(grads, params, stale, 2.0)
    leafwise = {"W": jnp.full((4, 3), 2.0), "b": 2.0, "scale": jnp.asarray(2.0)}
    assert_bitwise(dc.compensated_gradient(grads, params, stale, leafwise), scalar)
    assert_bitwise(dc.compensated_gradient(grads, params, stale, jnp.asarray(2.0)), scalar)
    leafwise["b"] = 0.0
    uncompensated = dc.compensated_gradient(grads, params, stale, leafwise)
    assert_bitwise(uncompensated["b"], grads["b"])
    assert np.all(np.asarray(uncompensated["W"]) == np.asarray(scalar["W"]))


def test_sparse_gradients_of_none_stay_none():
    grads, params, stale = (random_tree(seed) for seed in range(3))
    expected = dc.compensated_gradient(grads, params, stale, 2.0)
    grads["b"] = None
    actual = dc.compensated_gradient(grads, params, stale, 2.0)
    assert actual["b"] is None
    assert_bitwise(actual["W"], expected["W"])
    squares = dc.update_mean_square(params, grads, 0.5)
    assert_bitwise(squares["b"], params["b"])


def test_another_structure_is_an_error():
    with pytest.raises(ValueError, match="structure"):
        dc.compensated_gradient({"a": jnp.ones(1)}, {"b": jnp.ones(1)}, {"a": jnp.ones(1)}, 1.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_gradients_are_compensated_in_float32(dtype):
    """λ g² = 1e-8 is 0 in float16; times a displacement of 1000 it is a tenth of g."""
    grad = jnp.asarray([1e-4], dtype)
    params, stale = jnp.asarray([1000.0], dtype), jnp.asarray([0.0], dtype)
    assert float(jnp.float16(1e-4) * jnp.float16(1e-4)) == 0.0
    compensated = dc.compensated_gradient(grad, params, stale, 1.0)
    assert compensated.dtype == dtype
    exact = float(grad[0]) + float(grad[0]) ** 2 * 1000
    # The result is rounded once to the 16-bit dtype.
    np.testing.assert_allclose(float(compensated[0]), exact, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_displacement_and_cap_do_not_overflow(dtype):
    """λ g² = 1e6 is infinite in float16, but its product with the displacement is not."""
    grad, params, stale = (jnp.asarray([x], dtype) for x in (1.0, 1.0, 0.99609375))
    compensated = dc.compensated_gradient(grad, params, stale, 1e6)
    np.testing.assert_allclose(  # one rounding, and float32 arithmetic below it
        float(compensated[0]), 1 + 1e6 * 0.00390625, rtol=float(jnp.finfo(dtype).eps)
    )


def test_mean_square_of_16_bit_gradients_is_float32():
    square = dc.update_mean_square(jnp.zeros(1), jnp.asarray([1e-4], jnp.float16), 0.5)
    assert square.dtype == jnp.float32
    # 1e-4 in float16 is 1.00016594e-4 (11 bits); its square is exact in float32.
    np.testing.assert_allclose(square, 0.5 * float(jnp.float16(1e-4)) ** 2, rtol=1e-6)


@pytest.mark.parametrize("strength", [2.0, jnp.float32(2.0)])
def test_float32_strength_does_not_promote(strength):
    grad = jnp.ones(2, jnp.bfloat16)
    assert dc.compensated_gradient(grad, grad * 2, grad, strength).dtype == jnp.bfloat16


@CHECKED
@hypothesis.given(grad=FLOATS, param=FLOATS, stale=FLOATS, lam=st.floats(0, 50))
def test_compensation_has_the_sign_of_the_displacement(grad, param, stale, lam):
    """It pulls towards the stale weight and is zero if there is nothing to pull."""
    with jax.enable_x64(True):
        added = float(dc.compensated_gradient(grad, param, stale, lam)) - grad
        expected = lam * grad**2 * (param - stale)
        # |λ g² Δ| <= 6400 and |g| <= 4: cancellation loses at most eps * 6404 absolutely.
        np.testing.assert_allclose(added, expected, rtol=0, atol=2e-12)
        capped = float(dc.compensated_gradient(grad, param, stale, lam, max_curvature=1.5)) - grad
        assert abs(capped) <= 1.5 * abs(param - stale) + 1e-14


def _step(grads, params, stale, *, lr, scale=1.0, decay=None):
    """One SGD step from zero mean square; decay None is DC-ASGD-c. `scale` multiplies the loss."""
    grads = jax.tree.map(lambda g: scale * g, grads)
    strength = 2.0
    if decay is not None:
        zeros = jax.tree.map(jnp.zeros_like, grads)
        squares = dc.update_mean_square(zeros, grads, decay)
        strength = dc.adaptive_strength(squares, 2.0, 0.0)
    compensated = dc.compensated_gradient(grads, params, stale, strength)
    return jax.tree.map(lambda p, g: p - lr * g, params, compensated)


def _difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_loss_rescaling_is_a_symmetry_of_the_adaptive_form_only(x64):
    """(loss x 10, η / 10) leaves DC-ASGD-a with ε = 0 unchanged, and changes DC-ASGD-c."""
    trees = [random_tree(seed, np.float64) for seed in range(3)]
    for decay, symmetric in ((0.95, True), (0.0, True), (None, False)):
        plain = _step(*trees, lr=0.1, decay=decay)
        rescaled = _step(*trees, lr=0.01, scale=10.0, decay=decay)
        # Numbers of order 1 to 10, a dozen float64 operations.
        assert (_difference(plain, rescaled) < 1e-13) == symmetric
        assert symmetric or _difference(plain, rescaled) > 0.1


def test_parameter_rescaling_is_a_symmetry_of_the_constant_form_only(x64):
    """w' = s w, g' = g / s, η' = s² η leaves DC-ASGD-c unchanged, and changes DC-ASGD-a."""
    s = 3.0
    grads, params, stale = (random_tree(seed, np.float64) for seed in range(3))
    times = lambda factor, tree: jax.tree.map(lambda leaf: factor * leaf, tree)
    for decay, symmetric in ((None, True), (0.0, False), (0.95, False)):
        plain = _step(grads, params, stale, lr=0.1, decay=decay)
        rescaled = _step(
            times(1 / s, grads), times(s, params), times(s, stale), lr=0.1 * s**2, decay=decay
        )
        difference = _difference(plain, times(1 / s, rescaled))
        assert (difference < 1e-13) == symmetric
        assert symmetric or difference > 0.1
