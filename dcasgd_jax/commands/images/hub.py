"""Data sets from the Hugging Face hub."""

import pathlib
from collections.abc import Sequence

from dcasgd_jax import extras
from dcasgd_jax.commands import errors


def download(name: str, patterns: Sequence[str], instead: str) -> pathlib.Path:
    """The folder of a data set's files, fetched unless the hub's own cache has them.

    A file appears in the cache only when it is complete: an interrupted download is resumed by the
    next call and its part is never read.

    Args:
      name: `owner/name` on the hub.
      patterns: Of the files needed, such as `plain_text/*.parquet`.
      instead: What to do without the hub; ends the message of every error.

    Raises:
      UsageError: If the files are neither in the cache nor to be had.
    """
    extras.require_packages("huggingface_hub", extra="images")
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    page = f"https://huggingface.co/datasets/{name}"
    try:
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", allow_patterns=list(patterns)
        )
    except hub_errors.GatedRepoError as error:
        raise errors.UsageError(
            f"{name} is given only to those who accept its conditions: do so at {page}, then run "
            f"`hf auth login`. {instead}"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise errors.UsageError(f"the hub has no data set at {page}. {instead}") from error
    except Exception as error:  # which ones depends on the HTTP library of the hub's client
        reason = str(error).strip().partition("\n")[0]
        raise errors.UsageError(
            f"cannot download {name} ({type(error).__name__}: {reason}). {instead}"
        ) from error
    return pathlib.Path(folder)
