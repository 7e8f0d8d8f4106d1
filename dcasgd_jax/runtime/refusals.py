"""When gradients that are not finite end a run."""

from typing import NamedTuple

MOST_REFUSALS = 100  # pushes in a row of one worker that may be refused as not finite
NOTED_REFUSALS = 3  # of such a row, how many are kept in the history; the rest is counted


class GivenUp(NamedTuple):
    """Why a run has ended before its last update: gradients that are not finite."""

    params_finite: bool  # if not, no gradient can be finite any more
    worker: int
    event: int  # push that showed it: the first of the row if the params are finite
    number: int  # which of its worker's gradients that was
    version: int  # of the server at the end
    shard: int = 0  # whose events are counted

    def __str__(self) -> str:
        push = f"event {self.event}, gradient {self.number} of worker {self.worker}"
        if self.params_finite:
            return (
                f"The run was given up at version {self.version}: worker {self.worker} pushed "
                f"{MOST_REFUSALS} gradients in a row that were not finite, though the params are "
                f"(the first was {push}). Look at its batches and its machine; if the gradients "
                "of others are not finite either, use a smaller learning rate."
            )
        return (
            f"The run was given up at version {self.version}: the params are not finite any more, "
            f"so no gradient can be ({push}, was refused). Use a smaller learning rate, or clip "
            "the gradients in tx."
        )
