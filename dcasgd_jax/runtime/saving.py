"""A server as named arrays and facts: what a checkpoint holds, and which run it belongs to."""

import dataclasses
from typing import Any

import jax
import numpy as np

from dcasgd_jax.runtime.bookkeeping import Counts
from dcasgd_jax.runtime.lives import Life
from dcasgd_jax.runtime.server import ParameterServer
from dcasgd_jax.sim import leaves
from dcasgd_jax.sim.checkpoints import store as stores

_NUMBERS = ("next_number", "pulled_version", "last_event")


def pack(server: ParameterServer) -> stores.Saved:
    """All that the server needs to go on; only when no push waits for others."""
    if not server.between_updates:
        raise ValueError("A server is saved between two updates, not in the middle of one.")
    states = [leaves.to_host(leaf) for leaf in jax.tree.leaves(server.model.state)]
    return stores.Saved(
        arrays={
            **{f"state {k}": array for k, array in enumerate(states)},
            **{f"event {name}": column for name, column in server.history.arrays().items()},
            **{
                f"worker {name}": np.array([getattr(w, name) for w in server.workers], np.int64)
                for name in _NUMBERS
            },
            "worker pulled_time": np.array([w.pulled_time for w in server.workers], np.float64),
        },
        facts={
            "run": identity(server),
            "version": server.version,
            "seconds": server.seconds,
            "counts": dataclasses.asdict(server.counts),
            "lives": [list(life) for life in server.lives],
        },
    )


def restore(server: ParameterServer, saved: stores.Saved) -> None:
    """Makes a new server go on from a checkpoint of its run."""
    arrays, facts = saved
    like, structure = jax.tree.flatten(server.model.state)
    state = [leaves.to_device(arrays[f"state {k}"], leaf) for k, leaf in enumerate(like)]
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


def check(server: ParameterServer, facts: dict[str, Any], directory: Any) -> None:
    """Raises ValueError, saying in which respect, if a checkpoint is of another run."""
    saved, present = facts["run"], identity(server)
    for name in dict.fromkeys([*saved, *present]):
        if saved.get(name) != present.get(name):
            raise ValueError(
                f"{directory} holds a checkpoint of another run: {name} was "
                f"{_words(saved.get(name))} and is {_words(present.get(name))} now. Pass another "
                "directory, or delete this one to start over."
            )


def identity(server: ParameterServer) -> dict[str, Any]:
    """What makes two runs the same, in words that JSON can hold."""
    settings = server.settings
    return {
        "kind": "live run",
        "num_workers": settings.num_workers,
        "protocol": repr(settings.protocol),
        "metrics": list(settings.metrics),
        "parameters on the wire": server.layout.describe(),
        **leaves.describe_tree(server.model.state.opt_state, "opt_state"),
        **leaves.describe_tree(server.model.state.push_state, "push_state"),
    }


def _words(fact: Any) -> str:
    return "not there" if fact is None else str(fact)
