"""`dcasgd-jax reproduce cifar10`, killed with SIGKILL in a run: the next call goes on with it."""

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("flax")
pytest.importorskip("pyarrow")

from ..images import writers

NUM_IMAGES, BATCH_SIZE, WORKERS, EPOCHS = 64, 8, 4, 8
METHOD = "dcasgd-capped"  # has the most to keep: a mean square, and a ratio of every push
FIRST, SECOND = 0, 1  # seeds: the run of the first ends before the kill, that of the second not
# What a line may have of its own: when, and how fast.
OF_A_PROCESS = ("date", "seconds", "gradients_per_second")
PATIENCE = 300  # seconds, for a machine that does much else


@pytest.fixture
def call(tmp_path):
    """Begins a call of the program; the calls of a test share the compiled programs."""
    writers.write_cifar_parquet(tmp_path / "data", num_train=NUM_IMAGES, num_test=20)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    begun = []

    def begin(out):
        command = ["reproduce", "cifar10", "--data-dir", tmp_path / "data", "--out", out]
        command += ["--model", "tiny", "--epochs", EPOCHS, "--batch-size", BATCH_SIZE]
        command += ["--workers", WORKERS, "--methods", METHOD, "--seeds", 2]
        said = tmp_path / f"said-{len(begun)}.txt"
        with said.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "dcasgd_jax", *map(str, command)],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        begun.append(process)
        return process, said

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def said_at_the_end(process, said):
    process.wait(PATIENCE)
    assert process.returncode == 0, said.read_text()[-5000:]
    return said.read_text()


def pushes_saved(out, seed):
    """At the newest checkpoint of the run of a seed, 0 without one."""
    paths = out.glob(f"checkpoints/{METHOD}-*-seed{seed}/*.npz")
    return max((int(path.stem) for path in paths if path.stem.isdigit()), default=0)


def wait_for(condition, process):
    """Polls until `condition()` or the end of the process."""
    latest = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < latest, "it does not get there"
        time.sleep(0.005)


def read(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def of_any_process(line):
    return {name: value for name, value in line.items() if name not in OF_A_PROCESS}


def files_below(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*")}


def test_a_killed_call_ends_as_if_it_never_was(call, tmp_path):
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "killed"
    said_at_the_end(*call(uninterrupted))
    expected = read(uninterrupted)
    assert [line["run"]["seed"] for line in expected] == [FIRST, SECOND]

    process, said = call(out)
    wait_for(lambda: pushes_saved(out, SECOND), process)
    process.kill()  # SIGKILL: nothing can be tidied up
    process.wait()
    assert process.returncode == -9, f"ended before it could be killed: {said.read_text()[-5000:]}"
    before, saved = (out / "results.jsonl").read_bytes(), pushes_saved(out, SECOND)
    assert before.count(b"\n") == 1
    assert 0 < saved < expected[SECOND]["pushes"]
    (seconds_file,) = (out / "checkpoints").glob("*.seconds.json")
    seconds = json.loads(seconds_file.read_text())

    assert "2 runs, 1 of them" in said_at_the_end(*call(out))
    assert (out / "results.jsonl").read_bytes().startswith(before), "the finished run is kept"
    lines = read(out)
    assert [of_any_process(line) for line in lines] == [of_any_process(line) for line in expected]
    assert files_below(out) == files_below(uninterrupted)
    assert not list((out / "checkpoints").iterdir())

    # The speed is that of the last process alone, the time is that of both.
    resumed = lines[SECOND]
    done = resumed["gradients_per_second"] * (resumed["seconds"] - seconds)
    assert done == pytest.approx(resumed["pushes"] - saved, abs=BATCH_SIZE / 4), "did not resume"
