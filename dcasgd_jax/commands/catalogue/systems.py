"""Systems with a loop of their own: synchronous rounds, variance reduction, shared memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import digits, rivals, sim
from dcasgd_jax.commands import methods, runs, settings
from dcasgd_jax.schedules import schedule as schedules

SVRG_EPOCH = 420  # gradients, those of the full one included


def choices(momentum: float | None) -> list[methods.Method]:
    """The systems; those without a momentum of their own only where there is none."""
    synchronous = methods.Method(
        "dc-s3gd",
        "no server, one all-reduce late",
        numbers=(0.05, 0.2, 0.8),
        train=functools.partial(_train_s3gd, momentum),
    )
    if momentum is not None:
        return [synchronous]
    return [
        synchronous,
        methods.Method(
            "dc-ssgd",
            "a synchronous round, one by one",
            numbers=(1.0, 4.0, 16.0),
            rate_scale=0.5,
            train=_train_ssgd,
        ),
        methods.Method("svrg", "asynchronous, variance-reduced", train=_train_svrg),
        methods.Method("dc-svrg", "svrg, compensated", numbers=(1.0, 4.0, 16.0), train=_train_svrg),
        methods.Method(
            "shared-memory", "leaves read one after another", train=_train_shared_memory
        ),
    ]


def _train_ssgd(setting, hyperparameters, workload):
    rows = _rounds(setting, workload)
    rate, lambda0 = hyperparameters
    return _scan_ssgd(setting.model, rate, lambda0, workload.problem.params, rows)


@functools.partial(jax.jit, static_argnames="model")
def _scan_ssgd(model, learning_rate, lambda0, params, rows):
    gradients = jax.vmap(jax.value_and_grad(digits.problem(model).loss_fn), (None, 0))
    optimizer = rivals.dc_ssgd(_scheduled(learning_rate, len(rows)), lambda0)
    return _scan_rounds(optimizer, gradients, params, rows)


def _train_s3gd(momentum, setting, hyperparameters, workload):
    rows = _rounds(setting, workload)
    rate, lambda0 = hyperparameters
    return _scan_s3gd(setting.model, momentum, rate, lambda0, workload.problem.params, rows)


@functools.partial(jax.jit, static_argnames=("model", "momentum"))
def _scan_s3gd(model, momentum, learning_rate, lambda0, params, rows):
    gradients = jax.vmap(jax.value_and_grad(digits.problem(model).loss_fn))
    inner = optax.sgd(_scheduled(learning_rate, len(rows)), momentum)
    of_workers = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], rows.shape[1], 0), params)
    trained, losses = _scan_rounds(rivals.dc_s3gd(inner, lambda0), gradients, of_workers, rows)
    return jax.tree.map(lambda leaf: leaf.mean(0), trained), losses


def _scan_rounds(optimizer, gradients, params, rows):
    """Trains with `rows` [num_rounds, num_workers, batch_size]; also the loss of each gradient."""

    def one_round(carry, of_round):
        params, state = carry
        losses, grads = gradients(params, of_round)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), losses

    (params, _), losses = jax.lax.scan(one_round, (params, optimizer.init(params)), rows)
    return params, losses.ravel()


def _rounds(setting: settings.Setting, workload: runs.Workload) -> np.ndarray:
    return workload.rows.reshape(-1, setting.num_workers, setting.batch_size)


def _scheduled(learning_rate, num_updates: int) -> optax.Schedule:
    factor = methods.rate_factor(num_updates)
    return lambda count: learning_rate * factor(count)


def _train_svrg(setting, hyperparameters, workload):
    num_epochs, num_pushes = svrg_epochs(setting)
    make = functools.partial(sim.make_schedule, setting.law, setting.num_workers, num_pushes)
    tx = methods.make_tx(methods.METHODS["asgd"], num_epochs * num_pushes)
    rate_only = hyperparameters._replace(lambda0=None)
    compensates = hyperparameters.lambda0 is not None
    server = sim.Server(
        tx,
        per_push=_compensation(hyperparameters.lambda0) if compensates else None,
        opt_state=methods.init_opt_state(tx, workload.problem.params, rate_only),
    )
    result = sim.svrg(
        workload.problem._replace(eval_fn=None),
        server,
        [make(seed=workload.seed * num_epochs + epoch) for epoch in range(num_epochs)],
        sim.Indexed(np.arange(digits.NUM_TRAIN), workload.rows),
        full_batch_size=digits.NUM_TRAIN,
    )
    return result.params, result.losses


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
    schedule = workload.schedule(plain.protocol)
    num_leaves = len(jax.tree.leaves(workload.problem.params))
    opt_state = methods.init_opt_state(tx, workload.problem.params, hyperparameters)
    result = sim.simulate_shared_memory(
        workload.problem._replace(eval_fn=None),
        sim.Server(tx, opt_state=opt_state),
        reads_of_leaves(schedule, num_leaves),
        workload.rows,
    )
    return result.params, result.losses


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
