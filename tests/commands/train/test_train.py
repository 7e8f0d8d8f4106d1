"""`dcasgd-jax train`: real runs end to end, an interrupted one, and what is refused before."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import one_ray
import optax
import pytest

pytest.importorskip("ray")

from dcasgd_jax import sim
from dcasgd_jax.commands import images as images_of
from dcasgd_jax.commands.train import options, problems, watching

from .. import cli
from ..images import writers

MARK = "DCASGD_JAX_TEST_MARK"
SECONDS = 120
# A suite that runs in the background of a shell inherits that Ctrl-C is ignored.
LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dcasgd_jax.__main__ import main
sys.exit(main())
"""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def marked(mark):
    """Processes that descend from one that was started with a mark in its environment."""
    found = []
    for process in pathlib.Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_bytes():
                found.append((process.name, (process / "cmdline").read_bytes()))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture
def no_other_ray():
    with one_ray.at_a_time():
        yield


def wait_for(condition, process):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="looks for processes in /proc")
def test_ctrl_c_leaves_a_checkpoint_and_no_processes(tmp_path, no_other_ray):
    out, mark = tmp_path / "out", f"{tmp_path}".encode()
    arguments = ["--workers", "2", "--batch-size", "4", "--delays", "constant", "--law-param"]
    arguments += ["seconds=0.02", "--checkpoint-every", "1000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, "train", "--updates", "100000", *arguments],
        env=os.environ | {MARK: str(tmp_path), "JAX_PLATFORMS": "cpu"},
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of a session
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pushes = lambda: [line for line in lines(out / "log.jsonl") if line["event"] == "push"]
        wait_for(lambda: len(pushes()) >= 20, process)
        assert len(marked(mark)) > 3
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 130, stderr
    assert stderr.strip() == "dcasgd-jax train: error: interrupted"
    assert "Traceback" not in stdout
    deadline = time.monotonic() + 20
    while marked(mark):
        assert time.monotonic() < deadline, marked(mark)
        time.sleep(0.1)
    (saved,) = lines(out / "log.jsonl")[-1]["saved_versions"]
    assert saved >= 20
    assert (out / "checkpoints" / f"{saved}.npz").is_file()
    # The same command goes on where it was, and ends with all that it had.
    updates = saved + 15
    result = cli.call("train", "--updates", updates, *arguments)
    assert result.code == 0, result.err
    assert f"{updates} updates in" in result.out
    content = cli.strict_json(out / "train.json")
    assert content["num_updates"] == content["num_pushes"] == updates
    assert content["counts"]["server_restarts"] == 1
    assert content["after"]["train_loss"] < content["before"]["train_loss"]
    schedule = sim.Schedule.load(out / "schedule.npz")
    assert schedule.num_updates == updates
    assert schedule.staleness.max() == content["max_staleness"]
    started = [k for k, line in enumerate(lines(out / "log.jsonl")) if line["event"] == "start"]
    assert len(started) == 2
    # Once more there is nothing to do, and nothing is done; a run is not taken back either.
    before = (out / "log.jsonl").read_bytes()
    result = cli.call("train", "--updates", updates, *arguments)
    assert result.code == 0, result.err
    assert result.out.startswith(f"Already done: {out / 'train.json'} is of these {updates} updat")
    result = cli.call("train", "--updates", updates - 1, *arguments)
    assert result.code == 2
    assert f"--updates {updates - 1}: the run in {out} has {updates} already" in result.err
    assert (out / "log.jsonl").read_bytes() == before
    # And nothing but the number of updates may be another one.
    result = cli.call("train", "--updates", updates, *arguments, "--seed", 1)
    assert result.code == 2
    assert "has seed 0, not 1: choose another --out" in result.err


def test_a_run_that_diverges_is_saved_and_told_in_one_line(tmp_path, no_other_ray):
    out = tmp_path / "out"
    result = cli.call(
        *("train", "--out", out, "--workers", 2, "--batch-size", 4, "--method", "asgd"),
        *("--learning-rate", 1e38),
    )
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "The run was given up at version" in line
    content = cli.strict_json(out / "train.json")
    assert content["given_up"] in line
    assert content["num_updates"] < 200
    assert content["counts"]["non_finite"] >= 1


def test_an_address_of_nothing_is_told_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    result = cli.call("train", "--out", tmp_path / "out", "--address", free)
    assert time.monotonic() - started < 20
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert f"No Ray cluster answers at {free}" in line


@pytest.mark.parametrize("name", ["settings.json", "train.json"])
def test_a_damaged_folder_is_named(tmp_path, name):
    (tmp_path / name).write_text("{")
    result = cli.call("train", "--out", tmp_path)
    assert result.code == 2
    assert f"{name} is no result of dcasgd-jax train, or damaged (line 1: " in result.err


def test_cifar10_on_generated_images(tmp_path, no_other_ray):
    data, out = tmp_path / "data", tmp_path / "out"
    writers.write_cifar_parquet(data, num_train=24, num_test=10)
    result = cli.call(
        *("train", "--task", "cifar10", "--data-dir", data, "--out", out, "--workers", 2),
        *("--updates", 6, "--batch-size", 4, "--subset", 16, "--protocol", "synchronous"),
        *("--bound", 0, "--shards", 2, "--wire-dtype", "bfloat16", "--method", "asgd"),
    )
    assert result.code == 0, result.err
    content = cli.strict_json(out / "train.json")
    assert content["num_updates"] == 6
    assert content["num_pushes"] == 12
    assert content["max_staleness"] == 0
    assert set(content["after"]) == {"train_loss", "test_error"}
    assert content["after"] != content["before"]
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        "shard-0-of-2",
        "shard-1-of-2",
    }


