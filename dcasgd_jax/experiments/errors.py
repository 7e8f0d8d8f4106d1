"""Errors that the command line shows as one line, and the check for optional packages."""

import importlib.util


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line and says what to do."""


class MissingExtraError(UsageError, ImportError):
    """A package that only the experiments need is not installed."""


def require_packages(*names: str) -> None:
    """Raises MissingExtraError unless the packages (import names) are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {' and '.join(missing)}, not installed here: "
            'pip install "dcasgd-jax[experiments]"'
        )
