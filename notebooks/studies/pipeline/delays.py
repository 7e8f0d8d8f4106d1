"""How late the gradient of each parameter is."""

import functools

import dcasgd_jax as dc
from dcasgd_jax.transforms import delays

REFERENCE = "0"
TWO_BUFFERS, STAGES = "2bw", "stages"


def title(name: str) -> str:
    """For tables."""
    return {TWO_BUFFERS: "2BW (τ=1)", STAGES: "per stage"}.get(name, f"τ={name}")


def make_delay(name: str, num_blocks: int) -> delays.Delay:
    """What `dc.delay_gradients` takes.

    Every parameter's part of a gradient is one of a single version of all weights, as many steps
    ago as its delay. In a real pipeline with weight stashing, stages of different delays take part
    in one gradient with different versions; where all delays are equal the two are the same.

    Args:
      name: A number of steps; "2bw": 1, as with two buffered versions of all weights; "stages":
        D - 1 - stage of a pipeline of D = num_blocks + 2 stages.
      num_blocks: Of the transformer.
    """
    if name == STAGES:
        return dc.pipeline_delays(functools.partial(stage_of, num_blocks), num_blocks + 2)
    return 1 if name == TWO_BUFFERS else int(name)


def largest(name: str, num_blocks: int) -> int:
    """The delay of the slowest parameter."""
    delay = make_delay(name, num_blocks)
    return delay if isinstance(delay, int) else num_blocks + 1


def stage_of(num_blocks: int, path: str) -> int:
    """Embeddings in the first stage, each block in its own, the norm and the head in the last.

    Raises:
      ValueError: If `path` is no parameter of the transformer.
    """
    part, *rest = path.split("/")
    if part == "blocks":
        return 1 + int(rest[0])
    ends = {"embedding": 0, "positions": 0, "norm": num_blocks + 1, "head": num_blocks + 1}
    if part not in ends:
        raise ValueError(f"{path!r} is no parameter of the transformer.")
    return ends[part]
