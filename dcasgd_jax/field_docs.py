"""What the docstring of a NamedTuple says of its fields, given to the fields: for `help`."""

import inspect
import re
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)
_SECTION = re.compile(r"^(Args|Attributes):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^  (\w+): (.*?)(?=^  \w+: |\Z)", re.MULTILINE | re.DOTALL)


def document_fields(cls: _Class) -> _Class:
    """Gives each field its entry under `Args:` or `Attributes:`, in place of "Alias for field".

    Args:
      cls: A NamedTuple whose docstring has such a section.

    Returns:
      The same class.

    Raises:
      ValueError: If the entries are not those of the fields; names the first that differs.

    Example:
      >>> from typing import NamedTuple
      >>> from dcasgd_jax.field_docs import document_fields
      >>> @document_fields
      ... class Point(NamedTuple):
      ...     '''A point.
      ...
      ...     Attributes:
      ...       x: To the right, in metres.
      ...     '''
      ...     x: float
      >>> Point.x.__doc__
      'To the right, in metres.'
    """
    section = _SECTION.search(inspect.getdoc(cls) or "")
    entries = dict(_ENTRY.findall(section[2])) if section else {}
    fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    for name in (*fields, *entries):
        if name not in entries or name not in fields:
            raise ValueError(f"{cls.__name__}.{name} is not in both the class and its docstring.")
        getattr(cls, name).__doc__ = " ".join(entries[name].split())
    return cls
