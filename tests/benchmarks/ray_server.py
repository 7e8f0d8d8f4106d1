"""The live server on Ray against a minimal parameter server in NumPy, and against memory itself."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ray
from timing import Row

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.runtime import messages, shards
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.ray import cluster, server_process, session, train

DIGITS = (64, 64, 10)
LARGE = (1024, 3072, 2048, 256)  # 10.0 million numbers
NUM_WORKERS = 2
LEARNING_RATE = 1e-3


def make_params(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "w": (rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32),
            "b": np.zeros(fan_out, np.float32),
        }
        for fan_in, fan_out in itertools.pairwise(widths)
    ]


def loss_fn(params, inputs):
    """A regression on one example per gradient: the network is little work, its size is not."""
    activations = inputs
    for layer in params:
        activations = jnp.tanh(activations @ layer["w"] + layer["b"][None])
    return jnp.mean((activations - 0.5) ** 2)


def batch_of(width, worker, number):
    return np.random.default_rng([worker, number]).normal(size=(1, width)).astype(np.float32)


class PlainServer:
    """What one writes in ten lines: weights as NumPy arrays, SGD in place, no questions asked."""

    def __init__(self, params):
        self.params = jax.tree.map(np.array, params)
        self.times = []

    def push(self, grads):
        if grads is not None:
            jax.tree.map(lambda w, g: np.subtract(w, LEARNING_RATE * g, out=w), self.params, grads)
            self.times.append(time.perf_counter())
        return self.params

    def rate(self):
        return rate_of(self.times)


class PlainWorker:
    """Its worker: pickled trees, the gradient compiled as ours is."""

    def run(self, server, worker, width, num_gradients):
        gradient = jax.jit(jax.grad(loss_fn))
        params = ray.get(server.push.remote(None))
        for number in range(num_gradients):
            grads = jax.tree.map(np.asarray, gradient(params, batch_of(width, worker, number)))
            params = ray.get(server.push.remote(grads))


class MeasuredServer(server_process.Server):
    """Our server, which also says what its parts cost when nothing else goes on."""

    def measure(self, header, gradient, repeats):
        """CPU seconds of one message received, of one step, and of one reply sent."""
        server, sending = self._server, [0.0]
        publish = server.model._publish

        def timed_publish(message):
            start = time.process_time()
            published = publish(message)
            if not isinstance(published, ray.ObjectRef):
                ray.put(published)  # as long as what Ray does with a small reply
            sending[0] += time.process_time() - start
            return published

        server.model._publish = timed_publish
        seconds = np.zeros(3)
        for repeat in range(repeats + 1):
            sending[0] = 0.0
            marks = [time.process_time()]
            message = ray.get(gradient[0])
            marks.append(time.process_time())
            read = {"life": server.life, "read_version": server.workers[0].pulled_version}
            push = messages.unpack_push(header)._replace(number=repeat, **read)
            server.push(messages.pack_push(push), message)
            server.outbox.clear()
            marks.append(time.process_time())
            if repeat:
                receive, rest = np.diff(marks)
                seconds += receive, rest - sending[0], sending[0]
        return seconds / repeats


def rate_of(times):
    """Updates per second, without the first fifth, in which things warm up."""
    start = len(times) // 5
    return (len(times) - 1 - start) / (times[-1] - times[start])


def our_rate(widths, tx, num_updates):
    """Updates per second, and CPU milliseconds of the server's process per update."""
    batches_fn = functools.partial(batch_of, widths[0])
    sizes = dict(num_workers=NUM_WORKERS, num_updates=num_updates)
    sessions, used = [], []

    def look(status):
        server = sessions[0].servers[0]
        seconds = ray.get(server.__ray_call__.remote(lambda self: time.process_time()))
        used.append((status.version, seconds))

    with pytest.MonkeyPatch.context() as patch:
        start = session.start
        patch.setattr(session, "start", lambda *a: sessions.append(start(*a)) or sessions[0])
        problem = sim.Problem(loss_fn, make_params(widths))
        run = train(problem, tx, batches_fn, **sizes, progress=look)
    (first, before), (last, after) = next(u for u in used if u[0] or u is used[-1]), used[-1]
    return rate_of(run.schedule.time), 1e3 * (after - before) / max(last - first, 1)


