"""Errors that the command line shows as one line, and the check for optional packages."""

import importlib.util

# What to install for an import name, where it is called otherwise.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "orbax.checkpoint": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line and says what to do."""


class MissingExtraError(UsageError, ImportError):
    """A package that only the experiments need is not installed."""


def require_packages(*names: str, extra: str = "experiments") -> None:
    """Raises MissingExtraError, naming `extra`, unless packages (import names) are installed."""
    missing = [_DISTRIBUTIONS.get(name, name) for name in names if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"this needs {' and '.join(missing)}, not installed here: "
            f'pip install "dcasgd-jax[{extra}]"'
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False
