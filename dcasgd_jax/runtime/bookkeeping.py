"""What a server is told, what it counts and what it knows of its workers."""

import dataclasses
from typing import NamedTuple

import optax

from dcasgd_jax.sim.schedules import protocols


class Settings(NamedTuple):
    """What a server does."""

    tx: optax.GradientTransformation
    num_workers: int
    num_updates: int
    protocol: protocols.ServerProtocol = protocols.Asynchronous()
    per_push: optax.GradientTransformation | None = None
    metrics: tuple[str, ...] = ()


@dataclasses.dataclass
class Counts:
    """What has happened besides applied pushes."""

    dropped: int = 0  # pushes too stale, or late behind a barrier
    non_finite: int = 0  # pushes refused because they held NaN or infinity
    unknown_version: int = 0  # pushes refused because the server had gone back to a checkpoint
    duplicates: int = 0  # deliveries of a push that was there already
    worker_restarts: int = 0  # workers that joined again
    server_restarts: int = 0  # times that the run went on from a checkpoint


class Incident(NamedTuple):
    """Something that a log should tell besides pushes."""

    time: float  # seconds since the start of the run
    kind: str
    worker: int | None
    version: int


@dataclasses.dataclass
class KnownWorker:
    """What a server knows of one worker."""

    next_number: int = 0  # the gradient that is expected next, at least
    pulled_version: int = 0
    pulled_time: float = 0.0  # seconds since the start of the run
    last_event: int = -1  # of its newest push
    joined: bool = False  # in this life of the server
    live: bool = True