def plain_rate(widths, num_updates):
    """The same with the server and worker above, with the same options for the processes."""
    server = ray.remote(PlainServer).options(**cluster.server_options(None))
    server = server.remote(make_params(widths))
    worker = ray.remote(PlainWorker).options(**cluster.worker_options(None))
    workers = [worker.remote() for _ in range(NUM_WORKERS)]
    count = num_updates // NUM_WORKERS
    runs = [w.run.remote(server, index, widths[0], count) for index, w in enumerate(workers)]
    ray.get(runs)
    measured = ray.get(server.rate.remote())
    for actor in (server, *workers):
        ray.kill(actor)
    return measured


def copies_per_second(num_bytes, repeats):
    """Objects of this size that one process copies into the object store, per second."""
    content = np.ones(num_bytes, np.uint8)
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        reference = ray.put(content)
        seconds.append(time.perf_counter() - start)
        del reference
        time.sleep(0.01)  # for the store to forget it
    return 1 / np.median(seconds[2:])


def cpu_of_parts(widths, tx, repeats):
    """CPU seconds per update of receive, step and send; of the server process alone."""
    params = make_params(widths)
    split = shards.make_split(shards.Part(params), 1)
    layout = split.layouts[0]
    settings = Settings(tx, NUM_WORKERS, num_updates=10**6)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    server = ray.remote(MeasuredServer).options(**cluster.server_options(None))
    server = server.remote(shards.Part(shapes), settings, None, None)
    ray.get(server.begin.remote(shards.Part(params)))
    push = messages.Push(0, layout.digest(), 0, 0, 0, 0.0, True)
    gradient = ray.put(layout.pack([1e-3 * leaf for leaf in jax.tree.leaves(params)]))
    parts = ray.get(server.measure.remote(messages.pack_push(push), [gradient], repeats))
    ray.kill(server)
    return parts


def rows(cases=(("digits MLP", DIGITS, 1000), ("10M-parameter MLP", LARGE, 60)), repeats=3):
    """Ours against the plain one, in turn; starts a Ray of its own."""
    cluster.start_local(2 * NUM_WORKERS + 2, include_dashboard=False)
    try:
        return [row for case in cases for row in _rows_of(*case, repeats)]
    finally:
        ray.shutdown()


def _rows_of(name, widths, num_updates, repeats):
    sgd, ours = optax.sgd(LEARNING_RATE), dc.dcasgd(LEARNING_RATE, num_workers=NUM_WORKERS)
    runs = [
        (plain_rate(widths, num_updates), *our_rate(widths, sgd, num_updates),
         *our_rate(widths, ours, num_updates))
        for _ in range(repeats)
    ]  # fmt: skip
    plain, with_sgd, _, with_dcasgd, in_all = np.median(runs, axis=0)
    num_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(make_params(widths)))
    copies = copies_per_second(num_bytes, 10)
    receive, computing, send = (1e3 * cpu_of_parts(widths, ours, 20)).tolist()
    what = f"Ray, {name}, {NUM_WORKERS} workers"
    per_second = lambda rate: f"{rate:,.1f}/s"
    return [
        Row(f"{what}, SGD, updates/s vs a minimal NumPy server", per_second(with_sgd),
            per_second(plain), with_sgd / plain, ">= 0.9"),
        Row(f"{what}, DC-ASGD-a, updates/s vs the same", per_second(with_dcasgd),
            per_second(plain), with_dcasgd / plain, ""),
        Row(f"{what}, SGD, updates/s vs the object store copying gradient and params "
            f"({2 * num_bytes / 1e6:.3g} MB)", per_second(with_sgd), per_second(copies / 2),
            with_sgd / (copies / 2), ""),
        Row(f"{what}, DC-ASGD-a, CPU of one update: receive {receive:.2f} ms, step "
            f"{computing:.2f} ms, send {send:.2f} ms, vs all that the server's process uses, "
            "Ray's threads included", f"{receive + computing + send:.2f} ms", f"{in_all:.2f} ms",
            (receive + computing + send) / in_all, ""),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
