"""Messages: raw bytes that fit one tree of parameters and no other."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcasgd_jax.runtime import messages, shards
from dcasgd_jax.runtime.layout import make_layout

TREE = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16),
    "deep": [np.float32(7.0), np.zeros((0, 5), np.float32)],
}


def test_a_tree_survives_the_wire():
    layout = make_layout(TREE)
    message = layout.pack(layout.to_wire(TREE))
    assert [part.nbytes for part in message] == list(layout.section_bytes)
    assert all(part.dtype == np.uint8 for part in message)
    back = layout.from_wire(layout.unpack(message))
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_bfloat16_on_the_wire_is_half_as_long_and_rounded_once():
    params = {"w": np.linspace(-1, 1, 64, dtype=np.float32)}
    whole, half = make_layout(params), make_layout(params, "bfloat16")
    assert whole.num_bytes == 2 * half.num_bytes
    assert half.casts
    assert not whole.casts
    back = half.from_wire(half.unpack(half.pack(half.to_wire(params))))
    assert back["w"].dtype == np.float32
    np.testing.assert_array_equal(back["w"], jnp.asarray(params["w"], jnp.bfloat16))


def test_large_leaves_are_sent_without_a_copy_and_small_ones_together():
    tree = [np.ones(size, np.float32) for size in (4, (200, 100), 5, 20_000)]
    layout = make_layout(tree)
    message = layout.pack(tree)
    assert layout.section_bytes == (64 + 5 * 4, 80_000, 80_000)
    assert np.shares_memory(message[1], tree[1])
    assert np.shares_memory(message[2], tree[3])
    for one, other in zip(layout.unpack(message), tree, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.shares_memory(layout.unpack(message)[1], tree[1])


@pytest.mark.parametrize("message", [
    [np.zeros(4 * 12 - 1, np.uint8)], [np.zeros(4 * 12 + 4, np.uint8)], [np.zeros(0, np.uint8)],
    [np.zeros(12, np.float32)], [np.zeros((1, 48), np.uint8)], [b"0" * 48], [], None,
    [np.zeros(48, np.uint8)] * 2, np.zeros(48, np.uint8),
])  # fmt: skip
def test_another_length_is_refused_before_anything_is_made_of_it(message):
    with pytest.raises(ValueError, match=r"\(48,\) bytes was expected"):
        make_layout({"w": np.zeros((3, 4), np.float32)}).unpack(message)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": np.zeros((6, 4), np.float32), "b": np.zeros(3, np.float32)},
         r"its parameter \['w'\] has shape \(6, 4\), but the server's has shape \(6, 3\)"),
        ({"w": np.zeros((6, 3), np.float16), "b": np.zeros(3, np.float32)},
         r"\['w'\] has dtype float16, but the server's has dtype float32"),
        ({"w": np.zeros((6, 3), np.float32)}, r"Worker 2 has no parameter \['b'\]"),
        ({"w": np.zeros((6, 3), np.float32), "b": np.zeros(3, np.float32), "c": np.ones(1)},
         r"Worker 2 has a parameter \['c'\], but the server has none"),
    ],
)  # fmt: skip
def test_another_tree_is_refused_by_name(other, message):
    layout = make_layout({"w": np.zeros((6, 3), np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=message):
        layout.check(make_layout(other).describe(), "Worker 2")


def test_the_digest_tells_layouts_apart():
    params = {"w": np.zeros((6, 4), np.float32)}
    same = {"w": np.ones((6, 4), np.float32)}
    transposed = {"w": np.ones((4, 6), np.float32)}
    assert make_layout(params).digest() == make_layout(same).digest()
    assert make_layout(params).digest() != make_layout(transposed).digest()
    assert make_layout(params).digest() != make_layout(params, "bfloat16").digest()


@pytest.mark.parametrize(
    ("params", "wire_dtype", "error", "message"),
    [
        ({}, None, ValueError, "no parameters"),
        ({"n": np.arange(3)}, None, TypeError, r"\['n'\] is int"),
        ({"z": np.zeros(3, np.complex64)}, None, TypeError, "complex64"),
        ({"w": np.zeros(3)}, "float8", ValueError, "wire_dtype"),
    ],
)
def test_what_cannot_be_sent(params, wire_dtype, error, message):
    with pytest.raises(error, match=message):
        make_layout(params, wire_dtype)


def test_headers_survive_and_others_are_refused():
    push = messages.Push(3, 2**63 + 1, 2**64 - 1, 10**12, 7, 0.25, True)
    packed = messages.pack_push(push)
    assert len(packed) == 64
    assert messages.unpack_push(packed) == push
    reply = messages.Reply(messages.Outcome.DROPPED, 5, 6, 7, None)
    assert messages.unpack_reply(messages.pack_reply(reply)) == reply
    for wrong in (packed[:-1], b"DCr1" + packed[4:], packed.hex(), None):
        with pytest.raises(ValueError, match="no message"):
            messages.unpack_push(wrong)


@hypothesis.given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 5))
@hypothesis.settings(deadline=None, max_examples=30)
def test_shards_have_every_leaf_once_and_are_balanced(sizes, num_shards):
    tree = [np.full(size, index, np.float32) for index, size in enumerate(sizes)]
    if num_shards > len(tree):
        with pytest.raises(ValueError, match="leaves are not cut"):
            shards.make_split(shards.Part(tree), num_shards)
        return
    split = shards.make_split(shards.Part(tree), num_shards)
    parts = [split.subtree(tree, shard) for shard in range(num_shards)]
    for one, other in zip(split.merge(parts), tree, strict=True):
        assert one is other
    loads = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts]
    assert max(loads) - min(loads) <= max(sizes)
    assert all(jax.tree.leaves(part) for part in parts)


def test_leaves_keep_their_names_in_a_shard():
    split = shards.make_split(shards.Part(TREE), 2)
    names = [leaf.name for layout in split.layouts for leaf in layout.leaves]
    assert sorted(names) == sorted(leaf.name for leaf in make_layout(TREE).leaves)
    leaves = [layout.to_wire(split.subtree(TREE, s)) for s, layout in enumerate(split.layouts)]
    for one, other in zip(split.to_wire(TREE), leaves, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    whole = split.from_wire(leaves)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(TREE), strict=True):
        np.testing.assert_array_equal(one, other)
