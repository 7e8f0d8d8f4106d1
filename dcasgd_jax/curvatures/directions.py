"""What curvatures that know directions share: the size of a batch, and that of the memory."""

import math
import os
from typing import Any

import jax

from dcasgd_jax import checks, update_checks

_WHAT = (
    "the number of terms in the mean that this gradient is (images, or tokens that are not "
    "masked). sim.simulate passes it where an array of the batch has one entry per example, such "
    "as a label, and none can be tokens. Or write the number into the curvature"
)


def check_batch_size(batch_size: int | None) -> None:
    """Raises where `batch_size` is neither None nor a count."""
    if batch_size is not None:
        checks.check_count("batch_size", batch_size)


def needs(batch_size: int | None) -> tuple[tuple[str, str], ...]:
    """For `Curvature.needs`: the batch size, where it comes with each push."""
    return (("batch_size", _WHAT),) if batch_size is None else ()


def num_terms(of_curvature: int | None, batch_size: Any = None) -> Any:
    """The number of terms: that of the curvature, else the one that came with the push."""
    if of_curvature is not None:
        return of_curvature
    return update_checks.checked_batch_size(batch_size)


def memory_bytes() -> float:
    """What the first device can hold, or this machine; infinite where nobody says."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device and "bytes_limit" in of_device:
        return of_device["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf
