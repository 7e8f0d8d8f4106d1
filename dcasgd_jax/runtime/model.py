"""What a server holds on its device: parameters and optimizer state, updated in place."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax import transforms
from dcasgd_jax.runtime import admission, step
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.layout import Layout, Message
from dcasgd_jax.runtime.model_states import ModelStates
from dcasgd_jax.runtime.shards import Part
from dcasgd_jax.sim import chain_order
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


class Taken(NamedTuple):
    """What a push that is taken came with."""

    gradient: list[np.ndarray]  # its leaves, as they travelled
    model_state: Message


class Model:
    """Parameters, optimizer state and backups of a server.

    Args:
      begins: The initial parameters and model state, copied.
      settings: Of the server.
      layout: Of the messages.
      publish: Makes of a message with parameters, which are about to change, what workers are sent.

    Raises:
      ValueError: If pushes cannot be compensated after a mean, a compensation stands in the wrong
        place, or the optimizer was made for another number of workers.
    """

    def __init__(
        self,
        begins: Part,
        settings: Settings,
        layout: Layout,
        publish: Callable[[Message], Any],
    ):
        self._layout, self._publish, self._metrics = layout, publish, settings.metrics
        self._program = make_program(begins.params, settings, layout)
        self.state = step.initial_state(self._program, begins.params, settings.num_workers)
        self.states = ModelStates(
            begins.model_state, settings.model_state_policy, settings.num_workers
        )
        kept = {"opt_state": self.state.opt_state, "push_state": self.state.push_state}
        self._remembering = [
            n for n, s in kept.items() if isinstance(s, transforms.RememberPullsState)
        ]
        self._on_wire = None  # the params in the dtypes of the wire, where those are others
        self._published = None  # of this version, once somebody has pulled it
        self._finite: bool | None = None  # whether the params of this version are, once asked

    def replace_state(self, state: programs.SimState) -> None:
        """Takes another state, of a checkpoint."""
        self.state, self._on_wire, self._published, self._finite = state, None, None, None

    def receive(
        self, gradient: Sequence[np.ndarray], worker: int, staleness: int, num_pushes: int,
        *, updates: bool,
    ) -> dict[str, float]:  # fmt: skip
        """Hands a gradient to the transformations; returns what was measured.

        Args:
          gradient: Its leaves, as they travelled.
          worker: Whose.
          staleness: In versions.
          num_pushes: With how many it is averaged, itself included, if it `updates`.
          updates: Whether the parameters change now.
        """
        return self._receive(self._program, gradient, worker, staleness, num_pushes, updates)

    def update_without_push(self, num_pushes: int) -> None:
        """The mean of the pushes so far is due: adds one of zeros, which nothing transforms."""
        zeros = [np.zeros(leaf.shape, leaf.wire_dtype) for leaf in self._layout.leaves]
        self._receive(self._program._replace(per_push=None), zeros, 0, 0, num_pushes, True)

    def record_pull(self, worker: int) -> None:
        """A worker pulls, and not right after its own push: renews its backup, if there are any."""
        for name in self._remembering:
            state = getattr(self.state, name)
            recorded = step.record_pull(state, np.int32(worker), self.state.params)
            self.state = self.state._replace(**{name: recorded})

    def params_are_finite(self) -> bool:
        """Whether all of them are; looked at once per version, if somebody asks."""
        if self._finite is None:
            self._finite = bool(step.params_are_finite(self.state.params))
        return self._finite

    def params_to_send(self) -> Any:
        """What workers are sent of this version; published once, if somebody pulls it."""
        if self._published is None:
            params = self.state.params
            arrays = self._layout.structure.flatten_up_to(params)
            if self._layout.casts:
                arrays = self._on_wire or step.to_wire(self._layout, params)
            self._published = self._publish(self._layout.pack(arrays))
        return self._published

    def _receive(self, program, gradient, worker, staleness, num_pushes, updates):
        event = step.make_event(self._program, worker, staleness, num_pushes, updates)
        self.state, metrics, self._on_wire = step.compiled_receive(
            program, self._layout, self.state, event, step.on_device(gradient)
        )
        if updates:
            self._published = self._finite = None
            self.states.update()
        return {name: float(getattr(metrics, name)) for name in self._metrics}


def check(params: PyTree, settings: Settings, layout: Layout) -> None:
    """Raises what a server with these would raise, without making one."""
    admission.make_server(settings.protocol, settings.num_workers)
    make_program(params, settings, layout)


def make_program(params: PyTree, settings: Settings, layout: Layout) -> programs.Program:
    """What the compiled step of a server does; raises what `Model` does."""
    decides = settings.protocol.server(settings.num_workers)
    asked = programs.Program(
        loss_fn=_no_loss,
        tx=settings.tx,
        per_push=settings.per_push,
        flow="mean" if decides.pushes_per_update > 1 else "each",
        mixes=decides.mixes_versions,
        metrics=settings.metrics,
    )
    program = step.with_memory(asked, layout, settings.num_workers)
    chain_order.check_server(params, program.tx, None, program.per_push)
    return program


def _no_loss(params: PyTree, batch: PyTree) -> Any:
    raise TypeError("A server computes no gradients.")
