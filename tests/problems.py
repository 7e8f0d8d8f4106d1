"""Small training problems for simulator tests."""

import functools

import calls
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import sim


def softmax_params(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(0.1 * rng.normal(size=(6, 3)), dtype), "b": jnp.zeros(3, dtype)}


def softmax_batches(num_events, dtype=np.float32, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(num_events, 8, 6)).astype(dtype)
    labels = images[..., :3].argmax(axis=-1).astype(np.int32)
    return images, labels


def softmax_loss(params, batch):
    images, labels = batch
    logits = images @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def gradient_of(loss_fn):
    """The same compiled function again for all literal loops."""
    return jax.jit(jax.grad(loss_fn))


def noisy_loss(params, batch, key):
    images, labels = batch
    keep = jax.random.bernoulli(key, 0.8, images.shape).astype(images.dtype)
    return softmax_loss(params, (images * keep, labels))


def make_adaptive(learning_rate=0.3, lambda0=2.0, momentum=0.5, **options):
    return optax.chain(
        compensations.explicit(lambda0, ms_decay=0.95, **options),
        optax.sgd(learning_rate, momentum=momentum),
    )


# The same object again, so that tests share compiled programs.
adaptive = functools.cache(make_adaptive)

ENGINES = [
    sim.ScanEngine(),
    sim.ScanEngine(chunk_size=7),
    sim.HostEngine(),
    sim.HostEngine(chunk_size=5),
    sim.HostEngine(jit=False),
]
NUM_EVENTS = 60


def schedule_for(protocol=None, law=None, num_updates=NUM_EVENTS, seed=0):
    return sim.make_schedule(
        law or sim.ExponentialTime(), 4, num_updates, seed=seed, protocol=protocol
    )


def run(schedule, tx=None, **options):
    dtype = options.pop("dtype", np.float32)
    return calls.simulate(
        options.pop("loss_fn", softmax_loss),
        softmax_params(dtype),
        adaptive() if tx is None else tx,
        schedule,
        softmax_batches(len(schedule), dtype),
        **options,
    )
