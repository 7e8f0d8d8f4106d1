"""The Parquet files of one split, in the naming of the Hugging Face hub."""

import pathlib
import re
from collections.abc import Sequence

from dcasgd_jax.commands import errors

_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


def find_shards(directory: pathlib.Path, folders: Sequence[str], split: str) -> list[pathlib.Path]:
    """`<split>-00000-of-00003.parquet` and so on, or `<split>.parquet`, in order.

    Args:
      directory: Where the data set is.
      folders: Names of folders in it that may hold the files instead; the first that does counts.
      split: Of the data set, such as `train`.

    Returns:
      All files of the split, or none if there is no such file.

    Raises:
      UsageError: If a part is missing, or parts of two different copies are there.
    """
    for folder in (directory, *(directory / name for name in folders)):
        if (whole := folder / f"{split}.parquet").is_file():
            return [whole]
        found = {}
        totals = set()
        for path in sorted(folder.glob(f"{split}-*.parquet")):
            if numbers := _NUMBERED.fullmatch(path.name.removeprefix(split)):
                found[int(numbers[1])] = path
                totals.add(int(numbers[2]))
        if not found:
            continue
        if len(totals) > 1:
            raise errors.UsageError(
                f"{folder} holds {split} files of {min(totals)} and of {max(totals)} parts: keep "
                "the files of one copy of the data set."
            )
        (total,) = totals
        for number in range(total):
            if number not in found:
                raise errors.UsageError(
                    f"{folder} lacks {split}-{number:05}-of-{total:05}.parquet: copy it there."
                )
        return [found[number] for number in range(total)]
    return []
