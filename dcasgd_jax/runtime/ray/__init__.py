"""Asynchronous training on Ray: a parameter server and workers as actors. Needs the extra `ray`.

pip install "dcasgd-jax[ray]"
"""

try:
    import ray as _ray  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'dcasgd_jax.runtime.ray needs Ray: pip install "dcasgd-jax[ray]". ({error})'
    ) from None

from dcasgd_jax.runtime.ray.results import Run, replay
from dcasgd_jax.runtime.ray.training import train
from dcasgd_jax.runtime.ray.watching import Status

__all__ = [
    "Run",
    "Status",
    "replay",
    "train",
]
