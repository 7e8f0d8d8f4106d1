"""A run that a test kills: `python killed_run.py engine checkpoints result.npz`."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import sim

NUM_EVENTS, EVERY = 240, 20
ENGINES = {"scan": sim.ScanEngine(), "host": sim.HostEngine()}
SIZES = (6, 12, 3)


def loss_fn(params, moving, batch, key):
    """An MLP with dropout whose hidden layer is centred, with a moving mean as batch norm has."""
    hidden = batch["x"] @ params["in"]
    mean = hidden.mean(axis=0)
    hidden = jax.nn.tanh(hidden - mean[None])
    hidden *= jax.random.bernoulli(key, 0.8, hidden.shape)
    logits = hidden @ params["out"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    moving = {"mean": 0.9 * moving["mean"] + 0.1 * mean, "count": moving["count"] + 1}
    return loss, moving


def eval_fn(params, moving):
    hidden = jax.nn.tanh(jnp.ones((1, SIZES[0])) @ params["in"] - moving["mean"][None])
    return {"logits": hidden @ params["out"], "count": moving["count"]}


def train(engine, directory, progress=None, **options):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"in": normal(*SIZES[:2]), "out": normal(*SIZES[1:])}
    batches = {
        "x": normal(NUM_EVENTS, 8, SIZES[0]),
        "y": rng.integers(0, SIZES[-1], (NUM_EVENTS, 8)),
    }
    problem = sim.Problem(
        loss_fn, params, {"mean": jnp.zeros(SIZES[1]), "count": jnp.int32(0)}, eval_fn
    )
    return sim.simulate(
        problem,
        dc.dcasgd(0.05, num_workers=4, lambda0=0.5, momentum=0.9),
        sim.make_schedule(sim.ExponentialTime(), 4, NUM_EVENTS, seed=0),
        batches,
        key=jax.random.key(1),
        engine=ENGINES[engine],
        recording=sim.Recording(metrics=["gap"], eval_versions=7),
        checkpoint=None if directory is None else sim.Checkpoint(directory, every=EVERY),
        progress=progress,
        **options,
    )


def arrays(result):
    """All that must be equal, as named arrays."""
    compared = result._asdict()
    del compared["state"], compared["non_finite"]
    leaves, _ = jax.tree_util.tree_flatten_with_path((compared, result.state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def main():
    jax.config.update("jax_num_cpu_devices", 8)  # as the test that compares
    jax.config.update("jax_platforms", "cpu")
    engine, directory, path = sys.argv[1:]

    def report(done):
        print(done, flush=True)
        time.sleep(0.05)

    result = train(engine, directory, report)
    np.savez(pathlib.Path(path), **arrays(result))


if __name__ == "__main__":
    main()
