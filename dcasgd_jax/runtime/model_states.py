"""What a model keeps besides its parameters, such as the statistics of batch normalisation."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.runtime.layout import Layout, Message, make_layout_of_model_state
from dcasgd_jax.sim.program import ModelStatePolicy
from dcasgd_jax.typing import PyTree


class ModelStates:
    """Model states as a server hands them out and gets them back; it computes nothing with them.

    They are here under both policies, so that a worker that is restarted goes on with its own:
    "per_worker" is what a worker's last push came with, used or not; "server" is what the last push
    of an update came with. A push that is refused changes neither.

    Args:
      first: The initial model state; None if the model has none, or another server keeps it.
      policy: As in `sim.Problem`, or "none".
      num_workers: M ≥ 1.
    """

    def __init__(self, first: PyTree | None, policy: ModelStatePolicy, num_workers: int):
        self.layout: Layout | None = None
        self._per_worker = policy == "per_worker"
        self._states: list[Message] = [[]] * (num_workers if self._per_worker else 1)
        self._coming: Message = []  # with the next update
        if first is not None:
            self.layout = make_layout_of_model_state(first)
            leaves = zip(self.layout.leaves, jax.tree.leaves(first), strict=True)
            message = self.layout.pack([np.array(x, jnp.dtype(leaf.dtype)) for leaf, x in leaves])
            self._states = [message] * len(self._states)
            self._coming = self._states[0]

    def of(self, worker: int) -> Message:
        """What a worker begins its next gradient with; [] if there is nothing."""
        return self._states[worker if self._per_worker else 0]

    def check(self, message: Message) -> None:
        """Raises ValueError if what came with a push is no model state of this model."""
        if self.layout is not None:
            self.layout.unpack(message)
        elif len(message):
            raise ValueError("A push came with a model state, but this server keeps none.")

    def take(self, worker: int, message: Message, *, applied: bool) -> None:
        """A push has been taken, and counts or was too late."""
        message = [np.array(section) for section in message]  # theirs is memory of the network's
        if self._per_worker:
            self._states[worker] = message
        elif applied:
            self._coming = message

    def update(self) -> None:
        """There is a new version."""
        if not self._per_worker:
            self._states = [self._coming]

    def tree(self) -> PyTree | None:
        """The server's, or leaf [num_workers, ...]; None if there is none."""
        if self.layout is None:
            return None
        states = [self.layout.unpack(message) for message in self._states]
        stack = np.stack if self._per_worker else lambda of_all: of_all[0]
        leaves = [stack(of_all) for of_all in zip(*states, strict=True)]
        return self.layout.structure.unflatten(leaves)

    def arrays(self) -> dict[str, np.ndarray]:
        """Their bytes, by names for a checkpoint: uint8 [number of states, num_bytes]."""
        sections = enumerate(zip(*self._states, strict=True))
        return {f"model_state {k}": np.stack(of_all) for k, of_all in sections}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts back what `arrays` returned."""
        count = 0 if self.layout is None else len(self.layout.section_bytes)
        sections = [arrays[f"model_state {k}"] for k in range(count)]
        self._states = [[s[row] for s in sections] for row in range(len(self._states))]
        self._coming = self._states[0]
