"""A small transformer on the characters of a text, for studies of workers that push."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pipeline import text, training

from dcasgd_jax import sim

HEADS = 2
VALIDATION_WINDOWS = 128
_NEWTON_STEPS = 12


class Task:
    """The same weights and batches for every run of a seed.

    Args:
      data: The text.
      width: Of the transformer.
      blocks: Of the transformer.
      context: Characters in a window.
    """

    def __init__(self, data: text.Text, *, width: int, blocks: int, context: int):
        self.data, self.width, self.blocks, self.context = data, width, blocks, context
        self.params = functools.cache(lambda seed: self._split(seed)[1].params)
        self._model, problem = self._split(0)
        characters, within = jnp.asarray(data.train), np.arange(context + 1)[None]
        starts = np.linspace(0, len(data.validation) - context - 1, VALIDATION_WINDOWS)
        self._held_out = jnp.asarray(data.validation)[starts.astype(int)[:, None] + within]
        self.loss_fn = lambda params, starts: problem.loss_fn(
            params, characters[starts[:, None] + within]
        )
        self.validation_loss = lambda params: problem.loss_fn(params, self._held_out)

    def _split(self, seed: int) -> tuple[Any, sim.Problem]:
        """Of flax, which only this needs: imported late."""
        from dcasgd_jax.integrations import nnx as dc_nnx
        from dcasgd_jax.integrations import transformer

        model = transformer.Transformer(
            vocabulary=len(self.data.vocabulary),
            context=self.context,
            width=self.width,
            num_blocks=self.blocks,
            num_heads=HEADS,
            rngs=transformer.nnx.Rngs(seed),
        )
        graph, _ = transformer.nnx.split(model)
        apply = lambda params, windows: transformer.nnx.merge(graph, params)(windows)
        return apply, dc_nnx.split_model(model, training.next_token_loss)

    def tempered_loss(self, params: Any) -> jax.Array:
        """The validation loss at the best temperature, which larger weights do not improve."""
        logits = self._model(params, self._held_out[:, :-1])
        return tempered_loss(logits, self._held_out[:, 1:])

    def starts(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """Where the windows of each batch begin; int32, [pushes, ...]."""
        last = len(self.data.train) - self.context
        return np.random.default_rng(seed).integers(last, size=shape, dtype=np.int32)


def tempered_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The least mean cross-entropy of logits that are multiplied by one number for all.

    Args:
      logits: [..., classes].
      labels: Integers [...].
    """

    def loss(log_scale):
        scaled = jnp.exp(log_scale) * logits
        return optax.softmax_cross_entropy_with_integer_labels(scaled, labels).mean()

    def step(_, log_scale):
        slope, bend = jax.grad(loss)(log_scale), jax.grad(jax.grad(loss))(log_scale)
        # Where the loss bends down, Newton's step would lead up.
        moved = jnp.where(bend > 0, -slope / bend, -jnp.sign(slope))
        return log_scale + jnp.clip(moved, -0.5, 0.5)

    best = jax.lax.fori_loop(0, _NEWTON_STEPS, step, jnp.zeros(()))
    return jnp.minimum(loss(best), loss(jnp.zeros(())))
