"""Protocols of the simulator on a live server: the same classes decide who is applied and waits."""

from dcasgd_jax.schedules import protocols, servers, waiting


def make_server(protocol: protocols.ServerProtocol, num_workers: int) -> servers.Server:
    """What decides for a protocol; all workers have joined and may pull version 0.

    Raises:
      ValueError: If the protocol cannot be run live, or not with so few workers.
    """
    server = _new_server(protocol, num_workers)
    for worker in range(num_workers):
        server.join(worker)
    server.admit()
    return server


def averages(protocol: protocols.ServerProtocol) -> bool:
    """Whether an update takes the mean of several pushes."""
    return isinstance(protocol, protocols.Buffered | waiting.Synchronous)


def mixes(protocol: protocols.ServerProtocol) -> bool:
    """Whether the pushes of one update may have read different versions."""
    return isinstance(protocol, protocols.Buffered)


def _new_server(protocol: protocols.ServerProtocol, num_workers: int) -> servers.Server:
    match protocol:
        case protocols.Asynchronous(overlap=False):
            return servers.Server()
        case protocols.DropStale(bound):
            return servers.DroppingServer(bound)
        case protocols.Buffered(num_pushes):
            return servers.BufferedServer(num_pushes)
        case waiting.StaleSynchronous(bound):
            return servers.ClockServer(bound, num_workers)
        case waiting.Synchronous(backup_workers):
            if backup_workers >= num_workers:
                raise ValueError(
                    f"Synchronous.backup_workers is {backup_workers}, but must be less than the "
                    f"number of workers, {num_workers}."
                )
            return servers.BarrierServer(num_workers - backup_workers)
    raise ValueError(
        f"{protocol!r} cannot be run on a live server: use Asynchronous(), DropStale(bound), "
        "Buffered(num_pushes), StaleSynchronous(bound) or Synchronous(backup_workers)."
    )
