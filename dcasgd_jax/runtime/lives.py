"""The lives of a server: each goes on from a version that the one before it had saved."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Life(NamedTuple):
    """One process of the server, or of its predecessors in the same directory of checkpoints."""

    name: int  # random, below 2**64
    first_version: int  # what it began with, and the last one of the life before it


def begin(before: Iterable[Life] = (), version: int = 0) -> tuple[Life, ...]:
    """The lives of a new server: those that a checkpoint names, cut at its version, and its own."""
    return (*before, Life(int.from_bytes(os.urandom(8), "little"), version))


def contain(lives: Sequence[Life], name: int, version: int) -> bool:
    """Whether a version of a life belongs to this history, rather than to a part rolled back."""
    followers = [*(life.first_version for life in lives[1:]), None]
    return any(
        life.name == name and life.first_version <= version and (end is None or version <= end)
        for life, end in zip(lives, followers, strict=True)
    )
