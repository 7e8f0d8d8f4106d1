"""The way of a gradient over links, where it depends on what else is on its way."""

import heapq
from collections import deque
from collections.abc import Iterator

from dcasgd_jax.schedules.cluster import Cluster, Durations
from dcasgd_jax.schedules.journeys import ARRIVAL, COMPUTED, PULL, SENT, Gradient, Heap


class SharedLink:
    """One direction of a link: transfers of one size, which share its bandwidth equally.

    Being of one size, they end in the order in which they begin.

    Attributes:
      seconds: That a transfer takes alone.
      under_way: The transfers, each with the progress at which it ends.
      stamp: Of the last moment at which one left before its end.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.under_way: deque[tuple[float, Gradient]] = deque()
        self.stamp = 0
        # How far one that has been here from the beginning would be, in seconds of a link alone.
        self._progress = 0.0
        self._since = 0.0

    def begin(self, time: float, gradient: Gradient) -> None:
        """A transfer begins, and the others are slower from now on."""
        self._advance(time)
        self.under_way.append((self._progress + self.seconds, gradient))

    def next_end(self) -> float:
        """When the oldest transfer ends if no other begins."""
        return self._since + (self.under_way[0][0] - self._progress) * len(self.under_way)

    def end(self, time: float) -> Gradient:
        """The oldest transfer ends now."""
        self._progress, gradient = self.under_way.popleft()
        self._since = time
        return gradient

    def drop(self, time: float, worker: int) -> bool:
        """What this worker sends here is lost; returns whether there was anything."""
        kept = deque(entry for entry in self.under_way if entry[1].worker != worker)
        if len(kept) == len(self.under_way):
            return False
        self._advance(time)
        self.under_way = kept
        self.stamp += 1
        return True

    def _advance(self, time: float) -> None:
        sharing = len(self.under_way)
        self._progress = self._progress + (time - self._since) / sharing if sharing else 0.0
        self._since = time


class LinkJourneys:
    """As `journeys.LawJourneys`, over links: of each transfer only the beginning is known."""

    def __init__(self, cluster: Cluster, heap: Heap, *, overlap: bool):
        links = cluster.links
        assert links is not None
        self._heap, self._overlap, self._faults = heap, overlap, cluster.faults
        regions = range(links.num_regions)
        to_server = [links.push_link(region) for region in regions]
        from_server = [links.pull_link(region) for region in regions]
        self._num_regions = len(regions)
        self._region = links.region
        # By index: from each region, then to each region.
        self._links = [SharedLink(seconds) for seconds, _ in (*to_server, *from_server)]
        self._latency = [latency for _, latency in (*to_server, *from_server)]
        self._drawn = [_each(cluster.compute, m) for m in range(cluster.num_workers)]
        self._compute = [0.0] * cluster.num_workers  # of the gradient begun last

    def begin(self, gradient: Gradient) -> None:
        """A worker has pulled."""
        worker = gradient.worker
        self._compute[worker] = next(self._drawn[worker])
        self._send(self._num_regions + self._region[worker], gradient.read_time, gradient)

    def computed(self, time: float, gradient: Gradient) -> None:
        """A computation has ended."""
        if self._overlap:
            heapq.heappush(self._heap, (time, PULL, gradient.worker, gradient.serial, gradient))
        self._send(self._region[gradient.worker], time, gradient)

    def sent(self, time: float, index: int, stamp: int) -> None:
        """A transfer has ended on this link, unless others have delayed it meanwhile."""
        link = self._links[index]
        if stamp != link.stamp:
            return
        if link.next_end() <= time:
            self._hand_on(index, time, link.end(time))
        self._expect(index)

    def drop(self, worker: int, time: float) -> None:
        """What this worker has under way is lost."""
        region = self._region[worker]
        for index in (region, self._num_regions + region):
            if self._links[index].drop(time, worker):
                self._expect(index)

    def _send(self, index: int, time: float, gradient: Gradient) -> None:
        link = self._links[index]
        if not link.seconds:
            self._hand_on(index, time, gradient)
            return
        link.begin(time, gradient)
        if len(link.under_way) == 1:  # otherwise an end is expected, if too soon
            self._expect(index)

    def _expect(self, index: int) -> None:
        link = self._links[index]
        if link.under_way:
            heapq.heappush(self._heap, (link.next_end(), SENT, index, link.stamp, None))

    def _hand_on(self, index: int, time: float, gradient: Gradient) -> None:
        """The last byte is on its way: then a push arrives, and parameters are computed with."""
        worker = gradient.worker
        there, kind = time + self._latency[index], ARRIVAL
        if index >= self._num_regions:
            there += self._compute[worker] * self._faults.slow_down(worker, there)
            kind = COMPUTED
        heapq.heappush(self._heap, (there, kind, worker, gradient.serial, gradient))


def _each(durations: Durations, worker: int) -> Iterator[float]:
    """A worker's times, one by one."""
    done, count = 0, 16
    while True:
        yield from durations.first(worker, count)[done:].tolist()
        done, count = count, 2 * count
