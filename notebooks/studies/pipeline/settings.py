"""What all runs of a folder share."""

import dataclasses
from typing import Any

EVALUATIONS = 16  # after the one at the start
VALIDATION_WINDOWS = 64
WARM_UP = 0.1  # share of the steps in which the learning rate grows linearly; constant after them
MS_DECAY = 0.95
TUNING_SEEDS = (100, 101)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Model and budget."""

    width: int = 32
    blocks: int = 3
    heads: int = 2
    context: int = 32
    batch_size: int = 8
    updates: int = 320

    @property
    def num_stages(self) -> int:
        """Of the pipeline: the embedding, every block, the head."""
        return self.blocks + 2

    @property
    def tokens_per_step(self) -> int:
        """Predicted ones."""
        return self.context * self.batch_size

    @property
    def tokens(self) -> list[int]:
        """Seen at each evaluation."""
        every = self.updates // EVALUATIONS
        return [index * every * self.tokens_per_step for index in range(EVALUATIONS + 1)]

    def describe(self) -> dict[str, Any]:
        """In JSON's types, with everything that no option changes."""
        return {
            **dataclasses.asdict(self),
            "evaluations": EVALUATIONS,
            "validation_windows": VALIDATION_WINDOWS,
            "warm_up": WARM_UP,
            "ms_decay": MS_DECAY,
        }
