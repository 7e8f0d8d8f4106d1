"""A small decoder-only transformer for sequences of tokens, in Flax NNX.

Blocks normalise before they transform (pre-LN), linear layers have no bias, positions are learnt,
and embedding and head do not share weights, so that they can sit in different stages of a pipeline.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["Transformer"]


class _Attention(nnx.Module):
    """Every position looks at itself and at those before it."""

    def __init__(self, width, num_heads, *, residual_std, rngs):
        self.num_heads = num_heads
        self.query_key_value = _linear(width, 3 * width, 1 / math.sqrt(width), rngs)
        self.out = _linear(width, width, residual_std, rngs)

    def __call__(self, x):
        batch, length, width = x.shape
        heads = self.query_key_value(x).reshape(batch, length, 3 * self.num_heads, -1)
        query, key, value = jnp.split(heads, 3, axis=2)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.reshape(batch, length, width))


class _Block(nnx.Module):
    """Attention, then a perceptron four times as wide, each added to its input."""

    def __init__(self, width, num_heads, num_blocks, *, rngs):
        # Each of the 2 * num_blocks summands adds to the variance of the sum.
        shrink = 1 / math.sqrt(2 * num_blocks)
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = _Attention(
            width, num_heads, residual_std=shrink / math.sqrt(width), rngs=rngs
        )
        self.perceptron_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = _linear(width, 4 * width, 1 / math.sqrt(width), rngs)
        self.down = _linear(4 * width, width, shrink / math.sqrt(4 * width), rngs)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(nnx.gelu(self.up(self.perceptron_norm(x))))


class Transformer(nnx.Module):
    """A decoder-only transformer: token and position embedding, blocks, a normalised linear head.

    Its parameters are in `embedding`, `positions`, `blocks/0`, `blocks/1`, ..., `norm` and `head`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dcasgd_jax.integrations.transformer import Transformer
      >>> from flax import nnx
      >>> model = Transformer(vocabulary=65, context=32, width=16, num_blocks=2, num_heads=2,
      ...                     rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((4, 32), jnp.int32)).shape
      (4, 32, 65)
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        rngs: nnx.Rngs,
    ):
        """Draws the weights.

        Args:
          vocabulary: Number of tokens; length of the logits.
          context: Longest sequence.
          width: Length of the vector at each position.
          num_blocks: Blocks of attention and perceptron, ≥ 1.
          num_heads: Of attention; divides `width`.
          rngs: Random streams for the weights.

        Raises:
          ValueError: If `num_heads` does not divide `width`.
        """
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide width {width}.")
        # As large as what the blocks add: embeddings of the usual 0.02 would drown in it.
        unit = nnx.initializers.normal(math.sqrt(0.5))
        self.embedding = nnx.Embed(vocabulary, width, embedding_init=unit, rngs=rngs)
        self.positions = nnx.Embed(context, width, embedding_init=unit, rngs=rngs)
        self.blocks = nnx.List(
            _Block(width, num_heads, num_blocks, rngs=rngs) for _ in range(num_blocks)
        )
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = _linear(width, vocabulary, 0.02, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits `[batch, length, vocabulary]` of the token after each of `tokens`.

        Args:
          tokens: Integers `[batch, length]` in [0, vocabulary); `length` at most the context.

        Raises:
          ValueError: If they are longer.
        """
        length, context = tokens.shape[-1], self.positions.num_embeddings
        if length > context:
            raise ValueError(f"The tokens are {length} long, but context is {context}.")
        x = self.embedding(tokens) + self.positions(jnp.arange(length))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _linear(inputs: int, outputs: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer without bias, weights from N(0, std²)."""
    return nnx.Linear(
        inputs, outputs, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs
    )
