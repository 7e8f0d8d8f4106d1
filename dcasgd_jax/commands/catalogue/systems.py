"""Systems with a loop of their own: synchronous rounds, variance reduction, shared memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import digits, rivals, sim
from dcasgd_jax.commands import methods, runs, settings
from dcasgd_jax.commands.catalogue.entry import Entry
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.typing import PyTree

TrainOne = Callable[[settings.Setting, methods.Hyperparameters, runs.Workload], PyTree]

SVRG_EPOCH = 420  # gradients, those of the full one included


def choices(momentum: float | None) -> list[Entry]:
    """The systems; those without a momentum of their own only where there is none."""
    synchronous = _system(
        "dc-s3gd",
        "no server, one all-reduce late",
        functools.partial(_train_s3gd, momentum),
        numbers=(0.05, 0.2, 0.8),
    )
    if momentum is not None:
        return [synchronous]
    return [
        synchronous,
        _system(
            "dc-ssgd",
            "a synchronous round, one by one",
            _train_ssgd,
            numbers=(1.0, 4.0, 16.0),
            rate_scale=0.5,
        ),
        _system("svrg", "asynchronous, variance-reduced", functools.partial(_train_svrg, False)),
        _system(
            "dc-svrg",
            "svrg, compensated",
            functools.partial(_train_svrg, True),
            numbers=(1.0, 4.0, 16.0),
        ),
        _system("shared-memory", "leaves read one after another", _train_shared_memory),
    ]


def _system(name: str, title: str, train_one: TrainOne, **options) -> Entry:
    def train(setting, members, progress):
        outcomes = []
        for hyperparameters, workload in members:
            params = train_one(setting, hyperparameters, workload)
            outcomes.append(runs.outcome(setting, workload, params))
            progress(setting.num_pushes)
        return outcomes

    return Entry(name, title, train, **options)


def _train_ssgd(setting, hyperparameters, workload):
    rows = _rounds(setting, workload)
    rate, lambda0 = hyperparameters
    return _scan_ssgd(setting.model, rate, lambda0, workload.params, rows)


@functools.partial(jax.jit, static_argnames="model")
def _scan_ssgd(model, learning_rate, lambda0, params, rows):
    gradients = jax.vmap(jax.grad(digits.task(model).loss_fn), (None, 0))
    optimizer = rivals.dc_ssgd(_decaying(learning_rate, len(rows)), lambda0)
    return _scan_rounds(optimizer, gradients, params, rows)


def _train_s3gd(momentum, setting, hyperparameters, workload):
    rows = _rounds(setting, workload)
    rate, lambda0 = hyperparameters
    return _scan_s3gd(setting.model, momentum, rate, lambda0, workload.params, rows)


@functools.partial(jax.jit, static_argnames=("model", "momentum"))
def _scan_s3gd(model, momentum, learning_rate, lambda0, params, rows):
    gradients = jax.vmap(jax.grad(digits.task(model).loss_fn))
    inner = optax.sgd(_decaying(learning_rate, len(rows)), momentum)
    of_workers = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], rows.shape[1], 0), params)
    trained = _scan_rounds(rivals.dc_s3gd(inner, lambda0), gradients, of_workers, rows)
    return jax.tree.map(lambda leaf: leaf.mean(0), trained)


def _scan_rounds(optimizer, gradients, params, rows):
    """Trains with `rows` [num_rounds, num_workers, batch_size]."""

    def one_round(carry, of_round):
        params, state = carry
        updates, state = optimizer.update(gradients(params, of_round), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(one_round, (params, optimizer.init(params)), rows)[0][0]


def _rounds(setting: settings.Setting, workload: runs.Workload) -> np.ndarray:
    return workload.rows.reshape(-1, setting.num_workers, setting.batch_size)


def _decaying(learning_rate, num_updates: int) -> optax.Schedule:
    decay = methods.decay_schedule(num_updates)
    return lambda count: learning_rate * decay(count)


def _train_svrg(compensates, setting, hyperparameters, workload):
    num_epochs, num_pushes = svrg_epochs(setting)
    make = functools.partial(sim.make_schedule, setting.law, setting.num_workers, num_pushes)
    plain = methods.METHODS["asgd"]
    tx = methods.make_tx(plain, num_epochs * num_pushes)
    rate_only = hyperparameters._replace(lambda0=None)
    return sim.svrg(
        digits.task(setting.model).loss_fn,
        workload.params,
        tx,
        [make(seed=workload.seed * num_epochs + epoch) for epoch in range(num_epochs)],
        sim.Indexed(np.arange(digits.NUM_TRAIN), workload.rows),
        per_gradient=_compensation(hyperparameters.lambda0) if compensates else None,
        full_batch_size=digits.NUM_TRAIN,
        opt_state=methods.init_opt_state(tx, workload.params, rate_only),
    ).params


def svrg_epochs(setting: settings.Setting) -> tuple[int, int]:
    """Epochs, and pushes of each, that take as many gradients as the other methods' budget.

    A push takes two gradients, the full one as many as there are batches.
    """
    num_epochs = max(setting.num_pushes // SVRG_EPOCH, 1)
    full = -(-digits.NUM_TRAIN // setting.batch_size)
    return num_epochs, max((setting.num_pushes // num_epochs - full) // 2, setting.num_workers)


@functools.cache
def _compensation(lambda0: float) -> optax.GradientTransformationExtraArgs:
    """Always the same object, so that compiled programs are found again."""
    return dc.compensate_delay(lambda0, curvature=methods.SQUARED)


def _train_shared_memory(setting, hyperparameters, workload):
    plain = methods.METHODS["asgd"]
    tx = methods.make_tx(plain, setting.num_pushes)
    schedule = workload.schedules[plain.protocol]
    num_leaves = len(jax.tree.leaves(workload.params))
    return sim.simulate_shared_memory(
        digits.task(setting.model).loss_fn,
        workload.params,
        tx,
        reads_of_leaves(schedule, num_leaves),
        workload.rows,
        opt_state=methods.init_opt_state(tx, workload.params, hyperparameters),
    ).params


def reads_of_leaves(schedule: schedules.Schedule, num_leaves: int) -> sim.ReadVersions:
    """Each leaf is read a little later: they share the first half of the time to the push."""
    pulled = np.concatenate([[0.0], schedule.time])[schedule.read_version]
    share = np.arange(num_leaves) / (2 * num_leaves)
    when = pulled[:, None] + share * (schedule.time - pulled)[:, None]
    versions = np.searchsorted(schedule.time, when, "right")
    # At equal times it is the order of the events that counts.
    versions = np.clip(versions, schedule.read_version[:, None], np.arange(len(schedule))[:, None])
    versions[:, 0] = schedule.read_version
    return sim.ReadVersions(versions, schedule.worker)
