"""The paper's experiments as values: what the data set and the network of each make different."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dcasgd_jax.commands.reproduce import cifar10, imagenet, network, training


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One experiment.

    Args:
      load: From a job, the data with splits `train` and `test`.
      take: The first images of a split.
      checksum: Identifies the data.
      make_feed: From the setting and the data, what is trained on.
      problem_maker: As `network.problem_maker`.
    """

    load: Callable[..., Any]
    take: Callable[..., Any]
    checksum: Callable[[Any], str]
    make_feed: Callable[..., training.Feed]
    problem_maker: Callable[..., Callable[[int], Any]]


PROTOCOLS = {
    "cifar10": Protocol(
        load=cifar10.load,
        take=cifar10.take,
        checksum=cifar10.checksum,
        make_feed=cifar10.make_feed,
        problem_maker=network.problem_maker,
    ),
    "imagenet": Protocol(
        load=imagenet.load,
        take=imagenet.take,
        checksum=imagenet.checksum,
        make_feed=imagenet.make_feed,
        problem_maker=imagenet.problem_maker,
    ),
}
"""Name -> experiment."""
