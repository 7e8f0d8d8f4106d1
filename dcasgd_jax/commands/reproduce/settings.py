"""What all runs in a folder have in common, and what tells one from another."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.commands import methods
from dcasgd_jax.commands import settings as common
from dcasgd_jax.commands.reproduce import paper
from dcasgd_jax.schedules import laws, protocols

_adaptive = functools.cache(dc.curvatures.adaptive)  # the same object again: compiled once

EVALUATED_PER_TRAINED = 0.25
"""Images evaluated per image trained on, at most, unless the user asks for more.

A forward pass takes about a third of a gradient, so evaluation stays below a tenth of the time."""


Data = Any
"""What is trained and tested on: has `train` and `test`, each with its `labels`."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The protocol; the same for all runs in one folder.

    Args:
      model: One of `texts.TEXTS[experiment].models`.
      dtype: Of the computation; parameters are float32.
      epochs: The learning rate falls to a tenth at fixed fractions of them.
      batch_size: Images of one gradient of one worker.
      law: How long a gradient takes each worker; of a type in `commands.settings.LAWS`.
      momentum: Decay; 0 is none.
      weight_decay: Added to the compensated gradient.
      batch_norm: Where the running statistics are, as `sim.simulate` has it.
      eval_every: Epochs between two evaluations; None chooses.
      experiment: Name in `paper.ALL`, whose `ms_decay` and `decay_at` count.
      augmentation: What is done to the images, in words.
      image_size: Of a side in pixels, where it can be chosen.
      num_classes: Of the data, where it can be chosen.
    """

    model: str = "resnet20"
    dtype: str = "float32"
    epochs: int = paper.CIFAR10.epochs
    batch_size: int = paper.CIFAR10.batch_size
    law: laws.WorkerTimeLaw = dataclasses.field(default_factory=sim.GammaTime)
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_norm: str = "per_worker"
    eval_every: int | None = None
    experiment: str = "cifar10"
    augmentation: str = "crop from 4 pixels of padding, flip"
    image_size: int | None = None
    num_classes: int | None = None

    @property
    def paper(self) -> paper.Paper:
        """The paper's numbers on this data set."""
        return paper.ALL[self.experiment]

    def method_of(self, run: "Run") -> methods.Method:
        """How a run is trained."""
        method = dataclasses.replace(run.trained_by, momentum=self.momentum or None)
        if method.curvature != methods.ADAPTIVE:
            return method
        return dataclasses.replace(method, curvature=_adaptive(self.paper.ms_decay))

    def describe(self, data: Data, checksum: str) -> dict[str, Any]:
        """Everything in JSON's types, named as on the command line where there is an option."""
        chosen = {"image_size": self.image_size, "num_classes": self.num_classes}
        return {
            "experiment": self.experiment,
            "model": self.model,
            "dtype": self.dtype,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "train_images": len(data.train.labels),
            "test_images": len(data.test.labels),
            "loss_images": num_loss_images(data),
            "data_crc32": checksum,
            **common.describe_law(self.law),
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "ms_decay": self.paper.ms_decay,
            "batch_norm": self.batch_norm,
            "eval_every": self.epochs_between_evaluations(data),
            "learning_rate_decay": {
                "factor": methods.DECAY_FACTOR,
                "after_epochs": [at * self.epochs for at in self.paper.decay_at],
            },
            "augmentation": self.augmentation,
            **{name: value for name, value in chosen.items() if value is not None},
        }

    def epochs_between_evaluations(self, data: Data) -> int:
        """`eval_every`, or as many as keep the evaluations short; at most all epochs."""
        if self.eval_every is not None:
            return min(self.eval_every, self.epochs)
        evaluated = len(data.test.labels) + num_loss_images(data)
        trained = len(data.train.labels)
        # Rounded first: 12,500 / 50,000 / 0.25 is 1, whatever the last bit says.
        epochs = int(np.ceil(round(evaluated / trained / EVALUATED_PER_TRAINED, 6)))
        return min(max(epochs, 1), self.epochs)


def num_loss_images(data: Data) -> int:
    """Training images whose loss is measured at every evaluation, the first of them."""
    return min(max(len(data.test.labels) // 5, 1), len(data.train.labels))


class Numbers(NamedTuple):
    """What an optimizer takes."""

    learning_rate: float
    lambda0: float | None
    max_pull: float | None


class Run(NamedTuple):
    """What tells one run from another in its folder."""

    method: str
    workers: int
    learning_rate: float
    lambda0: float | None
    max_pull: float | None
    seed: int = 0

    @property
    def numbers(self) -> Numbers:
        """Those of the optimizer."""
        return Numbers(self.learning_rate, self.lambda0, self.max_pull)

    @property
    def name(self) -> str:
        """For files and people."""
        parts = [self.method, f"m{self.workers}", f"lr{self.learning_rate!r}"]
        if self.lambda0 is not None:
            parts.append(f"lambda{self.lambda0!r}")
        if self.max_pull is not None:
            parts.append(f"pull{self.max_pull!r}")
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def trained_by(self) -> methods.Method:
        """The method, with the cap of this run."""
        return dataclasses.replace(methods.METHODS[self.method], max_pull=self.max_pull)


class Budget(NamedTuple):
    """How much one run trains."""

    sampler: sim.ShardedEpochs
    pushes_per_epoch: int
    updates_per_epoch: int


def budget(setting: Setting, run: Run, protocol: protocols.Protocol, num_images: int) -> Budget:
    """One epoch: every worker goes once through its shard, whoever is ahead.

    With `ssgd` the pushes of all workers make one update, else every push makes one.
    """
    sampler = sim.ShardedEpochs(num_images, setting.batch_size, run.workers, run.seed)
    pushes = run.workers * sampler.batches_per_shard
    pushes_per_update = protocol.server(run.workers).pushes_per_update
    return Budget(sampler, pushes, pushes // pushes_per_update)
