"""Snapshot slots: where each version is kept while somebody may still read it.

Versions get slots as variables get registers: one is taken when a version comes to life and given
back after its last reader. The compiled step only sees slot numbers, so one step serves every
protocol, and memory is the largest number of versions alive at once.
"""

from typing import NamedTuple

import numpy as np


class Slots(NamedTuple):
    """Slots of the versions that each event touches."""

    current: np.ndarray  # int32 [num_events], slot of the server's version at the event
    read: np.ndarray  # int32 [num_events], slot of the version the gradient was taken at
    num_slots: int


def assign_slots(read_version: np.ndarray, version: np.ndarray) -> Slots:
    """Assigns a slot to every version, from its first event as the server's until its last use.

    Args:
      read_version: `[num_events]`, versions that the pushed gradients were taken at.
      version: `[num_events]`, the server's version at each event: 0, then up by 0 or 1.

    Returns:
      The slots. At each event the server's version is put into `current` *before* `read` is read.

    Example:
      >>> from dcasgd_jax.schedules.slots import assign_slots
      >>> import numpy as np
      >>> assign_slots(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 3])).read.tolist()
      [0, 0, 1, 0]
    """
    num_events = len(version)
    last_use = np.zeros(int(version[-1]) + 1, np.int64)
    np.maximum.at(last_use, read_version, np.arange(num_events))
    np.maximum.at(last_use, version, np.arange(num_events))
    # Versions in order of their last use: those to free after an event are a run of this list.
    by_last_use = np.argsort(last_use, kind="stable").tolist()
    free_until = np.searchsorted(last_use[by_last_use], np.arange(num_events), "right").tolist()
    slot_of_version: list[int] = []
    free: list[int] = []
    num_slots = freed = 0
    for event, current in enumerate(version.tolist()):
        if current == len(slot_of_version):
            if not free:
                free.append(num_slots)
                num_slots += 1
            slot_of_version.append(free.pop())
        for dead in by_last_use[freed : free_until[event]]:
            free.append(slot_of_version[dead])
        freed = free_until[event]
    slots = np.asarray(slot_of_version, np.int32)
    return Slots(current=slots[version], read=slots[read_version], num_slots=num_slots)
