"""Prints every speed ratio as a Markdown table: `python tests/benchmarks`."""

import datetime
import os
import platform
import sys

import directions
import engines
import event_schedules
import jax
import jaxlib
import lanes
import local_steps
import optax
import other_methods
import ray_server
import server_step
import sweep


def main():
    rows = [
        *server_step.rows(),
        *engines.scan_rows(),
        *engines.host_rows(),
        *event_schedules.rows(),
    ]
    rows += [*other_methods.step_rows(), *other_methods.hessian_rows()]
    rows += directions.rows()
    rows += local_steps.rows()
    rows += lanes.rows_of_8_devices()
    rows += sweep.rows() + sweep.conv_rows()
    rows += ray_server.rows()
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind} with {os.cpu_count()} cores,")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib", end=" ")
    print(f"{jaxlib.__version__}, optax {optax.__version__}; medians of alternating runs.\n")
    print("| what | ours | baseline | ratio | goal |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.ours} | {row.baseline} | {row.ratio:.3g} | {row.goal} |")


if __name__ == "__main__":
    sys.exit(main())
