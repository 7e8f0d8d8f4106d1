"""The options of `dcasgd-jax train`, and what they mean together."""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import optax

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.commands import errors, methods, options, settings, values
from dcasgd_jax.schedules import laws, protocols

TASKS = ("digits", "cifar10")
METHODS = ("asgd", "dcasgd-c", "dcasgd-a", "dcasgd-capped")
PROTOCOLS = ("asynchronous", "drop-stale", "stale-synchronous", "buffered", "synchronous")
_LEARNING_RATE = {"digits": 0.3, "cifar10": 0.05}
_LAMBDA0 = {"dcasgd-c": 0.04, "dcasgd-a": 2.0, "dcasgd-capped": 4.0}
_BOUNDS = {"drop-stale": 1, "stale-synchronous": 0, "buffered": 1, "synchronous": 0}  # the least


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that can be started."""

    task: str
    method: str
    num_workers: int
    num_updates: int
    learning_rate: float
    lambda0: float | None
    protocol: protocols.Protocol
    batch_size: int
    seed: int
    num_shards: int
    wire_dtype: str | None
    delays: laws.WorkerTimeLaw | None
    data_dir: pathlib.Path | None
    subset: int | None
    address: str | None
    checkpoint_every: int
    out: pathlib.Path

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on, in JSON's types."""
        left_out = ("address", "checkpoint_every", "out", "data_dir")
        described = {k: v for k, v in vars(self).items() if k not in left_out}
        return described | {"protocol": repr(self.protocol), "delays": repr(self.delays)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of the subcommand."""
    parser.description = (
        "Trains with a real parameter server and real workers, and records every push. Called "
        "again with the same --out, it goes on from the last checkpoint there."
    )
    add = parser.add_argument
    number = functools.partial(add, type=values.integer_from(1), metavar="N")
    add("--address", metavar="HOST:PORT", help="join this Ray cluster; default: start one here")
    add("--task", choices=TASKS, default="digits", help="default %(default)s")
    options.add(
        parser, "--data-dir",
        help="folder with CIFAR-10 on every machine; default: from the Hugging Face hub",
    )  # fmt: skip
    number("--subset", help="train on the first N images of CIFAR-10, evaluate on N test images")
    options.add(parser, "--workers", default=3)
    options.add(parser, "--updates", default=200, help="server updates")
    options.add(parser, "--batch-size")
    add("--seed", type=values.integer_from(0), default=0, metavar="N", help="default %(default)s")
    add(
        "--method", choices=METHODS, default="dcasgd-capped",
        help="; ".join(f"{name}: {methods.METHODS[name].title}" for name in METHODS)
        + "; default %(default)s",
    )  # fmt: skip
    rates = ", ".join(f"{task} {rate:g}" for task, rate in _LEARNING_RATE.items())
    add("--learning-rate", type=values.positive, metavar="VALUE", help=f"default: {rates}")
    strengths = ", ".join(f"{name} {value:g}" for name, value in _LAMBDA0.items())
    add("--lambda0", type=values.positive, metavar="VALUE", help=f"default: {strengths}")
    add("--protocol", choices=PROTOCOLS, default="asynchronous", help="default %(default)s")
    add(
        "--bound", type=values.integer_from(0), metavar="N",
        help="of the protocol: staleness at which pushes are dropped, gradients that a worker may "
        "be ahead, pushes per update, or backup workers",
    )  # fmt: skip
    add(
        "--delays", choices=list(settings.LAWS), metavar="LAW",
        help=f"slow the workers down to times of this law, of {', '.join(settings.LAWS)}",
    )  # fmt: skip
    options.add(parser, "--law-param")
    number("--shards", default=1, help="servers that share the parameters, default %(default)s")
    add("--wire-dtype", choices=["bfloat16"], help="default: float32")
    number(
        "--checkpoint-every",
        default=50,
        help="updates between two checkpoints, default %(default)s",
    )
    options.add(parser, "--out", default=pathlib.Path("train-results"))


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they make no run.
    """
    compensates = arguments.method != "asgd"
    if arguments.lambda0 is not None and not compensates:
        raise errors.UsageError("--lambda0: asgd has none, leave it out")
    for option in ("data_dir", "subset"):
        if arguments.task != "cifar10" and getattr(arguments, option) is not None:
            raise errors.UsageError(f"--{option.replace('_', '-')}: only for --task cifar10")
    if arguments.law_param and arguments.delays is None:
        raise errors.UsageError("--law-param: name the law, with --delays")
    protocol = _protocol(arguments)
    if arguments.protocol == "buffered" and compensates:
        raise errors.UsageError("--protocol buffered: only with --method asgd")
    delays = None
    if arguments.delays is not None:
        delays = values.make_law(arguments.delays, arguments.law_param, arguments.workers)
    return Job(
        task=arguments.task,
        method=arguments.method,
        num_workers=arguments.workers,
        num_updates=arguments.updates,
        learning_rate=arguments.learning_rate or _LEARNING_RATE[arguments.task],
        lambda0=arguments.lambda0 or _LAMBDA0.get(arguments.method),
        protocol=protocol,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_shards=arguments.shards,
        wire_dtype=arguments.wire_dtype,
        delays=delays,
        data_dir=arguments.data_dir,
        subset=arguments.subset,
        address=arguments.address,
        checkpoint_every=arguments.checkpoint_every,
        out=arguments.out,
    )


def make_tx(job: Job) -> optax.GradientTransformation:
    """The optimizer of the server."""
    if job.lambda0 is None:
        return optax.sgd(job.learning_rate)
    method = methods.METHODS[job.method]
    return dc.dcasgd(
        job.learning_rate,
        num_workers=job.num_workers,
        lambda0=job.lambda0,
        curvature=method.curvature,
        max_pull=method.max_pull,
    )


def _protocol(arguments: argparse.Namespace) -> protocols.Protocol:
    name, bound = arguments.protocol, arguments.bound
    if name == "asynchronous":
        if bound is not None:
            raise errors.UsageError("--bound: --protocol asynchronous has none, leave it out")
        return sim.Asynchronous()
    if bound is None:
        raise errors.UsageError(f"--protocol {name}: give its number with --bound")
    if bound < _BOUNDS[name]:
        raise errors.UsageError(f"--bound {bound}: must be at least {_BOUNDS[name]} for {name}")
    if name == "synchronous" and bound >= arguments.workers:
        raise errors.UsageError(f"--bound {bound}: must be less than --workers {arguments.workers}")
    made = {
        "drop-stale": sim.DropStale,
        "stale-synchronous": sim.StaleSynchronous,
        "buffered": sim.Buffered,
        "synchronous": sim.Synchronous,
    }
    return made[name](bound)
