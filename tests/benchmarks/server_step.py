"""The server's step: DC-ASGD-a with per-worker backups against Adam, on ResNet-50's shapes."""

import math

import jax
import jax.numpy as jnp
import optax
from timing import Row, alternate

import dcasgd_jax as dc


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of ResNet-50's 161 parameters, 25.6 million numbers."""
    shapes = {"stem": (7, 7, 3, 64), "head": (2048, 1000), "head_bias": (1000,)}
    norms = {"stem": 64}
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            name = f"{stage}.{block}"
            convolutions = {
                "a": (1, 1, channels, width),
                "b": (3, 3, width, width),
                "c": (1, 1, width, 4 * width),
            }
            if block == 0:
                convolutions["shortcut"] = (1, 1, channels, 4 * width)
            for part, shape in convolutions.items():
                shapes[f"{name}.{part}"] = shape
                norms[f"{name}.{part}"] = shape[-1]
            channels = 4 * width
    for name, size in norms.items():
        shapes[f"{name}.scale"] = shapes[f"{name}.offset"] = (size,)
    return shapes


def make_step(tx, shapes: dict[str, tuple[int, ...]], num_workers: int, **extra_args):
    """A function that makes one update and applies it, donated, and the list of its results."""
    fill = lambda value: {name: jnp.full(shape, value) for name, shape in shapes.items()}
    grads = fill(0.01)

    def step(params, state, grads, worker):
        updates, state = tx.update(grads, state, params, worker=worker, **extra_args)
        return optax.apply_updates(params, updates), state

    params = jax.jit(lambda: fill(0.1))()
    carry = [params, tx.init(params)]
    compiled = jax.jit(step, donate_argnums=(0, 1))
    event = iter(range(10**9))

    def run():
        worker = jnp.int32(next(event) % num_workers)
        carry[:] = jax.block_until_ready(compiled(*carry, grads, worker))

    return run, carry


def num_params(shapes: dict[str, tuple[int, ...]]) -> int:
    """Numbers in all leaves together."""
    return sum(math.prod(shape) for shape in shapes.values())


def rows(shapes: dict | None = None, num_workers: int = 4, repeats: int = 15) -> list[Row]:
    """Update + apply, donated: DC-ASGD-a against Adam; and the size of the state."""
    shapes = resnet50_shapes() if shapes is None else shapes
    size = num_params(shapes)
    ours, carry = make_step(dc.dcasgd(0.1, num_workers=num_workers), shapes, num_workers)
    adam_tx = optax.with_extra_args_support(optax.adam(1e-3))
    adam, _ = make_step(adam_tx, shapes, num_workers)
    state_size = sum(
        leaf.size
        for leaf in jax.tree.leaves(carry[1])
        if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    ours_seconds, adam_seconds = alternate(ours, adam, repeats=repeats)
    return [
        Row(
            f"DC-ASGD-a update + apply, {size / 1e6:.1f}M float32, {num_workers} backups, vs Adam",
            f"{ours_seconds * 1e3:.1f} ms",
            f"{adam_seconds * 1e3:.1f} ms",
            ours_seconds / adam_seconds,
            "<= 1.25",
        ),
        Row(
            f"its state, in parameters, vs ({num_workers} backups + 1 mean square)",
            f"{state_size / size:.6g} P",
            f"{num_workers + 1} P",
            state_size / size / (num_workers + 1),
            "= 1",
        ),
    ]
