"""Leaves of a state as NumPy arrays of their own: named, described, compared, and put back."""

import hashlib
import math
from collections.abc import Iterable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.typing import PyTree

_PIECE = 1 << 24  # bytes that are hashed at a time


def to_host(leaf: jax.Array) -> np.ndarray:
    """A copy on the host; of a typed PRNG key, its bits."""
    # The copy on the device first: on the CPU the NumPy array is a view of it, and a view of the
    # leaf itself would be in the way when the leaf is donated.
    return np.asarray(jax.device_get(jnp.copy(_bits(leaf))))


def to_device(value: np.ndarray, like: jax.Array) -> jax.Array:
    """What `to_host` took off: of the kind and at the place of `like`, in memory of its own."""
    array = jnp.copy(jnp.asarray(value))
    if is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jax.device_put(array, like.sharding) if like.committed else array


def numbers_by_name(tree: PyTree, leading: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Each number of a tree by its name, in words that all trackers take, such as "accuracy/0".

    Args:
      tree: Of arrays [*leading, ...].
      leading: Axes of a number: it becomes an array of that many.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        for index in np.ndindex(np.shape(leaf)[len(leading) :]):
            at = "".join(f"/{i}" for i in index)
            found[f"{name}{at}"] = np.asarray(leaf)[(..., *index)].ravel()
    return found


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key, as `jax.random.key` makes them."""
    return jnp.issubdtype(jax.dtypes.result_type(leaf), jax.dtypes.prng_key)


def describe(leaf) -> str:
    """Dtype and shape of an array or of a `ShapeDtypeStruct`."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def describe_tree(tree: PyTree, root: str) -> dict[str, str]:
    """Dtype and shape of every leaf by its name, such as `params['w']`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {root + jax.tree_util.keystr(path): describe(leaf) for path, leaf in leaves}


def digest(arrays: Iterable[np.ndarray]) -> str:
    """A short fingerprint of the values, dtypes and shapes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(describe(array).encode())
        total.update(to_bytes(array).data)
    return as_digest(total)


def as_digest(total) -> str:
    """What a hash has come to, marked as something that can be compared but not read."""
    return f"#{total.hexdigest()[:16]}"


def is_digest(text) -> bool:
    """Whether this is what `digest` returns."""
    return isinstance(text, str) and text.startswith("#")


def digest_tree(tree: PyTree) -> str:
    """A short fingerprint of the values on a tree."""
    return digest(to_host(leaf) for leaf in jax.tree.leaves(tree))


def digest_rows(leaf: Any) -> str:
    """As `digest`, of one array with a leading axis that may be large: in threads, and in pieces.

    No more than some pieces are copied, whether the array lies elsewhere than on the host or its
    elements are not in a row.
    """
    rows = _bits(leaf) if isinstance(leaf, jax.Array) else leaf
    if isinstance(rows, jax.Array) and all(device.platform == "cpu" for device in rows.devices()):
        rows = np.asarray(rows)  # a view
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    step = max(_PIECE // max(row_bytes, 1), 1)

    def hashed(start: int) -> bytes:
        return hashlib.sha256(to_bytes(np.asarray(rows[start : start + step])).data).digest()

    total = hashlib.sha256(describe(leaf).encode())
    with futures.ThreadPoolExecutor() as pool:
        # Threads of their own do not see the caller's `enable_x64`, by which jax would slice.
        each = map if isinstance(rows, jax.Array) else pool.map
        for piece in each(hashed, range(0, len(rows), step)):
            total.update(piece)
    return as_digest(total)


def to_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, uint8; a view if its elements lie in a row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
