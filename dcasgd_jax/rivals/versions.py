"""A server's own count of its versions, for servers on which not every push is an update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import rows, update_checks


class Versions(NamedTuple):
    """How many updates were made, and which version each worker reads from."""

    version: jax.Array  # int32 scalar: updates applied so far
    read_versions: rows.PerWorker | None  # int32 [num_workers]; None: staleness is told


def init_versions(num_workers: int | None) -> Versions:
    """Every worker has read version 0."""
    read = None if num_workers is None else rows.PerWorker(jnp.zeros((num_workers,), jnp.int32))
    return Versions(jnp.zeros((), jnp.int32), read)


def staleness_of(
    versions: Versions, num_workers: int | None, worker, staleness
) -> tuple[jax.Array, jax.Array | None]:
    """The staleness of a push, and its worker if the workers are known.

    It is counted here if they are, else as it was told.
    """
    if num_workers is None or versions.read_versions is None:
        return update_checks.checked_staleness(staleness), None
    versions.read_versions.check(num_workers)
    row = update_checks.checked_worker(worker, num_workers)
    return versions.version - versions.read_versions.read(row), row


def after_push(versions: Versions, row: jax.Array | None, updated: jax.Array) -> Versions:
    """The count after a push that did or did not update; its worker then pulls."""
    version = jnp.where(updated, optax.safe_increment(versions.version), versions.version)
    if row is None or versions.read_versions is None:
        return Versions(version, versions.read_versions)
    return Versions(version, versions.read_versions.write(row, version))
