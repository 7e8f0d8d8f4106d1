"""What a server is told, what it counts and what it knows of its workers."""

import collections
import dataclasses
from typing import NamedTuple

import optax

from dcasgd_jax.schedules import protocols
from dcasgd_jax.sim.program import Metric, ModelStatePolicy

_KEPT_INCIDENTS = 1000


class Settings(NamedTuple):
    """What a server does."""

    tx: optax.GradientTransformation
    num_workers: int
    num_updates: int
    protocol: protocols.Protocol = protocols.Asynchronous()
    per_push: optax.GradientTransformation | None = None
    metrics: tuple[Metric, ...] = ()
    model_state_policy: ModelStatePolicy = "none"


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


class Incidents:
    """The newest incidents: however many there are, memory is bounded."""

    def __init__(self):
        self.total = 0
        self._newest: collections.deque[Incident] = collections.deque(maxlen=_KEPT_INCIDENTS)

    def add(self, incident: Incident) -> None:
        """One more."""
        self.total += 1
        self._newest.append(incident)

    def since(self, number: int) -> list[Incident]:
        """Those after the first `number`, as far as they are still kept."""
        new = max(self.total - number, 0)
        return list(self._newest)[-new:] if new else []


@dataclasses.dataclass
class KnownWorker:
    """What a server knows of one worker."""

    next_number: int = 0  # the gradient that is expected next, at least
    pulled_version: int = 0
    pulled_time: float = 0.0  # seconds since the start of the run
    last_event: int = -1  # of its newest push, if that is in the history
    refused: int = 0  # its newest pushes in a row that were not finite
    first_refused: tuple[int, int] = (-1, -1)  # event and number of the first of them
    joined: bool = False  # in this life of the server
    live: bool = True
