"""A run that two processes do together and one process does alone.

As a script it is one of the two, which `sim/test_two_processes.py` starts. Its arguments: its
index, the port of process 0, and the directory for what comes out.
"""

import pathlib
import sys

import calls
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import sim


def simulate(engine):
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(6, 8)).astype(np.float32) / 3,
        "b": np.zeros((1, 8), np.float32),
    }
    batches = rng.normal(size=(60, 5, 6)).astype(np.float32), np.ones((60, 5, 8), np.float32)

    def loss_fn(params, batch, key):
        inputs, targets = batch
        inputs = inputs * jax.random.bernoulli(key, 0.8, inputs.shape)
        return jnp.mean((jnp.tanh(inputs @ params["w"] + params["b"]) - targets) ** 2)

    options = dict(key=jax.random.key(7), engine=engine, metrics=["gap"])
    options |= dict(eval_fn=optax.tree.norm, eval_versions=10)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        compensations.explicit(2.0, ms_decay=0.95),
        optax.sgd(0.2, momentum=0.5),
    )
    schedule = sim.make_schedule(sim.GammaTime(), 5, 60, seed=0)
    first = calls.simulate(loss_fn, params, tx, schedule, batches, **options, stop=30)
    second = calls.simulate(loss_fn, params, tx, schedule, batches, **options, state=first.state)
    return first, second


def main(index, port, directory):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=2, process_id=index, initialization_timeout=60
    )
    assert jax.process_count() == 2
    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((4,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    for server in ("sharded", "replicated"):
        _, result = simulate(sim.LanesEngine(mesh, server=server, chunk_size=4))
        # What comes back is whole and in every process.
        assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(result.state))
        np.savez(
            directory / f"{server}_{index}.npz",
            *jax.tree.leaves((result.params, result.opt_state)),
            losses=result.losses,
            gap=result.trace.gap,
            norms=result.evaluations.values,
        )
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))
