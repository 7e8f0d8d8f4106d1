"""The transformer: what a position may see, what it is made of, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from flax import nnx

from dcasgd_jax.integrations.transformer import Transformer

SIZES = dict(vocabulary=11, context=8, width=12, num_blocks=2, num_heads=3)


def make(seed=0, **sizes):
    return Transformer(**(SIZES | sizes), rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def model():
    """Its logits, compiled."""
    graphdef, state = nnx.split(make())
    return jax.jit(lambda tokens: nnx.merge(graphdef, state)(tokens))


def random_tokens(seed=0, length=8):
    return np.random.default_rng(seed).integers(SIZES["vocabulary"], size=(4, length))


def replaced(tokens, columns, values):
    changed = tokens.copy()
    changed[:, columns] = values
    return changed


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_token_changes_no_logits_before_it_and_all_from_it_on(model, position):
    tokens = random_tokens()
    changed = replaced(tokens, position, (tokens[:, position] + 1) % SIZES["vocabulary"])
    moved = np.abs(np.asarray(model(changed)) - model(tokens)).max(axis=(0, 2))
    np.testing.assert_array_equal(moved[:position], 0)
    assert (moved[position:] > 1e-4).all()


def test_the_order_of_the_past_matters(model):
    """Without positions attention would see a set."""
    tokens = random_tokens()
    swapped = replaced(tokens, slice(0, 2), tokens[:, 1::-1])
    assert np.abs(np.asarray(model(swapped)) - model(tokens))[:, -1].max() > 1e-4


def test_shorter_sequences_give_the_same_logits(model):
    tokens = random_tokens()
    expected = np.asarray(model(tokens))[:, :5]
    np.testing.assert_allclose(model(tokens[:, :5]), expected, atol=1e-5)


def test_parameters_are_named_by_their_place_in_the_pipeline():
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    assert set(params) == {"embedding", "positions", "blocks", "norm", "head"}
    assert set(params["blocks"]) == {0, 1}
    width, tokens = SIZES["width"], SIZES["vocabulary"]
    of_block = 12 * width**2 + 2 * width
    ends = 2 * tokens * width + SIZES["context"] * width + width
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * of_block + ends


def test_it_starts_near_a_uniform_guess(model):
    loss = -jax.nn.log_softmax(model(random_tokens())).mean()
    assert abs(loss - jnp.log(SIZES["vocabulary"])) < 0.05


def test_seeds_draw_other_weights():
    kernels = [np.asarray(make(seed, num_blocks=1).head.kernel[...]) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3


def test_more_tokens_than_the_context_are_refused(model):
    """Flax gives positions that are not there NaN."""
    with pytest.raises(ValueError, match="tokens are 9 long, but context is 8"):
        model(random_tokens(length=9))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="num_heads 5 does not divide width 12"):
        make(num_heads=5)
