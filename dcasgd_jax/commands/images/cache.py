"""Files derived from other files: made once, found again while those stay the same."""

import hashlib
import pathlib


def derived_path(
    directory: pathlib.Path, source: pathlib.Path, made_by: str, suffix: str
) -> pathlib.Path:
    """Where to keep what is made of `source`; another path once the source has changed.

    Args:
      directory: Of the cache; made if it is not there.
      source: A file; its absolute path, size and time of change count.
      made_by: Names what is made and, with a number, how.
      suffix: With its dot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    facts = source.stat()
    text = f"{made_by}|{source}|{facts.st_size}|{facts.st_mtime_ns}"
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    return directory / f"{source.stem}-{digest}{suffix}"
