"""Names for the types that annotations share."""

from typing import Any

from jax.typing import ArrayLike

PyTree = Any
"""Nested containers (dicts, tuples, ...) of arrays."""

Scalar = ArrayLike
"""A Python number or an array of rank 0."""
