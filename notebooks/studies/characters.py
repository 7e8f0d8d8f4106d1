"""A small transformer on the characters of a text, for studies of workers that push."""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pipeline import text, training

from dcasgd_jax import sim
from dcasgd_jax.commands import values

HEADS = 2
VALIDATION_WINDOWS = 128
_NEWTON_STEPS = 12


@dataclasses.dataclass(frozen=True)
class Setting:
    """Model and batches; a study adds what else all runs of its folder share."""

    width: int = 32
    blocks: int = 2
    context: int = 32
    batch_size: int = 8

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """What the options say."""
        return cls(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(cls)})


def add_options(parser: argparse.ArgumentParser, setting: type[Setting]) -> None:
    """Adds the option of the text, and one for each field of a setting."""
    parser.add_argument(
        "--data-file", type=pathlib.Path, metavar="FILE",
        help="plain text in UTF-8 to train on; default: one made up on the spot",
    )  # fmt: skip
    for field in dataclasses.fields(setting):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            option, type=values.integer_from(1), default=field.default, metavar="N",
            help=f"default: {field.default}",
        )  # fmt: skip


def read_text(arguments: argparse.Namespace) -> text.Text:
    """The text that the options ask for.

    Raises:
      UsageError: If it cannot be read, or is too short for a window.
    """
    data = text.generate() if arguments.data_file is None else text.read(arguments.data_file)
    text.check_length(data, arguments.context)
    return data


class Task:
    """The same weights and batches for every run of a seed."""

    def __init__(self, data: text.Text, setting: Setting):
        self.data, self.setting = data, setting
        context = setting.context
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
            context=self.setting.context,
            width=self.setting.width,
            num_blocks=self.setting.blocks,
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
        last = len(self.data.train) - self.setting.context
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
