"""The engines against hand-written loops that do the same gradients and nothing else."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Row, alternate

import dcasgd_jax as dc
from dcasgd_jax import sim

WORKERS = 8


def mlp_loss(params, batch):
    """64-128-10 tanh network, mean cross-entropy."""
    images, labels = batch
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp_problem(num_events: int, batch: int):
    """Parameters for `mlp_loss`, and a batch for each event."""
    rng = np.random.default_rng(0)
    images = rng.random((num_events, batch, 64), np.float32)
    labels = rng.integers(0, 10, (num_events, batch)).astype(np.int32)
    params = {
        "w1": jnp.asarray(0.1 * rng.normal(size=(64, 128)), jnp.float32),
        "b1": jnp.zeros((1, 128)),
        "w2": jnp.asarray(0.1 * rng.normal(size=(128, 10)), jnp.float32),
        "b2": jnp.zeros((1, 10)),
    }
    return params, (images, labels)


def conv_loss(params, batch):
    """Three 3x3 convolutions on 32x32x3 images, mean cross-entropy."""
    images, labels = batch
    x = images
    for name in ("conv1", "conv2", "conv3"):
        x = jax.lax.conv_general_dilated(
            x, params[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    logits = x.mean(axis=(1, 2)) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def compensated():
    """DC-ASGD-a as the simulator uses it."""
    return optax.chain(dc.compensate_delay(2.0), optax.sgd(0.1))


def sgd_step(params, batch, loss_fn):
    """Plain SGD, as short as it can be written."""
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


def scan_rows(num_events: int = 4096, batch: int = 32, repeats: int = 9) -> list[Row]:
    """A whole second call of `simulate` against a hand-written scan of plain SGD."""
    params, batches = mlp_problem(num_events, batch)
    images, labels = map(jnp.asarray, batches)
    schedule = sim.make_schedule(sim.GammaTime(), WORKERS, num_events, seed=0)
    tx = compensated()
    problem = sim.Problem(mlp_loss, params)
    scan = jax.jit(
        lambda params, batches: jax.lax.scan(lambda p, b: sgd_step(p, b, mlp_loss), params, batches)
    )

    def ours(tx, **options):
        def run():
            result = sim.simulate(problem, tx, schedule, (images, labels), **options)
            jax.block_until_ready(result.params)

        return run

    def plain():
        jax.block_until_ready(scan(params, (images, labels)))

    all_metrics = ["gap", "compensation_ratio", "cosine", "below_eps"]
    loops = [plain, ours(optax.sgd(0.1)), ours(tx), ours(tx, recording=sim.Recording(all_metrics))]
    if importlib.util.find_spec("torch"):
        loops.append(torch_loop(params, images, labels))
    plain_seconds, asgd, dc_asgd, measured, *eager = alternate(*loops, repeats=repeats)
    rate = lambda seconds: f"{num_events / seconds:,.0f}/s"
    row = lambda what, seconds, baseline, name, goal: Row(
        f"scan engine, {what}, {WORKERS} workers, 64-128-10 MLP, gradients/s vs {name}",
        rate(seconds),
        rate(baseline),
        baseline / seconds,
        goal,
    )
    of_sgd = "a scan of plain SGD"
    rows = [
        row("plain ASGD, trace on", asgd, plain_seconds, of_sgd, ">= 0.80"),
        row("DC-ASGD-a, trace on", dc_asgd, plain_seconds, of_sgd, ">= 0.80"),
        row("DC-ASGD-a, all metrics on", measured, plain_seconds, of_sgd, ">= 0.70"),
    ]
    for seconds in eager:
        name = "a PyTorch eager event loop of plain ASGD"
        rows.append(row("DC-ASGD-a, trace on", dc_asgd, seconds, name, ">= 8"))
    return rows


def torch_loop(params, images, labels):
    """An eager event loop of plain asynchronous SGD, as earlier simulators wrote it."""
    import torch

    initial = {k: torch.tensor(np.asarray(v)) for k, v in params.items()}
    images, labels = torch.tensor(np.asarray(images)), torch.tensor(np.asarray(labels)).long()

    def run():
        weights = dict(initial)
        snapshots = [{k: v.clone() for k, v in weights.items()} for _ in range(WORKERS)]
        for event in range(len(images)):
            stale = {k: v.requires_grad_() for k, v in snapshots[event % WORKERS].items()}
            hidden = torch.tanh(images[event] @ stale["w1"] + stale["b1"])
            logits = hidden @ stale["w2"] + stale["b2"]
            loss = torch.nn.functional.cross_entropy(logits, labels[event])
            grads = torch.autograd.grad(loss, list(stale.values()))
            for name, grad in zip(stale, grads, strict=True):
                weights[name] = weights[name] - 0.1 * grad
            snapshots[event % WORKERS] = {k: v.clone() for k, v in weights.items()}

    return run


def conv_problem(num_events: int, batch: int, width: int):
    """Parameters for `conv_loss`, and a batch for each event."""
    rng = np.random.default_rng(0)
    images = rng.random((num_events, batch, 32, 32, 3), np.float32)
    labels = rng.integers(0, 10, (num_events, batch)).astype(np.int32)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / 10, jnp.float32)
    params = {
        "conv1": normal(3, 3, 3, width),
        "conv2": normal(3, 3, width, 2 * width),
        "conv3": normal(3, 3, 2 * width, 2 * width),
        "head": normal(2 * width, 10),
    }
    return params, (images, labels)


def host_rows(num_events: int = 60, batch: int = 32, width: int = 32, repeats: int = 5):
    """A whole `simulate` of a convnet on the host engine against a bare jitted SGD loop."""
    params, (images, labels) = conv_problem(num_events, batch, width)
    schedule = sim.make_schedule(sim.GammaTime(), WORKERS, num_events, seed=0)
    tx = compensated()
    problem = sim.Problem(conv_loss, params)
    step = jax.jit(lambda p, b: sgd_step(p, b, conv_loss), donate_argnums=0)
    snapshots = []

    def ours():
        result = sim.simulate(problem, tx, schedule, (images, labels))
        snapshots.append(jax.block_until_ready(result.state.snapshots))

    def plain():
        current = jax.tree.map(jnp.copy, params)
        for event in range(num_events):
            current, _ = step(current, (images[event], labels[event]))
        jax.block_until_ready(current)

    ours_seconds, plain_seconds = alternate(ours, plain, repeats=repeats)
    rate = lambda seconds: f"{num_events / seconds:,.1f}/s"
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    copies = size(snapshots[-1]) / size(params)
    return [
        Row(
            "host engine, DC-ASGD-a, 8 workers, convnet 32x32x3, gradients/s vs a bare SGD loop",
            rate(ours_seconds),
            rate(plain_seconds),
            plain_seconds / ours_seconds,
            ">= 0.90",
        ),
        Row(
            "its snapshots, in parameters, vs the slots that the schedule reports",
            f"{copies:.6g} P",
            f"{schedule.num_slots} P",
            copies / schedule.num_slots,
            "= 1",
        ),
    ]
