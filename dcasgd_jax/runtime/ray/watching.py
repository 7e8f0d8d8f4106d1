"""Watching a run from outside: how far it is, the log, and Ray's metrics."""

import collections
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ray.util import metrics as ray_metrics

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.loggers import JsonLines
from dcasgd_jax.runtime.bookkeeping import Counts
from dcasgd_jax.runtime.refusals import GivenUp
from dcasgd_jax.sim.problem import Recording
from dcasgd_jax.sim.watching import Windows

_WINDOW = 10.0  # seconds over which the rate is taken
_RECENT = 50  # pushes over which the loss is averaged
_BOUNDARIES = [0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5]
_MILLISECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]


@document_fields
class Status(NamedTuple):
    """How far a run is; what `progress` is called with.

    Attributes:
      version: Updates so far; of the slowest shard if there are several.
      num_updates: Updates in all.
      num_pushes: Pushes so far, refused ones included.
      updates_per_second: Lately; NaN at first.
      mean_staleness: Of applied pushes, versions.
      max_staleness: Of applied pushes, versions.
      loss: Mean of the last pushes.
      counts: Of all shards together.
      seconds: Wall time so far.
      given_up: Why the run ends before its last update, if it does.
    """

    version: int
    num_updates: int
    num_pushes: int
    updates_per_second: float
    mean_staleness: float
    max_staleness: int
    loss: float
    counts: Counts
    seconds: float
    given_up: GivenUp | None = None


class Watcher:
    """Puts together what the servers tell, and tells it on.

    Args:
      num_updates: Of the run.
      log: The path of a file of JSON lines, or None.
      progress: Called with a `Status` after all news.
      recording: Whose logger hears of the first server's pushes.
    """

    def __init__(
        self,
        num_updates: int,
        num_shards: int,
        log: str | os.PathLike | None,
        progress: Callable[[Status], None] | None,
        recording: Recording,
    ):
        self.log = JsonLines(log)
        self._num_updates, self._progress = num_updates, progress
        self._known = [{"life": 0, "num_events": 0, "num_incidents": 0} for _ in range(num_shards)]
        self._versions, self._seconds = [0] * num_shards, 0.0
        self._counts = [Counts() for _ in range(num_shards)]
        self._applied = self._total_staleness = self._max_staleness = 0  # of pushes that were used
        self._loss: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._rate: collections.deque[tuple[float, int]] = collections.deque()
        self._metrics = _Metrics()
        self._names = ("loss", *recording.metrics)
        self._windows = None
        if recording.logger is not None:
            self._windows = Windows(recording.logger, recording.log_every)
        self.of_push = np.zeros(0, np.int64)  # examples of each worker's push
        self._samples = self._heard = 0  # examples, and pushes, that the logger knows of
        self.given_up: GivenUp | None = None

    def known(self, shard: int) -> tuple[int, int, int]:
        """The arguments of the server's `news`."""
        known = self._known[shard]
        return known["life"], known["num_events"], known["num_incidents"]

    def add(self, shard: int, news: dict[str, Any]) -> None:
        """Takes the news of one server."""
        known, columns = self._known[shard], news["events"]
        same_life = news["life"] == known["life"]
        if not same_life:
            known["num_incidents"] = 0
        for incident in news["incidents"]:
            self.note("incident", shard=shard, **incident._asdict())
        known["life"] = news["life"]
        known["num_incidents"] = news["num_incidents"]
        known["num_events"] = news["first_event"] + len(columns["worker"])
        self._versions[shard], self._counts[shard] = news["version"], news["counts"]
        self._seconds = max(self._seconds, news["seconds"])
        if news["given_up"] is not None:
            self.given_up = news["given_up"]._replace(shard=shard)
        if shard == 0:
            self._take_pushes(news["first_event"], columns)

    def note(self, event: str, **fields: Any) -> None:
        """A line of the log."""
        self.log.write({"event": event, **fields})

    def end_windows(self) -> None:
        """The logger hears of what is left."""
        if self._windows is not None:
            self._windows.close()

    def tell(self) -> None:
        """Passes the news on."""
        self.log.flush()
        if self._progress is not None:
            self._progress(self.status())

    def status(self) -> Status:
        """How far the run is."""
        version, now = min(self._versions), time.monotonic()
        self._rate.append((now, version))
        while now - self._rate[0][0] > _WINDOW:
            self._rate.popleft()
        (start, before), rate = self._rate[0], math.nan
        if now > start:
            rate = (version - before) / (now - start)
        return Status(
            version=version,
            num_updates=self._num_updates,
            num_pushes=self._known[0]["num_events"],
            updates_per_second=rate,
            mean_staleness=self._total_staleness / self._applied if self._applied else math.nan,
            max_staleness=self._max_staleness,
            loss=float(np.mean(self._loss)) if self._loss else math.nan,
            counts=add_counts(self._counts),
            seconds=self._seconds,
            given_up=self.given_up,
        )

    def _take_pushes(self, first: int, columns: dict[str, np.ndarray]) -> None:
        rows = {name: column.tolist() for name, column in columns.items()}
        for k in range(len(columns["worker"])):
            self.note("push", index=first + k, **{name: rows[name][k] for name in rows})
        applied = columns["applied"]
        staleness = (columns["version"] - columns["read_version"])[applied]
        self._applied += len(staleness)
        self._total_staleness += int(staleness.sum())
        self._max_staleness = max(self._max_staleness, int(staleness.max(initial=0)))
        self._loss.extend(columns["loss"][applied].tolist())
        self._metrics.add(columns, staleness)
        if self._windows is not None:
            self._tell(self._windows, first, columns)

    def _tell(self, windows: Windows, first: int, columns: dict[str, np.ndarray]) -> None:
        """Of pushes of which the logger has not heard: a restarted server repeats some."""
        event = first + np.arange(len(columns["worker"]))
        new = event >= self._heard
        if not new.any():
            return
        event, columns = event[new], {name: column[new] for name, column in columns.items()}
        fresh = np.where(columns["batch"] == event, self.of_push[columns["worker"]], 0)
        samples = self._samples + np.cumsum(fresh)
        self._samples, self._heard = int(samples[-1]), int(event[-1]) + 1
        staleness = (columns["version"] - columns["read_version"]).astype(np.float64)
        windows.add(
            {**{name: columns[name] for name in self._names}, "staleness": staleness},
            {
                "event": event,
                "step": np.append(columns["version"][1:], self._versions[0]),
                "applied": columns["applied"],
                "samples": samples,
                "time": columns["time"],
            },
        )


