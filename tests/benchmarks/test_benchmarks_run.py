"""The benchmarks still run, at toy size; nothing here is timed against a goal."""

import accelerator
import directions
import engines
import event_schedules
import lanes
import local_steps
import one_ray
import other_methods
import pytest
import ray_server
import server_step
import sweep


def ray_rows():
    with one_ray.at_a_time():
        return ray_server.rows([("toy", (8, 4), 20)], repeats=1)


@pytest.mark.parametrize(
    "measure",
    [
        lambda: server_step.rows({"w": (3, 4), "b": (4,)}, repeats=1),
        lambda: other_methods.step_rows({"w": (3, 4), "b": (4,)}, repeats=1),
        lambda: other_methods.hessian_rows(num_events=8, batch=2, repeats=1),
        lambda: directions.push_rows("toy", directions.mlp, 16, repeats=1),
        lambda: directions.refresh_rows([8], repeats=1),
        lambda: engines.scan_rows(num_events=16, batch=4, repeats=1),
        lambda: engines.host_rows(num_events=3, batch=2, width=2, repeats=1),
        lambda: event_schedules.rows(num_events=500, repeats=1),
        lambda: local_steps.rows(num_pushes=4, steps=2, batch=2, repeats=1),
        lambda: lanes.rows(num_events=16, batch=2, repeats=1, cases=lanes.CASES[:1]),
        lambda: sweep.rows(num_events=8, num_members=3, batch=2, repeats=1),
        lambda: sweep.conv_rows(num_events=2, num_members=2, repeats=1),
        ray_rows,
    ],
    ids=[
        "server",
        "methods",
        "hessian",
        "directions",
        "refresh",
        "scan",
        "host",
        "schedules",
        "local steps",
        "lanes",
        "sweep",
        "sweep of convnets",
        "ray",
    ],
)
def test_every_benchmark_reports_positive_ratios(measure):
    rows = measure()
    assert rows
    assert all(row.ratio > 0 for row in rows)
    assert all(row.ratio == 1 for row in rows if row.goal == "= 1")


def test_all_parts_of_the_benchmark_of_a_card():
    rows = list(accelerator.measure(accelerator.SMALL, minutes=60))
    assert {row.unit for row in rows} == {
        *("GB/s", "TFLOP/s", "ms", "of copy bandwidth", "gradients/s", "of slots"),
    }
    assert all(row.value > 0 for row in rows)
    assert all(row.value == 1 for row in rows if row.unit == "of slots")
    methods = {row.what for row in rows if row.unit == "ms"}
    assert methods == {"DC-ASGD-c", "DC-ASGD-a", "Adam", "rotated"}
    late = list(accelerator.measure(accelerator.SMALL, minutes=0))
    assert {row.what for row in late} == {"not run: no time left"}


def test_the_transformer_of_the_benchmark_has_a_loss():
    loss_fn, params, tokens = directions.transformer(1)
    assert 4 < loss_fn(params, tokens[0]) < 6


def test_the_server_benchmark_has_the_size_of_resnet50():
    shapes = server_step.resnet50_shapes()
    assert len(shapes) == 161
    assert server_step.num_params(shapes) == 25_557_032
