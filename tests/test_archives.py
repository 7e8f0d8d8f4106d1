"""Files of arrays: any damage is refused, or does not matter."""

import io

import numpy as np
import pytest

from dcasgd_jax import archives

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(7, np.int64),
    "long": np.arange(9000, dtype=np.uint16),  # longer than what zipfile reads at once
    "none": np.zeros((0, 2)),
}


def saved(path, compressed):
    archives.save(path, ARRAYS, compressed)
    return bytearray(path.read_bytes())


def is_noticed(path, content):
    """Or else all is as it was."""
    path.write_bytes(content)
    try:
        loaded = archives.load(path)
    except ValueError:
        return True
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
    return loaded.keys() != ARRAYS.keys()


@pytest.mark.parametrize("compressed", [False, True])
def test_every_byte_of_a_file_counts_or_does_not_matter(compressed, tmp_path):
    path = tmp_path / "a.npz"
    content = saved(path, compressed)
    with np.load(path, allow_pickle=False) as stored:
        assert set(stored.files) == set(ARRAYS)
    inside = (
        content.index(b"long.npy") + 500,
        content.rindex(b"none.npy", 0, content.index(b"PK\1")),
    )
    everywhere = [at for at in range(len(content)) if not inside[0] < at < inside[1] - 50]
    rng = np.random.default_rng(0)
    noticed = 0
    for at in [*everywhere, *rng.integers(*inside, 100)]:
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        noticed += is_noticed(path, changed)
    assert noticed > len(everywhere) / 2
    for length in (*range(0, len(content), 97), *range(len(content) - 60, len(content))):
        assert is_noticed(path, content[:length]), length


def test_a_damaged_shape_is_noticed(tmp_path):
    """`np.load` reads 2000 elements, and does not come to the checksum after the last."""
    path = tmp_path / "a.npz"
    content = saved(path, False)
    content[content.index(b"(9000,)") + 1] = ord("2")
    with np.load(io.BytesIO(content)) as stored:
        assert stored["long"].shape == (2000,)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^BadZipFile: Bad CRC-32 for file 'long\.npy'"):
        archives.load(path)


def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        archives.load(tmp_path / "a.npz")


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}]))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        archives.load(path)
