"""Checkpoints on disk: any damage is seen, and a directory belongs to one process at a time."""

import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import calls
import numpy as np
import optax
import pytest

from dcasgd_jax import sim
from dcasgd_jax.sim.checkpoints import store as stores

pytest.importorskip("orbax.checkpoint")


def saved(event):
    arrays = {"w": np.arange(3.0) + event, "n": np.array([event], np.int32)}
    return stores.Saved(arrays, {"run": {"kind": "a test"}, "event": event, "text": "λ"})


def assert_is(found, event):
    assert found.facts == saved(event).facts
    assert list(found.arrays) == list(saved(event).arrays)
    for name, array in saved(event).arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with checkpoints of events 1 and 2."""
    directory = tmp_path_factory.mktemp("two") / "run"
    with stores.Store(directory, 2) as store:
        for event in (1, 2):
            store.save(event, saved(event))
    return directory


def newest(directory):
    """What can be read, and whether something was moved aside for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with stores.Store(directory, 2) as store:
            found = store.newest(lambda facts: None)
    return found, any("2 cannot be read" in str(warning.message) for warning in caught)


def damaged(directory, tmp_path, file, content):
    copy = tmp_path / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    (copy / "2" / file).write_bytes(content)
    return copy


def test_every_kind_of_damage_to_the_facts_is_seen(two, tmp_path):
    file = pathlib.Path("facts", "metadata")
    content = (two / "2" / file).read_bytes()
    rng = np.random.default_rng(0)
    flips = [(int(at), int(rng.integers(1, 256))) for at in rng.permutation(len(content))[:50]]
    for at, bits in flips:
        changed = bytearray(content)
        changed[at] ^= bits
        found, aside = newest(damaged(two, tmp_path, file, bytes(changed)))
        assert aside, f"byte {at} xor {bits} was not seen"
        assert_is(found, 1)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        found, aside = newest(damaged(two, tmp_path, file, content[:length]))
        assert aside
        assert_is(found, 1)
    for whole in (b"{}", b"[]", b'"text"', b"3", b'{"format": 2}', b'{"format": 1, "facts": {}}'):
        found, aside = newest(damaged(two, tmp_path, file, whole))
        assert aside
        assert_is(found, 1)


def test_damage_to_any_other_file_is_seen_or_does_not_matter(two, tmp_path):
    rng = np.random.default_rng(1)
    for path in sorted(path for path in (two / "2").rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for at in rng.integers(0, max(len(content), 1), 4 if content else 0):
            changed = bytearray(content)
            changed[at] ^= int(rng.integers(1, 256))
            found, aside = newest(damaged(two, tmp_path, path.relative_to(two / "2"), changed))
            assert_is(found, 1 if aside else 2)


def test_a_checkpoint_under_another_name_is_damaged(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2")
    shutil.copytree(tmp_path / "run" / "1", tmp_path / "run" / "2")
    found, aside = newest(tmp_path / "run")
    assert aside
    assert_is(found, 1)


HOLDER = """
import pathlib, sys
from dcasgd_jax.sim.checkpoints import store
with store.Store(pathlib.Path(sys.argv[1]), 2):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_so_and_a_killed_one_leaves_the_directory_free(
    two, tmp_path, monkeypatch
):
    monkeypatch.setattr(stores, "_PATIENCE_SECONDS", 0.1)
    directory = tmp_path / "run"
    shutil.copytree(two, directory)
    half_written = directory / "3.orbax-checkpoint-tmp"
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        half_written.mkdir()  # as if the other process were saving
        with pytest.raises(
            BlockingIOError,
            match=rf"run is in use: process {child.pid} on .* saves checkpoints there. Wait until",
        ):
            stores.Store(directory, 2)
        assert half_written.exists()
        child.kill()
    found, aside = newest(directory)
    assert not aside
    assert_is(found, 2)


def test_two_runs_of_one_process_do_not_share_a_directory_either(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_PATIENCE_SECONDS", 0.0)
    schedule = sim.Schedule.from_staleness([0] * 4)

    def train(progress=None):
        return calls.simulate(
            lambda w, x: (w - x) ** 2, 0.0, optax.sgd(0.1), schedule, np.ones(4, np.float32),
            checkpoint=sim.Checkpoint(tmp_path, every=2), progress=progress,
        )  # fmt: skip

    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
        train(progress=lambda done: train())
    np.testing.assert_allclose(train().params, 1 - 0.8**4, rtol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_hold_what_its_parent_held(tmp_path):
    lock = stores.files.Lock(tmp_path / "lock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside threads; this child only sleeps
        child = os.fork()
    if not child:
        import time

        time.sleep(5)
        os._exit(0)
    try:
        lock.release()
        stores.files.Lock(tmp_path / "lock", patience_seconds=3.0).release()  # it starts soon
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
