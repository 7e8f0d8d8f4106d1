"""Who hears of a run while it runs: JSON lines, TensorBoard, Weights & Biases, MLflow.

A logger is anything with `log(step, values)`; it is the `logger=` of `sim.Recording`. Steps are
versions of the server and never fall; the names are the same for all runs: "loss", "staleness" and
the metrics asked for are means over the pushes that the server used since the last line, "samples"
and "time" (seconds, simulated or real) are those of the last push, used or not, and "eval/..." is
what `eval_fn` returned.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from dcasgd_jax import checks

__all__ = ["JsonLines", "Logger", "mlflow", "tensorboard", "wandb"]


class Logger(Protocol):
    """What hears of a run; one's own goes wherever those of this module go.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> class Printer:
      ...     def log(self, step, values):
      ...         print(step, {name: round(value, 3) for name, value in values.items()})
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=40, seed=0)
      >>> recording = sim.Recording(logger=Printer(), log_every=20)
      >>> batches = jnp.ones((40, 3))
      >>> _ = sim.simulate(problem, optax.sgd(0.1), schedule, batches, recording=recording)
      20 {'loss': 0.511, 'staleness': 0.95, 'samples': 60.0, 'time': 10.0}
      40 {'loss': 0.0, 'staleness': 1.0, 'samples': 120.0, 'time': 20.0}
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hears of some numbers.

        Args:
          step: Version of the server.
          values: By name.
        """
        ...


class JsonLines:
    """Appends an object per line to a file, complete at every moment.

    Numbers that are not finite, which JSON does not have, become null.

    Args:
      path: Of the file, which is made if it is not there; with None nothing is written.

    Raises:
      OSError: If the file cannot be written.

    Example:
      >>> import dcasgd_jax as dc, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "run.jsonl")
      >>> dc.loggers.JsonLines(path).log(100, {"loss": 0.25})
      >>> print(path.read_text().strip())
      {"step": 100, "loss": 0.25}
    """

    def __init__(self, path: str | os.PathLike | None):
        self._path = None if path is None else pathlib.Path(path)
        self._waiting: list[str] = []
        if self._path is not None:
            self._path.open("a").close()  # rather now than after some work

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line, that is in the file when this returns."""
        self.write({"step": step, **values})
        self.flush()

    def write(self, fields: Mapping[str, Any]) -> None:
        """One line, that is in the file after the next `flush`."""
        line = {name: _plain(value) for name, value in fields.items()}
        self._waiting.append(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """What was written is in the file, which is open no longer than that takes."""
        waiting, self._waiting = self._waiting, []
        if self._path is not None and waiting:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write("".join(waiting))


def tensorboard(writer: Any) -> Logger:
    """Scalars of TensorBoard.

    Args:
      writer: With a method `add_scalar(name, value, step)`, as the `SummaryWriter` of tensorboardX
        and of torch.utils.tensorboard; closing it is yours.

    Raises:
      TypeError: If it has no such method.

    Example:
      >>> import dcasgd_jax as dc
      >>> from tensorboardX import SummaryWriter  # doctest: +SKIP
      >>> logger = dc.loggers.tensorboard(SummaryWriter("runs/0"))  # doctest: +SKIP
    """
    wanted = "a SummaryWriter with add_scalar(name, value, step)"
    checks.check_kind("writer", writer, checks.has_methods("add_scalar"), wanted)

    def log(step, values):
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return _Of(log)


def wandb(run: Any) -> Logger:
    """The history of a run of Weights & Biases.

    Args:
      run: From `wandb.init(...)`, also with mode="offline"; finishing it is yours.

    Raises:
      TypeError: If it has no method `log`.

    Example:
      >>> import dcasgd_jax as dc
      >>> import wandb  # doctest: +SKIP
      >>> logger = dc.loggers.wandb(wandb.init(mode="offline"))  # doctest: +SKIP
    """
    wanted = "a run, as wandb.init(...) makes one"
    checks.check_kind("run", run, checks.has_methods("log", "finish"), wanted)
    return _Of(lambda step, values: run.log(dict(values), step=step))


def mlflow(run_id: str) -> Logger:
    """Metrics of a run of MLflow; needs mlflow or mlflow-skinny.

    Args:
      run_id: Of a run at the tracking URI that is set; `mlflow.start_run().info.run_id`.

    Raises:
      ModuleNotFoundError: If mlflow is not installed.
      TypeError: If the id is no text.

    Example:
      >>> import dcasgd_jax as dc
      >>> import mlflow  # doctest: +SKIP
      >>> logger = dc.loggers.mlflow(mlflow.start_run().info.run_id)  # doctest: +SKIP
    """
    checks.check_kind("run_id", run_id, lambda value: isinstance(value, str), "a run's id")
    import mlflow as of_mlflow

    return _Of(
        lambda step, values: of_mlflow.log_metrics(
            dict(values), step=step, run_id=run_id, synchronous=True
        )
    )


class _Of:
    """A logger that is a function."""

    def __init__(self, log: Any):
        self.log = log


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
