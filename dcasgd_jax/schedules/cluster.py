"""The cluster that a protocol runs on: how long everything takes, and what goes wrong."""

from collections.abc import Sequence

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import faults as faults_
from dcasgd_jax.schedules import laws
from dcasgd_jax.schedules import links as links_


class Durations:
    """Seconds that something takes every worker, drawn from a law as far as they are asked for.

    Each worker has a random stream of its own: whatever the protocol and however long the run,
    worker m's j-th gradient takes the same time.
    """

    def __init__(self, law: laws.WorkerTimeLaw, num_workers: int, seed: Sequence[int]):
        law.check(num_workers)
        self._law = law
        self._seed = seed
        self._drawn = [np.zeros(0)] * num_workers

    def first(self, worker: int, count: int) -> np.ndarray:
        """Seconds that the first `count` ones of `worker` take; float64 [count]."""
        if len(self._drawn[worker]) < count:
            seed, *stream = self._seed
            generator = np.random.default_rng([seed, worker, *stream])
            self._drawn[worker] = self._law.times(worker, count, generator)
        return self._drawn[worker][:count]


class Cluster:
    """What `make_schedule` hands to `Protocol.schedule`.

    A worker's cycle: it pulls, the parameters travel down, it computes, the gradient travels up.

    Attributes:
      num_workers: M ≥ 1.
      compute: The compute times, `Durations`.
      faults: What goes wrong, a `FaultPlan`; `faults.any` says whether anything does.
      links: `Links` instead of laws of upload and download times, or None.
    """

    def __init__(
        self,
        law: laws.WorkerTimeLaw,
        num_workers: int,
        seed: int,
        *,
        upload: laws.WorkerTimeLaw | None = None,
        download: laws.WorkerTimeLaw | None = None,
        faults: Sequence[object] = (),
        links: links_.Links | None = None,
    ):
        laws.check_law("law", law)
        if links is not None:
            is_one = lambda value: isinstance(value, links_.Links)
            checks.check_kind("links", links, is_one, "sim.Links(...)")
            links.check(num_workers)
            if upload is not None or download is not None:
                raise ValueError("Give links=, or upload= and download=, but not both.")
        for name, given in (("upload", upload), ("download", download)):
            if given is not None:
                laws.check_law(name, given)
        self.num_workers = num_workers
        self.links = links
        self.faults = faults_.FaultPlan(faults, num_workers)
        self.compute = Durations(law, num_workers, [seed])
        self._upload = None if upload is None else Durations(upload, num_workers, [seed, 1])
        self._download = None if download is None else Durations(download, num_workers, [seed, 2])

    @property
    def undisturbed(self) -> bool:
        """Whether each worker's times below are all that matters: no faults, no links."""
        return not self.faults.any and self.links is None

    def download(self, worker: int, count: int) -> np.ndarray:
        """Seconds from each pull to the start of the computation; float64 [count]."""
        return self._travel(self._download, worker, count)

    def upload(self, worker: int, count: int) -> np.ndarray:
        """Seconds from the end of each computation to its arrival; float64 [count]."""
        return self._travel(self._upload, worker, count)

    def until_computed(self, worker: int, count: int) -> np.ndarray:
        """Seconds from each pull to the end of the computation; float64 [count]."""
        compute, download = self.compute.first(worker, count), self.download(worker, count)
        return download + compute if self._download else compute

    def cycle(self, worker: int, count: int) -> np.ndarray:
        """Seconds from each pull to the arrival of the push; float64 [count]."""
        computed, upload = self.until_computed(worker, count), self.upload(worker, count)
        return computed + upload if self._upload else computed

    def _travel(self, durations: Durations | None, worker: int, count: int) -> np.ndarray:
        if self.links is not None:
            raise ValueError(
                "Over links, how long a transfer takes depends on who else sends: where "
                "cluster.undisturbed is False, a protocol leaves the schedule to Protocol.schedule."
            )
        return durations.first(worker, count) if durations else np.zeros(count)
