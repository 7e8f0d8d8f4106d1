"""Events: what a protocol returns."""

from typing import NamedTuple

import numpy as np


class Events(NamedTuple):
    """Pushes in the order in which the server receives them; all arrays are [num_events].

    The fields mean what they mean in `Schedule`; None is the default there.
    """

    worker: np.ndarray  # who pushes
    read_version: np.ndarray  # the version its gradient was taken at
    version: np.ndarray  # the server's version when the push arrives
    time: np.ndarray  # when it arrives, simulated seconds
    applied: np.ndarray | None = None  # whether the server uses it
    batch: np.ndarray | None = None  # the event that it repeats, or itself
    corrupt: np.ndarray | None = None  # whether it arrives as NaN
    read_time: np.ndarray | None = None  # when the worker pulled
