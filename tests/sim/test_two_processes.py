"""The lanes engine over two processes of `jax.distributed`, on loopback."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import two_processes

from dcasgd_jax import sim

SCRIPT = pathlib.Path(two_processes.__file__)
SECONDS = 180


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(directory):
    """Starts both; whatever happens, none is left running."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    processes = []
    try:
        for index in range(2):
            with (directory / f"{index}.log").open("w") as log:
                command = [sys.executable, SCRIPT, str(index), str(port), directory]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait(processes, directory):
    """Waits for both, or for the first that fails: the other would wait for it in vain."""
    deadline = time.monotonic() + SECONDS
    while any(process.poll() is None for process in processes):
        failed = [k for k, process in enumerate(processes) if process.poll()]
        assert not failed, (directory / f"{failed[0]}.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (directory / "0.log").read_text()[-3000:]
        time.sleep(0.1)
    for index, process in enumerate(processes):
        assert process.returncode == 0, (directory / f"{index}.log").read_text()[-3000:]


def test_two_processes_equal_one(tmp_path):
    with started(tmp_path) as processes:
        _, expected = two_processes.simulate(sim.ScanEngine())
        wait(processes, tmp_path)
    leaves = jax.tree.leaves((expected.params, expected.opt_state))
    close = dict(rtol=1e-5, atol=1e-6)
    for path in [tmp_path / f"{s}_{k}.npz" for s in ("sharded", "replicated") for k in (0, 1)]:
        with np.load(path) as stored:
            for k, leaf in enumerate(leaves):
                np.testing.assert_allclose(stored[f"arr_{k}"], leaf, **close)
            np.testing.assert_allclose(stored["losses"], expected.losses, **close)
            np.testing.assert_allclose(stored["gap"], expected.trace.gap, **close)
            np.testing.assert_allclose(stored["norms"], expected.evaluations.values, **close)
