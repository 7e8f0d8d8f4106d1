"""How long a run takes, over all the processes that worked on it, and how long a gradient takes."""

import contextlib
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax.commands import records
from dcasgd_jax.typing import PyTree

_REPEATS = 8


class Clock:
    """Counts seconds in a file, so that those of a killed process count as well."""

    def __init__(self, path: pathlib.Path):
        self._path, self._start, self._before = path, time.perf_counter(), 0.0
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._before = float(records.read_json(path))

    @property
    def seconds(self) -> float:
        """Of this process."""
        return time.perf_counter() - self._start

    @property
    def total(self) -> float:
        """Of all processes."""
        return self._before + self.seconds

    def save(self) -> None:
        """Writes the total down."""
        records.write_json(self._path, self.total)


def seconds_per_gradient(problem: Any, examples: PyTree, batch_size: int) -> float:
    """What one gradient takes without a simulator around it; measured once in a process."""
    return _measure(problem.loss_fn, _Arrays(problem, examples), batch_size)


class _Arrays:
    """Arrays that the cache of `_measure` ignores: equal to all others."""

    def __init__(self, problem: Any, examples: PyTree):
        self.problem, self.examples = problem, examples

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Arrays)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=1)
def _measure(loss_fn: Any, arrays: _Arrays, batch_size: int) -> float:
    problem, examples = arrays.problem, arrays.examples
    rows = jnp.arange(batch_size)

    def gradient(params, model_state, key):
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), examples)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        return value_and_grad(params, model_state, batch, key)

    def several(params, model_state, key):
        """In a loop of the device, as there; the next gradient waits for the one before it."""

        def body(carry, index):
            params, model_state = carry
            (loss, model_state), grads = gradient(
                params, model_state, jax.random.fold_in(key, index)
            )
            params = jax.tree.map(lambda w, g: w - 1e-6 * g.astype(w.dtype), params, grads)
            return (params, model_state), loss

        return jax.lax.scan(body, (params, model_state), jnp.arange(_REPEATS))

    def one_by_one(params, model_state, key):
        return [compiled(params, model_state, key) for _ in range(_REPEATS)]

    on_cpu = jax.default_backend() == "cpu"
    compiled = jax.jit(gradient if on_cpu else several)
    repeated = one_by_one if on_cpu else compiled
    arguments = (problem.params, problem.model_state, jax.random.key(0))
    jax.block_until_ready(compiled(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(repeated(*arguments))
    return (time.perf_counter() - start) / _REPEATS