BAD = {
    "lambda0 of asgd": (["--method", "asgd", "--lambda0", "2"], "asgd has none"),
    "data dir of digits": (["--data-dir", "x"], "--data-dir: only for --task cifar10"),
    "law without delays": (["--law-param", "mean=1"], "name the law, with --delays"),
    "bad law": (["--delays", "gamma", "--law-param", "mean=-1"], "mean"),
    "bound of asynchronous": (["--bound", "1"], "asynchronous has none"),
    "no bound": (["--protocol", "drop-stale"], "give its number with --bound"),
    "bound too small": (["--protocol", "drop-stale", "--bound", "0"], "at least 1"),
    "all backups": (["--protocol", "synchronous", "--bound", "3"], "less than --workers 3"),
    "buffered": (["--protocol", "buffered", "--bound", "2"], "only with --method asgd"),
    "rate": (["--learning-rate", "-1"], "'-1' is not a finite number > 0"),
    "no data": (["--task", "cifar10", "--data-dir", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_in_one_line(tmp_path, arguments, words):
    result = cli.call("train", "--out", tmp_path / "out", *arguments)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1


def test_each_worker_shuffles_for_itself_and_can_be_asked_again():
    rows = problems.Rows(num_examples=21, batch_size=5, seed=3)
    epoch = np.concatenate([rows(0, number) for number in range(4)])
    assert len(set(epoch)) == 20
    assert set(epoch) <= set(range(21))
    np.testing.assert_array_equal(rows(0, 2), problems.Rows(21, 5, 3)(0, 2))
    assert rows(0, 0).tolist() != rows(1, 0).tolist()
    assert rows(0, 0).tolist() != rows(0, 4).tolist()
    assert rows(0, 0).tolist() != problems.Rows(21, 5, 4)(0, 0).tolist()


def test_cifar_problem_learns_what_it_sees(tmp_path):
    writers.write_cifar_parquet(tmp_path / "data", num_train=12, num_test=5)
    problem, batches_fn = problems.cifar(
        batch_size=4, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path, subset=8
    )
    batch = batches_fn(0, 3)
    assert batch["images"].dtype == np.uint8
    assert set(batch["labels"]) <= set(range(8))
    np.testing.assert_array_equal(batch["draw"], batches_fn(0, 3)["draw"])
    step = jax.jit(jax.value_and_grad(problem.loss_fn))
    params, losses = problem.params, []
    for _ in range(8):
        loss, grads = step(params, batch)
        params = jax.tree.map(lambda w, g: w - 0.05 * g, params, grads)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    images, labels = (array[:8] for array in images_of.load_cifar10(tmp_path / "data").train)
    logits = problems.network.logits(params, images_of.normalise(images))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    evaluation = problem.eval_fn(params)
    np.testing.assert_allclose(evaluation.train_loss, expected, rtol=1e-5)
    assert float(evaluation.test_error * 5) in range(6)


def test_digits_problem_is_that_of_compare():
    problem, batches_fn = problems.digits(batch_size=16, seed=1)
    loss, grads = jax.value_and_grad(problem.loss_fn)(problem.params, batches_fn(2, 5))
    assert 1 < float(loss) < 4
    assert jax.tree.structure(grads) == jax.tree.structure(problem.params)


def test_the_line_of_the_progress_bar():
    from dcasgd_jax.runtime.bookkeeping import Counts
    from dcasgd_jax.runtime.ray import Status

    status = Status(3, 10, 4, 12.4, 1.5, 3, 0.25, Counts(), 1.0)
    assert watching.line(status) == "12 updates/s, staleness 1.50 (max 3), loss 0.2500"
    assert watching.line(status._replace(num_pushes=0)) == "waiting for the first push"
    with watching.progress_bar(10) as show:
        show(status)


def test_every_method_has_an_optimizer():
    parser = argparse.ArgumentParser()
    options.add_options(parser)
    for method in options.METHODS:
        job = options.make_job(parser.parse_args(["--method", method]))
        tx = options.make_tx(job)
        state = tx.init({"w": np.ones(2, np.float32)})
        assert any(leaf.shape == (3, 2) for leaf in jax.tree.leaves(state)) == (method != "asgd")
