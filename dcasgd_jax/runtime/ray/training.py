"""`train`: a loss and an optimizer in, parameters trained by real workers and a record out."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from dcasgd_jax.runtime import identity, model, saving, shards, step
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.ray import arguments, cluster, session, watching
from dcasgd_jax.runtime.ray.results import Run
from dcasgd_jax.schedules import laws, protocols
from dcasgd_jax.schedules.cluster import Durations
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint
from dcasgd_jax.sim.problem import Problem, Recording, Server, as_server
from dcasgd_jax.sim.work import OneGradient, Worker
from dcasgd_jax.typing import PyTree


def train(
    problem: Problem,
    tx: optax.GradientTransformation | Server,
    batches_fn: Callable[[int, int], PyTree],
    *,
    num_workers: int,
    num_updates: int,
    worker: Worker | None = None,
    address: str | None = None,
    protocol: protocols.Protocol | None = None,
    num_shards: int = 1,
    wire_dtype: str | None = None,
    delays: laws.WorkerTimeLaw | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    log: str | os.PathLike | None = None,
    progress: Callable[[watching.Status], None] | None = None,
    recording: Recording | None = None,
    worker_options: Mapping[str, Any] | None = None,
    server_options: Mapping[str, Any] | None = None,
    max_restarts: int = 3,
) -> Run:
    r"""Trains asynchronously with real workers on Ray, and records who pushed what when.

    The server does with each push what the simulator does with an event, in the order in which
    pushes arrive:

    .. math:: w_{v+1} = w_v + tx(\nabla f(w_r; B)), \quad r = \text{what the worker had pulled}

    A worker that dies is restarted, pulls afresh and has its backup renewed; the gradient that it
    was computing is lost. A server that dies goes on from its last checkpoint: lost are the updates
    since that one, no more, and gradients taken at weights that it no longer has are refused and
    computed again.

    Gradients that are not finite are refused. The run is given up, with a `RuntimeWarning` that
    names the push, once the params are not finite themselves, and once 100 gradients in a row of
    one worker are refused: what there is until then is returned, and saved if its version is
    complete. Of such a row the record has the first three and the last one; all are counted.

    What Ray itself trusts, this trusts: use it on a trusted network only.

    Args:
      problem: `sim.Problem(loss_fn, params)`, as in `sim.simulate`, with real floats as params. The
        loss runs compiled on the workers; `eval_fn` is not called. A model state travels with the
        pushes, under either policy, and the first server keeps it: it outlives a worker that dies.
      tx: An optax transformation, or a `sim.Server(tx, per_push=)`; offered `worker=` and
        `staleness=`. One that needs `stale_params=`, such as a chain with `dc.compensate_delay`, is
        put into a `dc.remember_pulls`, as the server keeps no params that it sent away. With
        several shards there is one for each, which sees the leaves of its shard only, the others
        being None.
      batches_fn: `batches_fn(worker, number)` returns the batch of gradient `number` (0, 1, ...)
        of a worker, NumPy arrays; called there, and once here with (0, 0) to check shapes. The same
        arguments must give the same batch, or the run cannot be replayed. Random keys for the
        loss belong in the batch.
      num_workers: M ≥ 1.
      num_updates: Server updates in all ≥ 1.
      worker: As in `sim.simulate`: with `sim.LocalSteps(...)` a batch holds those of all steps. A
        worker that is restarted begins anew with what it keeps, such as an inner optimizer.
      address: Of a running Ray cluster; None uses the one of this process, or starts one here.
      protocol: `sim.Asynchronous()` (default), `DropStale`, `Buffered`, `StaleSynchronous`,
        `Synchronous`, `Quorum`, `Grace`, one of them in `Sampled`, or a `sim.Protocol` of one's
        own, as in the simulator.
      num_shards: Servers among which the leaves are dealt out by size. Each orders the pushes for
        itself, so that a worker may read one leaf before and another after the same push.
      wire_dtype: "bfloat16" halves the messages; the server keeps what it has in the params' dtype.
      delays: Law of seconds that each gradient takes at least, drawn as in the simulator.
      seed: Of the delays, ≥ 0.
      checkpoint: `sim.Checkpoint(directory, every=)`, counted in updates. The run goes on from what
        is there, unless that is of another loss, optimizer, protocol or beginning; of batches,
        only the shapes are compared. The servers write it: with several machines, on a shared disk.
      log: File to append a JSON line to for every push and incident.
      progress: Called a few times a second with a `Status`.
      recording: `sim.Recording(metrics=, logger=, log_every=)`, as in `sim.simulate`: all metrics
        but "gap". The logger hears of the pushes of the first server.
      worker_options: Ray options of worker actors, such as `num_gpus`; by default one CPU and one
        thread each. With `runtime_env={"env_vars": {"JAX_PLATFORMS": ""}}` JAX chooses the device.
      server_options: Ray options of server actors; by default one logical CPU each.
      max_restarts: Times that Ray restarts each worker, and each server if there are checkpoints.

    Returns:
      A `Run`: the `SimResult`, the `Schedule` that happened, and the number of each push's batch.
      `given_up` says why there are fewer updates than asked for, if there are;
      `result.non_finite` names the first push whose loss was not finite.

    Raises:
      ValueError: For arguments out of range, a `tx` that asks for what only workers have (Hessian
        products) or whose order is wrong, as in `sim.simulate`, a cluster too small, another
        worker's model, or a checkpoint of another run.
      TypeError: If a parameter is no real float, or an argument is not of its type or cannot be
        sent to other processes.
      ConnectionError: If there is no Ray cluster at the address.
      RuntimeError: If all workers, or a server, have died for good, or the run was given up before
        the first update.

    Example:
      >>> import dcasgd_jax as dc
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.runtime import ray
      >>> run = ray.train(
      ...     sim.Problem(loss_fn, params), dc.dcasgd(0.1, num_workers=3), batches_fn,
      ...     num_workers=3, num_updates=200)  # doctest: +SKIP
      >>> print(run.schedule)  # doctest: +SKIP
    """
    server = as_server(tx)
    recording = Recording() if recording is None else recording
    worker = OneGradient() if worker is None else worker
    arguments.check_trained(
        problem, server, recording, batches_fn=batches_fn, checkpoint=checkpoint, progress=progress,
        worker=worker,
    )  # fmt: skip
    loss_fn = problem.loss_fn
    arguments.check_integers(
        seed, max_restarts, num_workers=num_workers, num_updates=num_updates, num_shards=num_shards
    )
    given = {"worker_options": worker_options, "server_options": server_options}
    arguments.check_protocol(protocol, num_shards)
    arguments.check_cluster(delays, log, address, given)
    settings = Settings(
        tx=server.tx,
        num_workers=num_workers,
        num_updates=num_updates,
        protocol=protocols.Asynchronous() if protocol is None else protocol,
        per_push=server.per_push,
        metrics=tuple(recording.metrics),
        model_state_policy="none" if problem.model_state is None else problem.model_state_policy,
    )
    whole = jax.tree.map(np.asarray, shards.Part(problem.params, problem.model_state))
    split = shards.make_split(whole, num_shards, wire_dtype)
    for part, layout in zip(split.parts(whole), split.layouts, strict=True):
        model.check(part.params, settings, layout)  # raises here what it would raise over there
    durations = None if delays is None else Durations(delays, num_workers, [seed])
    if checkpoint is not None:
        checkpoint.prepare()
    options = session.Options(
        worker=cluster.worker_options(worker_options),
        server=cluster.server_options(server_options),
        max_restarts=max_restarts,
    )
    watcher = watching.Watcher(num_updates, num_shards, log, progress, recording)
    connected = cluster.connected(address, options.num_cpus(num_workers, num_shards))
    with connected:
        batch = batches_fn(0, 0)
        of_push = _check_work(worker, loss_fn, whole, batch, num_workers)
        places: list[saving.Place | None] = [None] * num_shards
        if checkpoint is not None:
            of_loss = identity.of_loss(loss_fn, worker, whole, batch)
            places = _places(checkpoint, of_loss, settings, whole, split)
        running = session.start(
            settings, whole, split, wire_dtype, loss_fn, worker, batches_fn, durations, places,
            options,
        )  # fmt: skip
        watcher.of_push = of_push
        run = running.run(watcher, of_push)
    if run.given_up is not None:
        warnings.warn(str(run.given_up), RuntimeWarning, stacklevel=2)
    return run


def _check_work(
    worker: Worker, loss_fn: Callable[..., Any], whole: shards.Part, batch: PyTree,
    num_workers: int,
) -> np.ndarray:  # fmt: skip
    """Raises unless this is the worker's batch, and the loss a scalar.

    Returns:
      Examples of each worker's push; int64 [num_workers].
    """
    has_state = whole.model_state is not None

    def scalar_loss(*arguments):
        returned = loss_fn(*arguments)
        if has_state and not (isinstance(returned, tuple) and len(returned) == 2):
            raise ValueError(f"loss_fn must return (loss, model_state), got {returned}.")
        loss = returned[0] if has_state else returned
        if getattr(loss, "shape", None) != ():
            raise ValueError(f"loss_fn must return a scalar, got {loss}.")
        return returned

    batch = jax.eval_shape(lambda batch: batch, batch)
    worker.check_batch(batch)
    begins = jax.eval_shape(functools.partial(step.begin, worker), whole)
    jax.eval_shape(functools.partial(step.compute, scalar_loss, worker), begins, batch, np.int32(0))
    return worker.samples(batch, num_workers)


def _places(
    checkpoint: Checkpoint,
    of_loss: identity.Identity,
    settings: Settings,
    whole: shards.Part,
    split: shards.Split,
) -> list[saving.Place | None]:
    """Where each server is saved, and as what."""
    parts = zip(split.parts(whole), split.layouts, strict=True)
    return [
        saving.Place(
            _of_shard(checkpoint, shard, len(split.layouts)),
            {**identity.of_server(part, settings, layout), **of_loss},
        )
        for shard, (part, layout) in enumerate(parts)
    ]


def _of_shard(checkpoint: Checkpoint, shard: int, num_shards: int) -> Checkpoint:
    """Each server's own directory."""
    if num_shards == 1:
        return checkpoint
    directory = checkpoint.path / f"shard-{shard}-of-{num_shards}"
    return dataclasses.replace(checkpoint, directory=directory)
