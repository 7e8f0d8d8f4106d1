"""The server of a protocol at the start of a live run."""

from dcasgd_jax.schedules import protocols, servers


def make_server(protocol: protocols.Protocol, num_workers: int) -> servers.ProtocolServer:
    """What decides for a protocol; all workers have joined and may pull version 0.

    Raises:
      ValueError: If the protocol cannot be run live, or not with so few workers.
    """
    if not protocol.runs_live:
        raise ValueError(
            f"{protocol!r} cannot be run on a live server: use Asynchronous(), DropStale(bound), "
            "Buffered(num_pushes), StaleSynchronous(bound), Synchronous(backup_workers), "
            "Quorum(num_pushes, grace), Grace(seconds), or one of them in Sampled(...)."
        )
    server = protocol.server(num_workers)
    for worker in range(num_workers):
        server.join(worker)
    server.admit()
    return server


class Alarm:
    """When a protocol's server is to be woken, in seconds of the run."""

    def __init__(self, server: servers.ProtocolServer):
        self._server = server
        self._at: float | None = None

    def admit(self, now: float) -> list[int]:
        """Who may pull; the server may ask to be woken."""
        admitted = list(self._server.admit())
        if self._server.wake_in is not None:
            self._at, self._server.wake_in = now + self._server.wake_in, None
        return admitted

    def seconds(self, now: float) -> float | None:
        """Until it rings; None: it does not."""
        return None if self._at is None else max(self._at - now, 0.0)

    def ring(self, now: float) -> bool:
        """Wakes the server if it is time, and returns whether it is."""
        if self._at is None or now < self._at:
            return False
        self._at = None
        self._server.wake()
        return True
