"""Training: one compiled scan for several runs at once, which differ in numbers and seeds only."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import rivals
from dcasgd_jax.commands import study
from dcasgd_jax.transforms import delays as known_delays
from dcasgd_jax.typing import PyTree
from pipeline import delays, methods, optimizers, settings, text

LANES = 3
"""Runs of a compiled program. On one CPU core a step of a run took 3.1 ms alone, 2.3 ms as one of
three, 2.3 ms of six, 2.6 ms of twelve (Adam, the default model, 2026-11-24)."""


class Numbers(NamedTuple):
    """What a compiled program takes of each run; arrays [lanes]."""

    learning_rate: Any
    lambda0: Any  # 0 where nothing is compensated: exactly the optimizer alone
    max_pull: Any  # infinite where there is no cap
    predicts: Any  # bool: whether gradients are taken at predicted weights


class Curves(NamedTuple):
    """Of each run."""

    train_loss: jax.Array  # [evaluations], mean over the steps since the evaluation before
    validation_loss: jax.Array  # [evaluations + 1], the first one before any step


Program = Callable[..., Curves]


class Workload:
    """A text and a transformer, the same initial weights and batches for every run of a seed."""

    def __init__(self, setting: settings.Setting, data: text.Text):
        self.setting, self.data = setting, data
        self.windows = _evenly_spaced(data.validation, setting.context)
        self.problem = functools.cache(self._make_problem)
        self.starts = functools.cache(self._draw_starts)

    def _make_problem(self, seed: int) -> Any:
        """Of flax, which only the experiments with models need: imported late."""
        from dcasgd_jax.integrations import nnx as dc_nnx
        from dcasgd_jax.integrations import transformer

        setting = self.setting
        model = transformer.Transformer(
            vocabulary=len(self.data.vocabulary),
            context=setting.context,
            width=setting.width,
            num_blocks=setting.blocks,
            num_heads=setting.heads,
            rngs=transformer.nnx.Rngs(seed),
        )
        return dc_nnx.split_model(model, next_token_loss)

    def _draw_starts(self, seed: int) -> np.ndarray:
        """Where the windows of each batch begin; [updates, batch]."""
        last = len(self.data.train) - self.setting.context
        generator = np.random.default_rng(seed)
        return generator.integers(last, size=(self.setting.updates, self.setting.batch_size))


def next_token_loss(model: Any, windows: jax.Array) -> jax.Array:
    """Mean cross-entropy of every token of `windows` [batch, context + 1] but the first."""
    logits = model(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


@functools.lru_cache(maxsize=1)
def make_program(workload: Workload, optimizer: str, delay: str, pulls: bool = False) -> Program:
    """Compiles at its first call; reused for all methods that do not pull, numbers and seeds.

    Args:
      workload: Text and model.
      optimizer: One of `optimizers.OPTIMIZERS`.
      delay: As in `delays.make_delay`.
      pulls: Whether it is the program of `methods.PULL`.

    Returns:
      A function of the tokens [characters], and for each of `LANES` runs of the initial parameters,
      the starts of its batches [updates, batch] and its `Numbers`.
    """
    setting = workload.setting
    loss_fn = workload.problem(0).loss_fn
    delay_of = delays.make_delay(delay, setting.blocks)
    warm_up = math.ceil(settings.WARM_UP * setting.updates)
    validation = jnp.asarray(workload.windows)
    make = functools.partial(make_pull, setting.tokens_per_step) if pulls else make_transformation

    def train(tokens: jax.Array, params: PyTree, starts: jax.Array, numbers: Numbers) -> Curves:
        tx = make(optimizer, delay_of, numbers, warm_up)
        horizons = known_delays.delay_of_each_leaf(delay_of, params)

        def step(carry, starts):
            params, state = carry
            predicted = predict(params, state, horizons)
            choose = functools.partial(jnp.where, numbers.predicts)
            at = jax.tree.map(choose, predicted, params)
            windows = tokens[starts[:, None] + jnp.arange(setting.context + 1)[None]]
            loss, grads = jax.value_and_grad(loss_fn)(at, windows)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        def steps_and_evaluation(carry, starts):
            carry, losses = jax.lax.scan(step, carry, starts)
            return carry, (losses.mean(), loss_fn(carry[0], validation))

        carry = (params, tx.init(params))
        parts = starts.reshape(settings.EVALUATIONS, -1, setting.batch_size)
        _, (train_loss, losses) = jax.lax.scan(steps_and_evaluation, carry, parts)
        first = loss_fn(params, validation)
        return Curves(train_loss, jnp.concatenate([first[None], losses]))

    return jax.jit(jax.vmap(train, in_axes=(None, 0, 0, 0)))


def make_transformation(
    optimizer: str, delay: known_delays.Delay, numbers: Numbers, warm_up: int
) -> optax.GradientTransformationExtraArgs:
    """Delayed raw gradients, compensated, into an optimizer, whose last step is remembered."""
    schedule = optimizers.make_schedule(numbers.learning_rate, warm_up)
    compensate = dc.compensate_delay(
        numbers.lambda0,
        curvature=dc.curvatures.adaptive(settings.MS_DECAY),
        max_pull=numbers.max_pull,
        learning_rate=schedule,
    )
    optimize = optimizers.OPTIMIZERS[optimizer].make(schedule)
    return dc.delay_gradients(optax.chain(compensate, optimize, rivals.remember_step()), delay)


def make_pull(
    terms: int, optimizer: str, delay: known_delays.Delay, numbers: Numbers, warm_up: int
) -> optax.GradientTransformationExtraArgs:
    """Delayed raw gradients into an optimizer, with a pull in its own steps outside of it."""
    schedule = optimizers.make_schedule(numbers.learning_rate, warm_up)
    compensated = dc.compensate_updates(
        optimizers.OPTIMIZERS[optimizer].make(schedule),
        numbers.lambda0,
        learning_rate=schedule,
        curvature=dc.curvatures.rotated(terms, sides="both"),
        max_pull=numbers.max_pull,
        preconditioner=optimizers.OPTIMIZERS[optimizer].preconditioner,
    )
    return dc.delay_gradients(optax.chain(compensated, rivals.remember_step()), delay)


def numbers_of(method: str, numbers: methods.Numbers) -> Numbers:
    """As the program takes them."""
    return Numbers(
        numbers.learning_rate,
        0.0 if numbers.lambda0 is None else numbers.lambda0,
        math.inf if numbers.max_pull is None else numbers.max_pull,
        methods.METHODS[method].send is not None,
    )


def predict(params: PyTree, state: PyTree, horizons: PyTree) -> PyTree:
    """Every leaf as many last steps further as its gradient will be late."""
    different = sorted(set(jax.tree.leaves(horizons)) - {0})
    moved = [rivals.sends.step_prediction(horizon)(params, state) for horizon in different]

    def choose(horizon, leaf, *moved_leaf):
        return moved_leaf[different.index(horizon)] if horizon else leaf

    return jax.tree.map(choose, horizons, params, *moved)


def train(
    workload: Workload,
    optimizer: str,
    delay: str,
    method: str,
    members: Sequence[study.Member],
    progress: study.Progress,
) -> Iterator[study.Outcome]:
    """Trains members, `LANES` at a time; yields the curves of each."""
    program = make_program(workload, optimizer, delay, method == methods.PULL)
    for start in range(0, len(members), LANES):
        some = members[start : start + LANES]
        for curves in train_lanes(workload, program, method, some):
            yield {
                name: [float(f"{loss:.5g}") for loss in column]
                for name, column in curves._asdict().items()
            }
        progress(len(some))


def train_lanes(
    workload: Workload, program: Program, method: str, members: Sequence[study.Member]
) -> list[Curves]:
    """Trains up to `LANES` members with a program of their optimizer and delay."""
    lanes = [*members, *[members[-1]] * (LANES - len(members))]  # the last again where one lacks
    params = [workload.problem(member.seed).params for member in lanes]
    numbers = [numbers_of(method, member.numbers) for member in lanes]
    curves = program(
        jnp.asarray(workload.data.train),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *params),
        jnp.asarray(np.stack([workload.starts(member.seed) for member in lanes])),
        jax.tree.map(lambda *leaves: jnp.asarray(leaves), *numbers),
    )
    host = jax.device_get(curves)
    return [Curves(host.train_loss[i], host.validation_loss[i]) for i in range(len(members))]


def _evenly_spaced(tokens: np.ndarray, context: int) -> np.ndarray:
    """Windows to validate on; [windows, context + 1]."""
    last = len(tokens) - context - 1
    starts = np.linspace(0, last, settings.VALIDATION_WINDOWS).astype(int)
    return tokens[starts[:, None] + np.arange(context + 1)]
