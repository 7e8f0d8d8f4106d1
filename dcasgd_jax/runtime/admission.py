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
            "Buffered(num_pushes), StaleSynchronous(bound) or Synchronous(backup_workers)."
        )
    server = protocol.server(num_workers)
    for worker in range(num_workers):
        server.join(worker)
    server.admit()
    return server
