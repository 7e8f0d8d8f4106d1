"""How a tree of arrays travels: raw bytes, large leaves alone and small ones side by side."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.typing import PyTree

Message = Sequence[np.ndarray]
"""The sections of a message, each uint8 [num_bytes]."""

_ALIGNMENT = 64  # bytes; what XLA wants of memory that it reads without copying
_LARGE = 2**16  # bytes from which copying a leaf costs more than sending it alone


class Leaf(NamedTuple):
    """Where one leaf lies."""

    name: str  # such as ['w']
    shape: tuple[int, ...]
    dtype: str  # of the parameter
    wire_dtype: str  # as it travels
    section: int
    start: int  # first byte in its section

    @property
    def num_bytes(self) -> int:
        """As it travels."""
        return math.prod(self.shape) * jnp.dtype(self.wire_dtype).itemsize


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it is a static argument of jit
class Layout:
    """Where each leaf of a tree lies in a message; the same on both sides of the wire."""

    structure: Any
    leaves: tuple[Leaf, ...]
    section_bytes: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of a message."""
        return sum(self.section_bytes)

    @property
    def casts(self) -> bool:
        """Whether a leaf travels in another dtype than it has."""
        return any(leaf.dtype != leaf.wire_dtype for leaf in self.leaves)

    def shapes(self) -> PyTree:
        """The tree, as shapes and dtypes."""
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves]
        return self.structure.unflatten(leaves)

    def to_wire(self, tree: PyTree) -> list[jax.Array]:
        """The leaves of a tree in the dtypes of the wire; traceable."""
        leaves = zip(self.leaves, self.structure.flatten_up_to(tree), strict=True)
        return [jnp.asarray(array).astype(leaf.wire_dtype) for leaf, array in leaves]

    def from_wire(self, arrays: Sequence[jax.Array | np.ndarray]) -> PyTree:
        """The tree of such leaves, in the dtypes of the parameters; traceable."""
        leaves = zip(self.leaves, arrays, strict=True)
        return self.structure.unflatten([jnp.asarray(x).astype(leaf.dtype) for leaf, x in leaves])

    def pack(self, arrays: Sequence[jax.Array | np.ndarray]) -> list[np.ndarray]:
        """The message with leaves in the dtypes of the wire; large ones are views of the arrays."""
        small, *large = self.section_bytes
        message = [np.zeros(small, np.uint8), *(np.zeros(0, np.uint8) for _ in large)]
        for leaf, array in zip(self.leaves, arrays, strict=True):
            content = np.asarray(array).reshape(-1).view(np.uint8)
            if leaf.section:
                message[leaf.section] = content
                continue
            message[leaf.section][leaf.start : leaf.start + content.nbytes] = content
        return message

    def unpack(self, message: Message) -> list[np.ndarray]:
        """The leaves in a message, in the dtypes of the wire: views of it.

        Raises:
          ValueError: If its sections are not as long as the parameters say.
        """
        self._check_sizes(message)
        arrays = []
        for leaf in self.leaves:
            content = message[leaf.section][leaf.start : leaf.start + leaf.num_bytes]
            arrays.append(content.view(jnp.dtype(leaf.wire_dtype)).reshape(leaf.shape))
        return arrays

    def _check_sizes(self, message: Message) -> None:
        sizes: Any = "no bytes"
        if isinstance(message, list | tuple) and all(isinstance(x, np.ndarray) for x in message):
            sizes = tuple(section.nbytes for section in message)
            is_bytes = all(x.dtype == np.uint8 and x.ndim == 1 for x in message)
            if is_bytes and sizes == self.section_bytes:
                return
        raise ValueError(
            f"A message of {self.section_bytes} bytes was expected, but this one has {sizes}: the "
            "worker has other parameters than the server."
        )

    def describe(self) -> list[list[Any]]:
        """Name, shape, dtype and dtype on the wire of each leaf, as JSON can hold it."""
        facts = lambda leaf: [leaf.name, list(leaf.shape), leaf.dtype, leaf.wire_dtype]
        return [facts(leaf) for leaf in self.leaves]

    def digest(self) -> int:
        """A fingerprint of the description, below 2**64."""
        text = json.dumps(self.describe()).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    def check(self, description: list[list[Any]], who: str) -> None:
        """Raises ValueError, naming the first leaf that differs, unless it describes this."""
        own, given = ({leaf[0]: leaf[1:] for leaf in d} for d in (self.describe(), description))
        for name, facts in own.items():
            if name not in given:
                raise ValueError(f"{who} has no parameter {name}, but the server has.")
            for what, theirs, ours in zip(_FACTS, given[name], facts, strict=True):
                if theirs != ours:
                    raise ValueError(
                        f"{who} has another model: its parameter {name} has {what} "
                        f"{_words(theirs)}, but the server's has {what} {_words(ours)}."
                    )
        for name in given:
            if name not in own:
                raise ValueError(f"{who} has a parameter {name}, but the server has none.")
        if list(own) != list(given):
            raise ValueError(f"{who} has the server's parameters in another order.")


