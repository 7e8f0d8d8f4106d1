"""The lanes engine: what its devices send each other, and its speed next to the scan engine's."""

import json
import subprocess
import sys

import jax
from engines import compensated, mlp_loss, mlp_problem
from timing import Row, alternate

from dcasgd_jax import sim

NUM_DEVICES = 8
CASES = (
    ("replicated", "round-robin"),
    ("sharded", "round-robin"),
    ("sharded", "gamma times"),
    ("sharded", "exponential times"),
)


def rows_of_8_devices() -> list[Row]:
    """The rows, measured in a process with 8 virtual CPU devices."""
    done = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    return [Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def rows(num_events: int = 1024, batch: int = 32, repeats: int = 5, cases=CASES) -> list[Row]:
    """Exchange per wave and gradients/s."""
    make = lambda law, workers: sim.make_schedule(law, workers, num_events, seed=0)
    schedules = {
        "round-robin": make(sim.RoundRobin(), NUM_DEVICES),
        "gamma times": make(sim.GammaTime(), NUM_DEVICES),
        "exponential times": make(sim.ExponentialTime(), 4 * NUM_DEVICES),
    }
    params, batches = mlp_problem(num_events, batch)
    mesh = jax.make_mesh((NUM_DEVICES,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    problem = sim.Problem(mlp_loss, params), compensated()
    found = []
    for server, name in cases:
        engine = sim.LanesEngine(mesh, server=server)
        found += _measure(engine, name, (*problem, schedules[name], batches), repeats)
    return found


def _measure(engine, name, arguments, repeats) -> list[Row]:
    """One engine on one schedule."""
    of, _, schedule, _ = arguments
    params = of.params
    exchange = engine.exchange(*arguments)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    ideal = exchange.wave_size * size

    def run(engine):
        jax.block_until_ready(sim.simulate(*arguments, engine=engine).params)

    ours, scan = alternate(lambda: run(engine), lambda: run(sim.ScanEngine()), repeats=repeats)
    rate = lambda seconds: f"{len(schedule) / seconds:,.0f}/s"
    workers = f"{schedule.num_workers} workers, {name}"
    what = f"lanes engine, {NUM_DEVICES} virtual devices, {engine.server} server, {workers}"
    waves = f"{len(schedule.waves)} waves of {exchange.wave_size:.3g} events"
    # Idle lanes send as much as busy ones: only full waves can meet the goal.
    full = engine.server == "sharded" and name == "round-robin"
    return [
        Row(
            f"{what}, {waves}: bytes exchanged per wave vs events x 4 P",
            f"{exchange.total:,.0f}",
            f"{ideal:,.0f}",
            exchange.total / ideal,
            "<= 2.1" if full else "",
        ),
        Row(
            f"{what}, gradients/s vs the scan engine",
            rate(ours),
            rate(scan),
            scan / ours,
            "",
        ),
    ]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    jax.config.update("jax_platforms", "cpu")
    print(json.dumps(rows()))
