"""Packages that only some parts need: what to install where one is missing."""

import importlib.util

# What to install for an import name, where it is called otherwise.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
}


class MissingExtraError(ImportError):
    """A package that only an extra brings is not installed."""


def require_packages(*names: str, extra: str = "commands") -> None:
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