_FACTS = ("shape", "dtype", "dtype on the wire")


def _words(fact: Any) -> str:
    return str(tuple(fact) if isinstance(fact, list) else fact)


def make_layout(params: PyTree, wire_dtype: str | None = None) -> Layout:
    """The layout of messages for some parameters.

    Args:
      params: A tree of arrays, or of their shapes and dtypes.
      wire_dtype: "bfloat16" halves the messages; None sends every leaf as it is.

    Raises:
      ValueError: If there is nothing to send, or no such dtype.
      TypeError: If a leaf is no array of real floats.
    """
    if wire_dtype not in (None, "bfloat16"):
        raise ValueError(f'wire_dtype must be None or "bfloat16", got {wire_dtype!r}.')
    if not jax.tree.leaves(params):
        raise ValueError("There are no parameters to train.")
    for path, given in jax.tree_util.tree_leaves_with_path(params):
        dtype = jax.dtypes.result_type(given)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"Parameter {_name(path)} is {dtype}: only real floats can be trained.")
    return _lay_out(params, "", wire_dtype)


def make_layout_of_model_state(model_state: PyTree) -> Layout:
    """The layout of messages for a model state: any numbers, which travel as they are.

    Args:
      model_state: A tree of arrays, or of their shapes and dtypes.

    Raises:
      TypeError: If a leaf is no array of numbers.
    """
    for path, given in jax.tree_util.tree_leaves_with_path(model_state):
        dtype = jax.dtypes.result_type(given)
        if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
            raise TypeError(f"{_name(path, 'model_state')} is {dtype}: it has no bytes.")
    return _lay_out(model_state, "model_state", None)


def _name(path: Any, of: str = "") -> str:
    return of + jax.tree_util.keystr(path) or "(the whole tree)"


def _lay_out(tree: PyTree, of: str, wire_dtype: str | None) -> Layout:
    """Puts the leaves side by side, the large ones into sections of their own."""
    leaves, sections = [], [0]  # the first section is that of the small leaves
    for path, given in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jax.dtypes.result_type(given)
        sent = dtype.name if wire_dtype is None or dtype.itemsize <= 2 else wire_dtype
        leaf = Leaf(_name(path, of), tuple(np.shape(given)), dtype.name, sent, 0, 0)
        if leaf.num_bytes >= _LARGE:
            leaf = leaf._replace(section=len(sections))
            sections.append(leaf.num_bytes)
        else:
            leaf = leaf._replace(start=-(-sections[0] // _ALIGNMENT) * _ALIGNMENT)
            sections[0] = leaf.start + leaf.num_bytes
        leaves.append(leaf)
    return Layout(jax.tree.structure(tree), tuple(leaves), tuple(sections))
