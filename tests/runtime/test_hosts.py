"""A live run over three hosts: a slow link, one cut off that comes back, one that dies."""

import json
import os
import pathlib
import subprocess
import sys
import time

import one_ray
import pytest

pytest.importorskip("ray")

from runtime import hosts

PROGRAM = pathlib.Path(__file__).with_name("on_hosts.py")
UPDATES, DELAY, CUT = 700, 0.1, 3.0  # seconds


def until(lines, version):
    """Reads on until the run has come so far."""
    for line in lines:
        if line.startswith("version ") and int(line.split()[1]) >= version:
            return
    raise AssertionError(f"the run ended before version {version}")


def test_a_run_over_three_hosts_survives_and_is_replayed(monkeypatch):
    if (reason := hosts.why_not()) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with one_ray.at_a_time(), hosts.connected(3) as ((server, near, far), address):
        run = server.popen(
            sys.executable, str(PROGRAM), address, "3", str(UPDATES), str(DELAY),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with run:
            until(run.stdout, 30)
            near.slow_down("200kbit")
            until(run.stdout, 60)
            near.speed_up()
            until(run.stdout, 120)
            far.cut_off()
            time.sleep(CUT)
            far.put_back()
            until(run.stdout, 250)
            near.kill()
            (said,) = [line for line in run.stdout if line.startswith("result ")]
    result = json.loads(said.removeprefix("result "))
    assert run.returncode == 0
    assert result["updates"] == UPDATES
    assert result["finite"]
    assert result["difference"] < 1e-6  # what happened is on record, whatever happened
    assert all(pushes > 50 for pushes in result["pushes"])
    assert result["longest_cycle"] > CUT  # of a worker that was cut off while it had a gradient
    assert result["restarts"] >= 1  # of the workers of the host that died, on the one that is left
    assert min(result["median_cycle"]) >= DELAY
