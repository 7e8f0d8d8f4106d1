"""Run on the first of several hosts: a live run whose workers are on the others, and its replay.

Says how far it is, one version per line, then its result as JSON.
"""

import json
import sys
import time

import jax
import numpy as np
import problems

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.runtime import ray
from runtime import clients


def wait_for_hosts(address, count):
    import logging

    import ray as ray_itself

    for _ in range(100):
        try:
            ray_itself.init(address, log_to_driver=False, logging_level=logging.ERROR)
            break
        except (ConnectionError, RuntimeError, ValueError):
            time.sleep(0.3)
    while sum(node["Alive"] for node in ray_itself.nodes()) < count:
        time.sleep(0.1)


def main(address, num_hosts, num_updates, seconds):
    wait_for_hosts(address, int(num_hosts))
    problem = sim.Problem(problems.softmax_loss, problems.softmax_params())
    tx = dc.dcasgd(0.3, num_workers=3, momentum=0.5)
    print("ready", flush=True)
    run = ray.train(
        problem, tx, clients.batches_fn, num_workers=3, num_updates=int(num_updates),
        address=address, delays=sim.ConstantTime(float(seconds)), max_restarts=3,
        worker_options={"resources": {"work": 1}, "scheduling_strategy": "SPREAD"},
        server_options={"resources": {"server": 1}},
        progress=lambda status: print("version", status.version, flush=True),
    )  # fmt: skip
    again = ray.replay(run, problem, tx, clients.batches_fn)
    difference = max(
        float(np.abs(one - other).max())
        for one, other in zip(
            jax.tree.leaves(run.result.params), jax.tree.leaves(again.params), strict=True
        )
    )
    cycle = run.schedule.time - run.schedule.read_time
    result = {
        "updates": run.schedule.num_updates,
        "difference": difference,
        "finite": bool(np.isfinite(run.result.losses).all()),
        "pushes": np.bincount(run.schedule.worker, minlength=3).tolist(),
        "longest_cycle": float(cycle.max()),
        "median_cycle": [float(np.median(cycle[run.schedule.worker == m])) for m in range(3)],
        "restarts": run.counts.worker_restarts,
        "seconds": run.seconds,
    }
    print("result", json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
