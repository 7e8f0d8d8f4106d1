"""A server as named arrays and facts: what a checkpoint holds."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from dcasgd_jax.runtime import identity
from dcasgd_jax.runtime.bookkeeping import Counts
from dcasgd_jax.runtime.identity import Identity
from dcasgd_jax.runtime.lives import Life
from dcasgd_jax.runtime.server import ParameterServer
from dcasgd_jax.sim import leaves
from dcasgd_jax.sim.checkpoints import store as stores
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint

_NUMBERS = ("next_number", "pulled_version", "last_event")


class Place(NamedTuple):
    """Where a server is saved, and of which run what is there must be."""

    checkpoint: Checkpoint
    run: Identity

    def check(self, facts: dict[str, Any]) -> None:
        """Raises ValueError, saying in which respect, if a checkpoint is of another run."""
        identity.check(facts["run"], self.run, self.checkpoint.path)


def pack(server: ParameterServer, run: Identity) -> stores.Saved:
    """All that the server needs to go on; only when no push waits for others."""
    if not server.between_updates:
        raise ValueError("A server is saved between two updates, not in the middle of one.")
    states = [leaves.to_host(leaf) for leaf in jax.tree.leaves(server.model.state)]
    return stores.Saved(
        arrays={
            **{f"state {k}": array for k, array in enumerate(states)},
            **server.model.states.arrays(),
            **{f"event {name}": column for name, column in server.history.arrays().items()},
            **{
                f"worker {name}": np.array([getattr(w, name) for w in server.workers], np.int64)
                for name in _NUMBERS
            },
            "worker pulled_time": np.array([w.pulled_time for w in server.workers], np.float64),
        },
        facts={
            "run": run,
            "version": server.version,
            "seconds": server.seconds,
            "counts": dataclasses.asdict(server.counts),
            "lives": [list(life) for life in server.lives],
        },
    )


def restore(server: ParameterServer, saved: stores.Saved) -> None:
    """Makes a new server go on from a checkpoint of its run.

    Raises:
      ValueError: If the run is further than this server is to take it.
    """
    arrays, facts = saved
    if facts["version"] > server.settings.num_updates:
        raise ValueError(
            f"The saved run is at version {facts['version']} already, past num_updates="
            f"{server.settings.num_updates}: ask for more updates, or pass another directory."
        )
    like, structure = jax.tree.flatten(server.model.state)
    state = [leaves.to_device(arrays[f"state {k}"], leaf) for k, leaf in enumerate(like)]
    server.model.states.restore(arrays)
    for name in _NUMBERS:
        for worker, value in zip(server.workers, arrays[f"worker {name}"].tolist(), strict=True):
            setattr(worker, name, value)
    for worker, pulled in zip(server.workers, arrays["worker pulled_time"].tolist(), strict=True):
        worker.pulled_time = pulled
    columns = {k.removeprefix("event "): v for k, v in arrays.items() if k.startswith("event ")}
    server.go_on(
        structure.unflatten(state), facts["version"], facts["seconds"], columns,
        Counts(**facts["counts"]), [Life(*life) for life in facts["lives"]],
    )  # fmt: skip
