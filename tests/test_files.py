"""Files that appear whole or not at all."""

import os
import threading

import pytest

from dcasgd_jax import files


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_appears_when_it_is_whole(tmp_path, umask):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with files.replacing(path) as stream:
        stream.write(b"after")
        (temporary,) = tmp_path.glob(".a.txt.*")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
    assert not temporary.exists()


def interrupted(path):
    with files.replacing(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        interrupted(tmp_path / "nowhere" / "a.txt")
    assert not list(tmp_path.iterdir())


def test_threads_write_at_once(tmp_path, umask):
    def write(number):
        for _ in range(20):
            with files.replacing(tmp_path / "same") as stream:
                stream.write(b"%d" % number * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.iterdir()
    assert len(set(path.read_bytes())) == 1
    assert os.umask(0o027) == 0o027
