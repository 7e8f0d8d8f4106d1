"""Smaller pushes: what of them arrives, how many bytes it takes, and a memory for what does not.

A compression says what becomes of a leaf. On a worker, where its memory is the worker's own, it is
the `transform=` of `sim.LocalSteps` or `sim.OneGradient`.
"""

import fractions
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree

__all__ = [
    "Compression",
    "ErrorFeedbackState",
    "bfloat16",
    "compress",
    "error_feedback",
    "int8",
    "push_bytes",
    "top_k",
]

_INDEX = 4  # bytes of an int32
_SCALE = 4  # bytes of a float32


@document_fields
class Compression(NamedTuple):
    """What is sent of a leaf; one of one's own goes wherever those of this module go.

    Attributes:
      of_leaf: What arrives of an array, in its shape and dtype.
      num_bytes: Of an array with a `size` and a `dtype`, the bytes that are sent.
    """

    of_leaf: Callable[[chex.Array], jax.Array]
    num_bytes: Callable[[Any], int]


def top_k(fraction: float) -> Compression:
    """Sends the entries of each leaf that are largest in size, with their indices.

    Of n entries ceil(fraction·n) are sent, those that are not finite first; the others arrive as
    zeros. That is no estimate of the push: without `error_feedback` training may go astray.

    Args:
      fraction: In (0, 1].

    Returns:
      A compression; an entry takes its own bytes and 4 for an int32 index.

    Raises:
      ValueError: For a fraction out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import dcasgd_jax as dc
      >>> print(dc.compressions.top_k(0.5).of_leaf(jnp.array([1.0, -3.0, 2.0, 0.5])))
      [ 0. -3.  2.  0.]
    """
    checks.check_positive("fraction", fraction, most=1.0)
    # As it is written: 0.07 of 100 entries is 7, though the double that is nearest is above it.
    exact = fractions.Fraction(repr(float(fraction)))
    count = lambda leaf: math.ceil(exact * leaf.size)

    def of_leaf(leaf):
        flat = jnp.ravel(leaf)
        if not flat.size:
            return jnp.asarray(leaf)
        length = jnp.where(jnp.isfinite(flat), jnp.abs(flat), jnp.inf)
        _, kept = jax.lax.top_k(length, count(flat))
        return jnp.zeros_like(flat).at[kept].set(flat[kept]).reshape(jnp.shape(leaf))

    return Compression(of_leaf, lambda leaf: count(leaf) * (leaf.dtype.itemsize + _INDEX))


def int8() -> Compression:
    r"""Sends one of 255 equidistant values for each entry, and a float32 scale for each leaf.

    .. math:: x \to s \, round(x / s), \quad s = \max |x| / 127

    Rounded to the nearest, always the same way. A leaf with an entry that is not finite arrives as
    NaN, one without an entry of at least 1.5e-36 as zeros: its scale is no normal float32.

    Returns:
      A compression; an entry takes 1 byte.

    Example:
      >>> import jax.numpy as jnp
      >>> import dcasgd_jax as dc
      >>> print(dc.compressions.int8().of_leaf(jnp.array([127.0, 2.4, -0.6])))
      [127.   2.  -1.]
    """

    def of_leaf(leaf):
        leaf = jnp.asarray(leaf)
        wide = trees.widened(leaf)  # in float16 the scale of 65504 is one too large
        scale = jnp.max(jnp.abs(wide), initial=0.0) / 127
        # Said here, since not all devices flush what is smaller to 0.
        scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, 0.0, scale)
        spoilt = jnp.where(jnp.isfinite(scale), 0.0, jnp.nan)
        rounded = jnp.round(trees.quotient(wide, scale)) * scale
        return (rounded + spoilt).astype(leaf.dtype)

    return Compression(of_leaf, lambda leaf: leaf.size + _SCALE)


