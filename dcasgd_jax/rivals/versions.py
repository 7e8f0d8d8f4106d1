"""A server's own count of its versions, for servers on which not every push is an update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax.rivals import checks
from dcasgd_jax.transforms import checks as transform_checks
from dcasgd_jax.transforms import rows


class Versions(NamedTuple):
    """How many updates were made, and which version each worker reads from."""

    version: jax.Array  # int32 scalar: updates applied so far
    read_versions: jax.Array | None  # int32 [num_workers]; None: staleness is told from outside


def init_versions(num_workers: int | None) -> Versions:
    """Every worker has read version 0."""
    read = None if num_workers is None else jnp.zeros((num_workers,), jnp.int32)
    return Versions(jnp.zeros((), jnp.int32), read)


def staleness_of(versions: Versions, worker, staleness) -> jax.Array:
    """The staleness of a push: counted here if the workers are known, else as it was told."""
    if versions.read_versions is None:
        return checks.checked_staleness(staleness)
    worker = transform_checks.checked_worker(worker, versions.read_versions.shape[0])
    return versions.version - rows.read_row(versions.read_versions, worker)


def after_push(versions: Versions, worker, updated: jax.Array) -> Versions:
    """The count after a push that did or did not update; the worker then pulls."""
    version = jnp.where(updated, optax.safe_increment(versions.version), versions.version)
    if versions.read_versions is None:
        return Versions(version, None)
    worker = transform_checks.checked_worker(worker, versions.read_versions.shape[0])
    return Versions(version, rows.write_row(versions.read_versions, version, worker))
