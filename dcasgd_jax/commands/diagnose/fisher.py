"""The paper's experiment: outer products of gradients against the Hessian, softmax regression."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import diagnostics, digits
from dcasgd_jax.typing import PyTree

MODEL = "softmax"
STRENGTHS = tuple(np.linspace(0.0, 1.5, 31).round(3).tolist())
STEPS, LEARNING_RATE = 200, 1.0  # of gradient descent on all training images
PARAMS, LABELS = ("initial", "trained"), ("model", "data")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Errors of λG against λ, relative to |H|²; see `diagnostics.outer_product_error`."""

    params: str  # of PARAMS
    labels: str  # of LABELS: drawn from what the model predicts, or those of the data
    matrix: str  # "full" or "diagonal"
    strengths: list[float]
    mse: list[float]
    bias_square: list[float]
    variance: list[float]
    best_strength: float
    least_mse: float
    mse_at_one: float


def run(seed: int = 0) -> list[Curve]:
    """All combinations of params, labels and matrices."""
    data = digits.load().train
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    params = digits.problem(MODEL, seed).params
    curves = []
    for name in PARAMS:
        if name == "trained":
            params = _train(params, images, labels)
        drawn = jax.random.categorical(jax.random.key(seed), digits.logits(params, images))
        for kind, chosen in zip(LABELS, (drawn, labels), strict=True):
            errors = _errors(params, (images, chosen))
            curves += [
                _curve(name, kind, matrix, getattr(errors, matrix)) for matrix in errors._fields
            ]
    return curves


def sentence(curve: Curve) -> str:
    """One curve in words."""
    who = "the model's own labels" if curve.labels == "model" else "the labels of the data"
    return (
        f"{curve.params}, {who}, {curve.matrix}: best lambda {curve.best_strength:.2g} with "
        f"error {curve.least_mse:.3g} (lambda 1: {curve.mse_at_one:.3g})"
    )


def _curve(params: str, labels: str, matrix: str, error: diagnostics.OuterProductError) -> Curve:
    error = jax.tree.map(np.asarray, error)
    return Curve(
        params=params,
        labels=labels,
        matrix=matrix,
        strengths=list(STRENGTHS),
        mse=error.mse.tolist(),
        bias_square=error.bias_square.tolist(),
        variance=error.variance.tolist(),
        best_strength=float(error.best_strength),
        least_mse=float(error.least_mse),
        mse_at_one=float(error.mse[STRENGTHS.index(1.0)]),
    )


def _loss(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    images, labels = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(digits.logits(params, images), labels)
    return jnp.mean(losses)


@jax.jit
def _errors(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> diagnostics.OuterProductErrors:
    return diagnostics.outer_product_error(_loss, params, batch, jnp.asarray(STRENGTHS))


@jax.jit
def _train(params: PyTree, images: jax.Array, labels: jax.Array) -> PyTree:
    def step(_, params):
        grads = jax.grad(_loss)(params, (images, labels))
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, grads)

    return jax.lax.fori_loop(0, STEPS, step, params)
