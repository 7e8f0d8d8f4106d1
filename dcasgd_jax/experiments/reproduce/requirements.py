"""The check for the packages of the extra `reproduce`."""

import importlib.util

from dcasgd_jax.experiments import errors

_DISTRIBUTIONS = {
    "flax": "flax",
    "matplotlib": "matplotlib",
    "orbax.checkpoint": "orbax-checkpoint",
    "rich": "rich",
    "sklearn": "scikit-learn",
}


def require_for_report() -> None:
    """Raises MissingExtraError unless a table and a picture can be made."""
    _require("matplotlib", "rich")


def require_for_training() -> None:
    """Raises MissingExtraError unless the network can be trained and saved."""
    _require("flax", "orbax.checkpoint", "sklearn")


def _require(*names: str) -> None:
    missing = [_DISTRIBUTIONS[name] for name in names if not _is_there(name)]
    if missing:
        raise errors.MissingExtraError(
            f"this needs {' and '.join(missing)}, not installed here: "
            'pip install "dcasgd-jax[reproduce]"'
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False
