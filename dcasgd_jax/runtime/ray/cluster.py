"""The Ray cluster of a run: one of its own on this machine, or a running one; and its processes."""

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ray

from dcasgd_jax.runtime.ray import probe

_TO_ANSWER = 10.0  # seconds
_ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "NPROC": "1",  # the size of XLA's thread pools
    "OMP_NUM_THREADS": "1",
}


@contextlib.contextmanager
def connected(address: str | None, num_cpus: float) -> Iterator[None]:
    """Ray inside the block: as it is running in this process already, else joined or started.

    A cluster started here has as many logical CPUs as the run needs, and ends with the block.
    """
    if ray.is_initialized():
        _check_size(num_cpus)
        yield
        return
    if address is None:
        start_local(max(os.cpu_count() or 1, math.ceil(num_cpus)))
    else:
        _join(address)
    try:
        _check_size(num_cpus)
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises ConnectionError soon if there is no cluster at an address, as `ray.init` takes it."""
    target = _target(address)
    if target not in ("auto", "local") and "://" not in target:
        _check_reachable(target)


def _target(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", address) if address == "auto" else address


def _join(address: str) -> None:
    """Connects to a running cluster."""
    check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except SystemExit as error:  # Ray would end the whole program
        raise ConnectionError(f"Ray could not join the cluster at {_target(address)}.") from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the program."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"address must be 'host:port' of a running Ray cluster, got {address!r}.")
    start_one = "start one there with `ray start --head`, or leave address out"
    try:
        answers = probe.is_ray(host.strip("[]"), int(port), _TO_ANSWER)
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"No Ray cluster answers at {address} ({error}): {start_one}."
        ) from None
    if not answers and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise ConnectionError(f"What answers at {address} is no Ray cluster: {start_one}.")


def start_local(num_cpus: int, **options: Any) -> None:
    """Starts Ray on this machine with so many logical CPUs; its processes import what this one can.

    Args:
      num_cpus: Actors that find a place; more than there are cores is fine.
      options: Further arguments of `ray.init`.
    """
    path = os.pathsep.join(filter(None, sys.path))
    with warnings.catch_warnings():
        # Ray forks only to start other programs at once; JAX cannot know that.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(
            address="local",
            num_cpus=num_cpus,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            **options,
        )


def _check_size(num_cpus: float) -> None:
    """Actors that fit nowhere would be waited for without end."""
    available = ray.cluster_resources().get("CPU", 0)
    if available < num_cpus:
        raise ValueError(
            f"This run needs {num_cpus:g} CPUs, one for each worker and server, but the Ray "
            f"cluster has {available:g}: add nodes, or pass options such as "
            "worker_options={'num_cpus': 0.5}."
        )


def worker_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's options of a worker: by default one CPU, one thread, no accelerator."""
    return _options(given, _ONE_THREAD)


def server_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's options of a server: by default one logical CPU, but as many threads as XLA wants."""
    return _options(given, {})


def _options(given: Mapping[str, Any] | None, threads: Mapping[str, str]) -> dict[str, Any]:
    options = dict(given or {})
    runtime_env = dict(options.pop("runtime_env", None) or {})
    x64 = "1" if jax.dtypes.result_type(float).itemsize == 8 else "0"
    defaults = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": x64, **threads}
    runtime_env["env_vars"] = {**defaults, **runtime_env.get("env_vars", {})}
    return {"num_cpus": 1, **options, "runtime_env": runtime_env}
