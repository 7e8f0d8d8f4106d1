"""Checkpoints on disk: any damage is seen, and a directory belongs to one process at a time."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings

import calls
import numpy as np
import optax
import pytest

from dcasgd_jax import sim
from dcasgd_jax.sim.checkpoints import store as stores


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
    return found, any("2.npz cannot be read" in str(warning.message) for warning in caught)


def damaged(directory, tmp_path, content):
    copy = tmp_path / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    (copy / "2.npz").write_bytes(content)
    return copy


def test_any_damage_is_seen_or_does_not_matter(two, tmp_path):
    content = (two / "2.npz").read_bytes()
    rng = np.random.default_rng(0)
    seen = 0
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        found, aside = newest(damaged(two, tmp_path, bytes(changed)))
        assert_is(found, 1 if aside else 2)
        seen += aside
    assert seen > len(content) / 14
    for length in (0, 1, len(content) // 2, len(content) - 1):
        found, aside = newest(damaged(two, tmp_path, content[:length]))
        assert aside
        assert_is(found, 1)


def entries(**facts):
    of_two = {"format": 3, "event": 2, "facts": {}, "dtypes": {"w": "float32"}}
    text = json.dumps(of_two | facts).encode()
    return {"facts": np.frombuffer(text, np.uint8), "w": np.zeros(2, np.float32)}


FOREIGN = {
    "it is the checkpoint of event 1": entries(event=1),
    "its format is 4, and this release knows 3": entries(format=4),
    "its arrays are not those that were saved": entries(dtypes={"w": "float32", "v": "int8"}),
    "it has no facts": {"w": np.zeros(2)},
    "JSONDecodeError": {"facts": np.frombuffer(b"{", np.uint8)},
}


@pytest.mark.parametrize("words", FOREIGN)
def test_what_is_no_checkpoint_is_moved_aside(words, two, tmp_path):
    content = io.BytesIO()
    np.savez(content, **FOREIGN[words])
    directory = damaged(two, tmp_path, content.getvalue())
    match = rf"2\.npz cannot be read \(.*{words}"
    with stores.Store(directory, 2) as store, pytest.warns(RuntimeWarning, match=match):
        assert_is(store.newest(lambda facts: None), 1)
    assert (directory / "2.npz.unreadable").read_bytes() == content.getvalue()
    (directory / "1.npz").unlink()
    (directory / "2.npz.unreadable").rename(directory / "2.npz")
    match = f"No checkpoint in .* event 2: .*{words}"
    with stores.Store(directory, 2) as store, pytest.raises(ValueError, match=match):
        store.newest(lambda facts: None)


def test_older_ones_go_when_the_newer_one_is_complete(tmp_path, monkeypatch):
    names = lambda: sorted(path.name for path in tmp_path.glob("*.npz"))
    there = []
    save = stores.archives.save

    def recorded(path, *arguments, **named):
        there.append(names())
        save(path, *arguments, **named)

    monkeypatch.setattr(stores.archives, "save", recorded)
    with stores.Store(tmp_path, 2) as store:
        for event in (5, 10, 15, 20):
            store.save(event, saved(event))
    assert there == [[], ["5.npz"], ["10.npz", "5.npz"], ["10.npz", "15.npz"]]
    assert names() == ["15.npz", "20.npz"]
    with stores.Store(tmp_path, 1) as store:
        store.save(25, saved(25))
    assert names() == ["25.npz"]


def test_saving_goes_on_in_the_background_one_at_a_time(tmp_path, monkeypatch):
    may_go_on, saving = threading.Event(), []
    save = stores.archives.save

    def slow(path, *arguments, **named):
        saving.append(path.name)
        assert may_go_on.wait(60)
        save(path, *arguments, **named)

    monkeypatch.setattr(stores.archives, "save", slow)
    with stores.Store(tmp_path, 2) as store:
        store.save(1, saved(1))  # returns before it is written
        assert not list(tmp_path.glob("*.npz"))
        second = threading.Thread(target=store.save, args=(2, saved(2)))
        second.start()
        second.join(0.05)
        assert second.is_alive()  # waits for the first
        assert saving == ["1.npz"]
        may_go_on.set()
        second.join()
    assert saving == ["1.npz", "2.npz"]
    assert_is(newest(tmp_path)[0], 2)  # the block ended after the last save


def test_a_full_disk_is_told_once_and_leaves_what_was_there(two, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(two, directory)

    def full(stream, **arrays):
        stream.write(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    advice = r"could not be saved in .*No space left.*\). Those before it are intact: call again"
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=advice), stores.Store(directory, 2) as store:
            store.save(3, saved(3))
        with stores.Store(directory, 2) as store:
            store.save(3, saved(3))
            with pytest.raises(OSError, match=advice):
                store.save(4, saved(4))
    assert {path.name for path in directory.iterdir()} == {"1.npz", "2.npz"}
    with stores.Store(directory, 2) as store:
        store.save(3, saved(3))
    assert_is(newest(directory)[0], 3)


def test_an_event_that_another_process_has_saved_is_refused(two, tmp_path):
    """On a file system without locks, it may have got there first."""
    directory = tmp_path / "run"
    shutil.copytree(two, directory)
    match = "FileExistsError: event 2 has been saved there"
    with pytest.raises(OSError, match=match), stores.Store(directory, 2) as store:
        store.save(2, saved(2))


DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", ">f4", "complex64", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_survives_bit_for_bit(dtype, tmp_path):
    bits = np.arange(256, dtype=np.uint8)
    if dtype in ("bool", "int4", "uint4"):
        bits = bits % (2 if dtype == "bool" else 16)
    array = bits.view(np.dtype(dtype)).reshape(2, -1)
    arrays = {"rows": array, "columns": array.T, "one": array[0, 0, ...], "none": array[:0]}
    with stores.Store(tmp_path, 1) as store:
        store.save(1, stores.Saved(arrays, {}))
    with stores.Store(tmp_path, 1) as store:
        found = store.newest(lambda facts: None)
    for name, expected in arrays.items():
        got = found.arrays[name]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()


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
    half_written = directory / ".3.npz.abc"
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        half_written.touch()  # as if the other process were saving
        with pytest.raises(
            BlockingIOError,
            match=rf"run is in use: process {child.pid} on .* saves checkpoints there. Wait until",
        ):
            stores.Store(directory, 2)
        assert half_written.exists()
        child.kill()
    found, aside = newest(directory)
    assert not half_written.exists()
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
