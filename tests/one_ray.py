"""A lock: cores are few, and tests that start Ray may run in several processes."""

import contextlib
import fcntl
import os
import pathlib
import tempfile

import pytest


@contextlib.contextmanager
def at_a_time():
    """Inside the block, no other test of this user has a Ray; and Ray reports to nobody."""
    path = pathlib.Path(tempfile.gettempdir()) / f"dcasgd-jax-tests-{os.getuid()}.lock"
    with path.open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
