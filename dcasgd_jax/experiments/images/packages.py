"""The check for the packages of the extra `images`."""

import importlib.util

from dcasgd_jax.experiments import errors

_DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "pyarrow": "pyarrow"}


def require(*names: str) -> None:
    """Raises MissingExtraError unless the packages (import names) are installed."""
    missing = [_DISTRIBUTIONS[name] for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.MissingExtraError(
            f"this needs {' and '.join(missing)}, not installed here: "
            'pip install "dcasgd-jax[images]"'
        )
