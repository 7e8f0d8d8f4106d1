"""What must hold before a run starts; each violation is an error that says what to do."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import update_checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.schedules import waves
from dcasgd_jax.sim import offers, worker
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


def check_hashable(**functions) -> None:
    """Functions must be found again by the compilation cache."""
    for name, function in functions.items():
        try:
            hash(function)
        except TypeError:
            raise TypeError(
                f"{name} cannot be hashed, so its compiled program could not be found again: wrap "
                "it in a plain function."
            ) from None


def check_metrics(metrics: Collection[str]) -> None:
    """Only metrics that exist can be asked for."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a collection of names, such as [{metrics!r}].")
    if not isinstance(metrics, Collection):
        raise TypeError(f"metrics must be a collection of names, such as ['gap'], got {metrics!r}.")
    unknown = [name for name in metrics if name not in programs.METRICS]
    if unknown:
        raise ValueError(f"Unknown metric {unknown[0]!r}; there are {list(programs.METRICS)}.")


def first_mixed_event(schedule: schedules.Schedule) -> int | None:
    """The first applied push that read another version than one averaged with it."""
    applied = np.flatnonzero(schedule.applied)
    version, read = schedule.version[applied], schedule.read_version[applied]
    mixed = (version[1:] == version[:-1]) & (read[1:] != read[:-1])
    return int(applied[np.argmax(mixed) + 1]) if mixed.any() else None


def check_mean(
    schedule: schedules.Schedule,
    mixed_event: int | None,
    tx: optax.GradientTransformation,
    params: PyTree,
) -> None:
    """An average of gradients is of no worker; of several versions it has no stale point."""
    if mixed_event is None:
        why = "Updates of this schedule take the mean of several pushes"
    else:
        averaged = f"The pushes averaged into update {schedule.version[mixed_event]}"
        why = f"{averaged} read different versions (event {mixed_event})"
    offers.check_mean(tx, params, why, has_stale_point=mixed_event is None)


def check_repeats(schedule: schedules.Schedule) -> None:
    """Of what a worker keeps, only that with which its last push was computed is there again."""
    by_worker = waves.order_by_worker(schedule.worker)
    fresh = ~schedule.repeats[by_worker]
    # The first push of a worker is fresh, so none is taken for a repetition of another worker's.
    last_fresh = np.maximum.accumulate(np.where(fresh, np.arange(len(schedule)), 0))
    last = by_worker[last_fresh]
    for position in np.flatnonzero(last != schedule.batch[by_worker])[:1]:
        event, repeated = by_worker[position], schedule.batch[by_worker[position]]
        raise ValueError(
            f"Event {event} repeats event {repeated}, but worker {schedule.worker[event]} has "
            f"pushed another gradient since (event {last[position]}): where each worker keeps "
            "something of its own (a model state, an inner optimizer), only its last push can be "
            'repeated. A model state with model_state_policy="server" is none of these.'
        )


def check_own_pushes(schedule: schedules.Schedule) -> None:
    """A worker remembers its last push only."""
    for event in np.flatnonzero(schedule.own_pushes_missing > 1)[:1]:
        raise ValueError(
            f"Worker {schedule.worker[event]} pulled version {schedule.read_version[event]} for "
            f"event {event} before two of its pushes were in it: LocalSteps(eager=) goes ahead "
            "with one. Let pushes travel for less than one takes to compute, or pass eager=0."
        )


_OF_A_LIST = "A list is a tree of arrays; of a list of batches pass iter(batches). "
_OF_A_DATA_SET = (
    "A row is the batch of one event, not an example: of a data set (X, Y) make batches with "
    "batches=sim.Indexed((X, Y), rows), where rows[k] are the examples of event k, such as "
    "sim.ShardedEpochs(len(X), batch_size, num_workers, seed).rows(schedule)."
)


def check_batches(batches: PyTree, num_rows: int, *, most: int | None = None) -> None:
    """One row of batches per event.

    Args:
      batches: A tree of arrays.
      num_rows: Rows that the run needs.
      most: Rows that there can be, of events that this run leaves out. Default: any number.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batches)
    if not leaves:
        raise ValueError("batches holds no arrays; pass a tree of arrays [num_events, ...].")
    for path, leaf in leaves:
        name = f"batches{jax.tree_util.keystr(path)}"
        shape = np.shape(leaf)
        if not shape:
            raise ValueError(f"{name} is a scalar, but needs a leading axis of events.")
        if shape[0] < num_rows:
            of_list = _OF_A_LIST if isinstance(batches, list) else ""
            raise ValueError(
                f"{name} has {shape[0]} rows, but the run has {num_rows} events: pass one batch "
                f"per event (with averaging, per push, not per update). {of_list}{_OF_A_DATA_SET}"
            )
        if most is not None and shape[0] > most:
            raise ValueError(
                f"{name} has {shape[0]} rows, but there are {most} events in all. {_OF_A_DATA_SET} "
                f"(If these are batches, cut them to {most}.)"
            )


def check_rows(rows, examples: PyTree) -> None:
    """`Indexed` rows must point into the examples: a traced index out of range would clamp."""
    sizes = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(examples)}
    if len(sizes) != 1:
        raise ValueError(
            f"Indexed.examples must be arrays with one common leading axis, got lengths "
            f"{sorted(sizes)}."
        )
    index = np.asarray(rows)
    if not np.issubdtype(index.dtype, np.integer) or index.ndim < 1:
        raise ValueError(
            f"Indexed.rows must be integers [num_events, batch_size], got {index.dtype} "
            f"{index.shape}."
        )
    bad = np.argwhere((index < 0) | (index >= min(sizes)))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"Indexed.rows{list(where)} is {index[where]}, but there are {min(sizes)} examples."
        )


def check_state(state: programs.SimState, program: programs.Program) -> None:
    """A state to go on from must have what these options need; `continuation` checks the rest."""
    keeps = worker.keeps_state(program.worker, state.params)
    for name, has, wants in (
        ("averaging", state.gradient_sum is not None, program.flow == "mean"),
        ("per_push", state.push_state is not None, program.per_push is not None),
        ("model_state", state.model_state is not None, program.model_state != "none"),
        ("a worker's state", state.worker_state is not None, keeps),
    ):
        if has != wants:
            raise ValueError(
                f"This state was made {'with' if has else 'without'} {name}, but this call is "
                f"{'with' if wants else 'without'} it."
            )


def check_send(program: programs.Program, params: PyTree, opt_state: PyTree) -> None:
    """What workers are sent must be shaped like the params.

    Args:
      program: Has a `send`, or not.
      params: Arrays, or their shapes and dtypes.
      opt_state: Likewise.
    """
    if program.send is None:
        return
    sent = jax.eval_shape(program.send, params, opt_state)
    update_checks.check_like_params("send(...)", sent, params)
    of_params = jax.tree_util.tree_leaves_with_path(params)
    for (path, param), leaf in zip(of_params, jax.tree.leaves(sent), strict=True):
        wanted = jax.dtypes.result_type(param)
        if not jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != wanted:
            raise ValueError(
                f"send(...){jax.tree_util.keystr(path)} is {leaf.dtype}, but the parameter is "
                f"{wanted}."
            )


def check_policy(policy: str) -> None:
    """There are two policies for the model state."""
    if policy not in ("per_worker", "server"):
        raise ValueError(f'model_state_policy must be "per_worker" or "server", got {policy!r}.')
