"""Where the members of a sweep run: in groups, over devices and host threads."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcasgd_jax.typing import PyTree

AXIS = "members"
SPREAD = PartitionSpec(AXIS)
# Numbers that a CPU core keeps close: larger groups of members were measured to be slower.
CLOSE_NUMBERS = 10_000


class Layout(NamedTuple):
    """Who runs where: groups of members, each spread over all devices, started by some threads."""

    mesh: Mesh
    groups: np.ndarray  # int [num_groups, size of a group]; the last ones may repeat a member
    num_threads: int


def make_layout(
    num_members: int, devices: Sequence[Any] | None, at_once: int | None, num_numbers: int
) -> Layout:
    """Spreads members over devices and, on the CPU, the cores that are left over threads."""
    devices = list(jax.local_devices() if devices is None else devices)[:num_members]
    on_cpu = devices[0].platform == "cpu"
    num_threads = max(1, num_cores() // len(devices)) if on_cpu else 1
    of_thread = math.ceil(num_members / (num_threads * len(devices)))
    if at_once is None:
        at_once = max(1, CLOSE_NUMBERS // max(num_numbers, 1)) if on_cpu else num_members
    # Every thread has something to do, in groups of one size, so that there is one program.
    at_once = math.ceil(of_thread / math.ceil(of_thread / at_once))
    size = at_once * len(devices)
    num_groups = math.ceil(num_members / size)
    groups = np.minimum(np.arange(num_groups * size), num_members - 1).reshape(-1, size)
    return Layout(Mesh(np.asarray(devices), (AXIS,)), groups, min(num_threads, num_groups))


def num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def put(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """`tree` on the devices, spread over them or the same on all."""
    return jax.device_put(tree, NamedSharding(mesh, spec))