def bfloat16() -> Compression:
    """Sends each entry rounded to bfloat16.

    Of float16 the largest, above 65408, round to what float16 has not: they arrive as infinity.

    Returns:
      A compression; an entry takes 2 bytes.

    Example:
      >>> import jax.numpy as jnp
      >>> import dcasgd_jax as dc
      >>> print(dc.compressions.bfloat16().of_leaf(jnp.array([1.0, 1.001])))
      [1. 1.]
    """

    def of_leaf(leaf):
        leaf = jnp.asarray(leaf)
        # Wide, since float16 has fewer exponents. Not two casts, which XLA may take for none.
        rounded = jax.lax.reduce_precision(trees.widened(leaf), exponent_bits=8, mantissa_bits=7)
        return rounded.astype(leaf.dtype)

    return Compression(of_leaf, lambda leaf: 2 * leaf.size)


def compress(compression: Compression) -> optax.GradientTransformationExtraArgs:
    """Compresses every push and forgets what was left out.

    Args:
      compression: What is sent of a leaf.

    Returns:
      A transformation without a state; unknown extra arguments are ignored.

    Raises:
      TypeError: If it is no compression.

    Example:
      >>> import dcasgd_jax as dc, optax
      >>> from dcasgd_jax import sim
      >>> worker = sim.OneGradient(transform=dc.compressions.compress(dc.compressions.int8()))
    """
    _check(compression)

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        return trees.map_updates(compression.of_leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


@document_fields
class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`.

    Attributes:
      left: Like params, at least float32: what has not been sent yet.
    """

    left: PyTree


def error_feedback(compression: Compression) -> optax.GradientTransformationExtraArgs:
    r"""Compresses every push together with what earlier ones have left out.

    .. math:: p \leftarrow e + \Delta, \quad \text{sent: } C(p), \quad e \leftarrow p - C(p)

    An entry that is not finite is sent as the compression has it, and then forgotten.

    Args:
      compression: C, what is sent of a leaf.

    Returns:
      A transformation; unknown extra arguments are ignored. Of several workers each needs a state
      of its own, as the `transform=` of `sim.LocalSteps` and `sim.OneGradient` has.

    Raises:
      TypeError: If it is no compression.

    Source: Seide et al., *1-Bit Stochastic Gradient Descent*, Interspeech 2014; Karimireddy et al.,
    *Error Feedback Fixes SignSGD*, ICML 2019, algorithm 2.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compressions.error_feedback(dc.compressions.top_k(0.5))
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     sent, state = tx.update(jnp.array([2.0, 1.5]), state)
      ...     print(sent)
      [2. 0.]
      [0. 3.]
      [4. 0.]
    """
    _check(compression)

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        due = trees.map_accumulators(jnp.add, state.left, updates)
        sent = trees.map_updates(lambda g, p: compression.of_leaf(p), updates, due)
        left = trees.map_accumulators(
            lambda p, s: jnp.where(jnp.isfinite(p - s), p - s, 0.0), due, sent
        )
        return sent, ErrorFeedbackState(left)

    return optax.GradientTransformationExtraArgs(
        lambda params: ErrorFeedbackState(trees.zeros_to_accumulate(params)), update_fn
    )


def push_bytes(params: PyTree, compression: Compression | None = None) -> int:
    """Bytes of one push, for `sim.Links(push_bytes=)`.

    Args:
      params: Arrays, or their shapes and dtypes.
      compression: What is sent of a leaf. Default: all of it.

    Returns:
      The sum over the leaves, without any headers.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> params = {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10)}
      >>> dc.compressions.push_bytes(params)
      440
      >>> dc.compressions.push_bytes(params, dc.compressions.top_k(0.1))
      88
    """
    if compression is not None:
        _check(compression)
    shapes = [
        jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))
        for leaf in jax.tree.leaves(params)
    ]
    whole = lambda leaf: leaf.size * leaf.dtype.itemsize
    return sum((whole if compression is None else compression.num_bytes)(leaf) for leaf in shapes)


def _check(compression: Any) -> None:
    is_one = lambda value: isinstance(value, Compression)
    wanted = "a compression, such as dc.compressions.top_k(0.1)"
    checks.check_kind("compression", compression, is_one, wanted)
