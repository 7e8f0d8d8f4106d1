"""What curvatures that know directions cost: a push against one without compensation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from timing import Row, alternate

import dcasgd_jax as dc
from dcasgd_jax import sim

WORKERS, RATE = 8, 0.05
CURVATURES = {
    "adaptive()": dc.curvatures.adaptive(),
    "rows(B)": dc.curvatures.rows(16),
    "rotated(B)": dc.curvatures.rotated(16),
    "rotated(B, sides='both')": dc.curvatures.rotated(16, sides="both"),
}
SGD = {"plain ASGD": optax.sgd(RATE)} | {
    name: dc.compensate_updates(optax.sgd(RATE), 1.0, curvature=curvature, learning_rate=RATE)
    for name, curvature in CURVATURES.items()
}


def in_its_steps(name, optimizer, preconditioner):
    """An optimizer that divides its steps, alone and with a pull in them."""
    return {f"plain {name}": optimizer} | {
        f"{curvature} in {name}'s steps": dc.compensate_updates(
            optimizer,
            1.0,
            curvature=CURVATURES[curvature],
            learning_rate=RATE,
            preconditioner=preconditioner,
        )
        for curvature in CURVATURES
        if curvature.startswith("rotated")
    }


ADAM = in_its_steps("Adam", optax.adam(RATE), dc.preconditioners.adam())
MUON = in_its_steps("Muon", contrib.muon(RATE), dc.preconditioners.muon())


def mlp_loss(params, batch):
    """64-64-10 tanh network, mean cross-entropy."""
    images, labels = batch
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp(num_events: int):
    """Parameters, and batches of 16."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)
    params = {"w1": draw(64, 64), "b1": draw(1, 64), "w2": draw(64, 10), "b2": draw(1, 10)}
    images = rng.random((num_events, 16, 64), np.float32)
    return mlp_loss, params, (images, rng.integers(0, 10, (num_events, 16)).astype(np.int32))


def transformer(num_events: int, windows: int = 8):
    """The integrations' decoder, width 64, and batches of windows of 64 tokens."""
    from flax import nnx

    from dcasgd_jax.integrations import nnx as dc_nnx
    from dcasgd_jax.integrations.transformer import Transformer

    model = Transformer(
        vocabulary=65, context=64, width=64, num_blocks=2, num_heads=2, rngs=nnx.Rngs(0)
    )

    def loss_of(model, tokens):
        logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    problem = dc_nnx.split_model(model, loss_of)
    tokens = np.random.default_rng(0).integers(0, 65, (num_events, windows, 65)).astype(np.int32)
    return problem.loss_fn, problem.params, tokens


def push_rows(what: str, make, num_events: int, repeats: int, optimizers=SGD) -> list[Row]:
    """Seconds of a whole second call of `simulate` for each event, against the first optimizer's.

    A short run would show the first three pushes, each of which computes new bases.
    """
    loss_fn, params, batches = make(num_events)
    batches = jax.tree.map(jnp.asarray, batches)
    schedule = sim.make_schedule(sim.GammaTime(), WORKERS, num_events, seed=0)
    problem = sim.Problem(loss_fn, params)

    def run_of(tx):
        return lambda: jax.block_until_ready(sim.simulate(problem, tx, schedule, batches).params)

    (first, *names), transformations = optimizers, optimizers.values()
    plain, *ours = alternate(*map(run_of, transformations), repeats=repeats)
    micro = lambda seconds: f"{1e6 * seconds / num_events:,.0f} µs"
    return [
        Row(f"a push with {name}, {what}, vs {first}", micro(s), micro(plain), s / plain, "")
        for name, s in zip(names, ours, strict=True)
    ]


def refresh_rows(sides=(64, 256), repeats: int = 9) -> list[Row]:
    """A new basis by `eigh`, against one step of QR iteration from the last basis."""
    rows = []
    for side in sides:
        root = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
        moment = jnp.asarray(root @ root.T / side)
        basis = jnp.linalg.eigh(moment)[1]
        by_eigh = jax.jit(lambda moment, basis: jnp.linalg.eigh(moment)[1])
        by_qr = jax.jit(lambda moment, basis: jnp.linalg.qr(moment @ basis)[0])
        loops = [
            lambda f=f, m=moment, b=basis: jax.block_until_ready(f(m, b)) for f in (by_eigh, by_qr)
        ]
        eigh, qr = alternate(*loops, repeats=repeats)
        what = f"a new basis of a side of {side} by eigh, vs one step of QR iteration"
        rows.append(Row(what, f"{1e3 * eigh:.2f} ms", f"{1e3 * qr:.2f} ms", eigh / qr, ""))
    return rows


def rows(num_events: int = 2048, repeats: int = 5) -> list[Row]:
    """All of them."""
    long_batch = functools.partial(transformer, windows=64)
    found = push_rows("64-64-10 MLP, batch of 16", mlp, num_events, repeats)
    for optimizers in (SGD, ADAM, MUON):
        for tokens, make, share in ((512, transformer, 4), (4096, long_batch, 16)):
            what, events = f"transformer, {tokens} tokens", max(num_events // share, 1)
            found += push_rows(what, make, events, repeats, optimizers)
    return found + refresh_rows(repeats=2 * repeats)
