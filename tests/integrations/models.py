"""Small flax models with batch normalisation and dropout, and their data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

from dcasgd_jax import sim

NUM_WORKERS = 4


class Net(nnx.Module):
    """A perceptron; `rate` is that of the dropout."""

    def __init__(self, rate=0.0, *, norm=True, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.7, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = x if self.norm is None else self.norm(x)
        return self.last(self.dropout(nnx.relu(x)))


class ConvNet(nnx.Module):
    """A convolution, batch normalisation and dropout."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.convolution = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.7, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(-1, 2, 3, 1)
        x = nnx.relu(self.norm(self.convolution(x))).mean(axis=(1, 2))
        return self.last(self.dropout(x))


class LinenNet(nn.Module):
    """The perceptron in Linen."""

    rate: float = 0.0
    norm: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.7)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def linen_variables(module):
    return module.init(jax.random.key(0), jnp.ones((2, 6)), train=False)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss(model, batch):
    images, labels = batch
    return cross_entropy(model(images), labels)


def linen_loss(model, batch):
    images, labels = batch
    return cross_entropy(model(images, train=True), labels)


def examples(seed, *shape):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(*shape, 6)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(images[..., :3].argmax(axis=-1))


TEST_IMAGES, TEST_LABELS = examples(99, 50)


def evaluate(model):
    return {"loss": cross_entropy(model(TEST_IMAGES), TEST_LABELS)}


def linen_evaluate(model):
    return {"loss": cross_entropy(model(TEST_IMAGES, train=False), TEST_LABELS)}


def schedule(num_updates=12, law=None, num_workers=NUM_WORKERS):
    return sim.make_schedule(law or sim.ExponentialTime(), num_workers, num_updates, seed=0)