class _Metrics:
    """Counters and histograms for Ray's dashboard; without a dashboard nobody reads them."""

    def __init__(self):
        self._pushes = ray_metrics.Counter(
            "dcasgd_pushes", "Pushes that reached the server.", tag_keys=("applied",)
        )
        self._staleness = ray_metrics.Histogram(
            "dcasgd_staleness", "Versions between read and application.", boundaries=_BOUNDARIES
        )
        self._cycle = ray_metrics.Histogram(
            "dcasgd_cycle_ms", "Milliseconds from a pull to the push.", boundaries=_MILLISECONDS
        )
        self._loss = ray_metrics.Gauge("dcasgd_loss", "Loss of the last push.")

    def add(self, columns: dict[str, np.ndarray], staleness: np.ndarray) -> None:
        """Counts some pushes."""
        applied = int(columns["applied"].sum())
        for name, count in (("yes", applied), ("no", len(columns["applied"]) - applied)):
            if count:
                self._pushes.inc(count, tags={"applied": name})
        for versions in staleness.tolist():
            self._staleness.observe(versions)
        for seconds in (columns["time"] - columns["read_time"]).tolist():
            self._cycle.observe(1000 * seconds)
        if len(columns["loss"]):
            self._loss.set(float(columns["loss"][-1]))


def add_counts(counts: list[Counts]) -> Counts:
    """The sums of all fields."""
    fields = vars(counts[0])
    return Counts(**{name: sum(getattr(c, name) for c in counts) for name in fields})
