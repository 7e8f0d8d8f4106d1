"""Images in Parquet files of the Hugging Face layout, read by row."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dcasgd_jax import extras, files
from dcasgd_jax.commands import errors
from dcasgd_jax.commands.images import cache, sources

if TYPE_CHECKING:
    import pyarrow as pa

_CACHED_GROUPS = 8
_LABELS = "label"  # the name of their column


class ParquetImages:
    """Encoded images in Parquet files: a column {bytes, path} and a column `label`.

    Parquet can be read only a row group at a time, of about 100 images. The last few are kept, so
    reading in order is cheap, but in random order every image costs a group. `cache_dir` ends
    that: it gets, once, a copy of the image bytes in Arrow files that are mapped into memory, and
    then needs as much disk as the Parquet files.

    Args:
      paths: Of the files, in order; see `shards.find_shards`.
      image_column: Its name; a struct with a field `bytes`.
      num_classes: Labels are in [0, num_classes).
      cache_dir: For the copies; made if it is not there.

    Raises:
      UsageError: If a file is not whole, lacks a column, or has a label out of range; the message
        names the file, and the row if it is about one. Images are looked at when they are read.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        *,
        image_column: str,
        num_classes: int,
        cache_dir: pathlib.Path | None = None,
    ):
        extras.require_packages("pyarrow", extra="images")
        self.num_classes = num_classes
        self._image_column = image_column
        self._paths = [pathlib.Path(path) for path in paths]
        self._places: list[tuple[pathlib.Path, int]] = []  # of each group: file, number in it
        mapped: list[pa.Array] = []
        labels, sizes = [], []
        for path in self._paths:
            of_file, group_sizes = self._check(path)
            labels.append(of_file)
            sizes += group_sizes
            self._places += [(path, number) for number in range(len(group_sizes))]
            if cache_dir is not None:
                mapped += self._copied_groups(path, pathlib.Path(cache_dir))
        self.labels = np.concatenate(labels)
        self._file_starts = np.cumsum([0, *map(len, labels)])
        self._group_starts = np.cumsum([0, *sizes])
        load = lambda group: self._read_group(*self._places[group])
        recent = functools.lru_cache(maxsize=_CACHED_GROUPS)(load)
        self._group = recent if cache_dir is None else mapped.__getitem__

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> memoryview:
        """See `ImageSource.read`."""
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        encoded = self._group(group)[row - int(self._group_starts[group])].as_buffer()
        if encoded is None:
            raise errors.UsageError(
                f"{self.where(row)}: {self._image_column} has no bytes; only files that hold the "
                "images themselves can be read."
            )
        return memoryview(encoded)

    def where(self, row: int) -> str:
        """See `ImageSource.where`."""
        file = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return f"{self._paths[file]}, row {row - int(self._file_starts[file])}"

    def _check(self, path: pathlib.Path) -> tuple[np.ndarray, list[int]]:
        """The labels of a file, and the number of rows of each row group."""
        import pyarrow as pa
        from pyarrow import parquet

        with _readable(path), parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            for name in (self._image_column, _LABELS):
                if name not in schema.names:
                    raise errors.UsageError(
                        f"{path} has no column {name}, only {', '.join(schema.names)}: it is of "
                        "another data set."
                    )
            image, label = (schema.field(name).type for name in (self._image_column, _LABELS))
            if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
                raise errors.UsageError(
                    f"{path}: column {self._image_column} is {image}, not a struct with the bytes "
                    "of an image file."
                )
            if not pa.types.is_integer(label):
                raise errors.UsageError(f"{path}: column {_LABELS} is {label}, not of integers.")
            if not metadata.num_rows:
                raise errors.UsageError(f"{path} has no rows: it is no part of a data set.")
            labels = file.read(columns=[_LABELS]).column(0).combine_chunks()
            sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        where = lambda row: f"{path}, row {row}"
        if labels.null_count:
            row = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
            raise errors.UsageError(f"{where(row)} has no label: the file is corrupt.")
        return sources.check_labels(labels.to_numpy(), self.num_classes, where), sizes

    def _read_group(self, path: pathlib.Path, number: int) -> pa.Array:
        from pyarrow import parquet

        with _readable(path), parquet.ParquetFile(path) as file:
            # Named as a nested column, so that the paths beside the bytes are not read.
            table = file.read_row_group(number, columns=[f"{self._image_column}.bytes"])
            return table.column(0).combine_chunks().field("bytes")

    def _copied_groups(self, path: pathlib.Path, cache_dir: pathlib.Path) -> list[pa.Array]:
        """The row groups of a file from its copy, which is made unless it is there and whole."""
        import pyarrow as pa
        from pyarrow import parquet

        copy = cache.derived_path(cache_dir, path, f"images {self._image_column} 1", ".arrow")
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            return _mapped_groups(copy)
        with parquet.ParquetFile(path) as file:
            num_groups = file.num_row_groups
        schema = pa.schema([("bytes", self._read_group(path, 0).type)])
        with files.replacing(copy) as stream, pa.ipc.new_file(stream, schema) as writer:
            for number in range(num_groups):
                group = self._read_group(path, number)
                writer.write_batch(pa.record_batch([group], schema=schema))
        return _mapped_groups(copy)


def _mapped_groups(path: pathlib.Path) -> list[pa.Array]:
    """The groups of a copy; their bytes stay on the disk until they are read."""
    import pyarrow as pa

    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        return [reader.get_batch(k).column(0) for k in range(reader.num_record_batches)]


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns what Parquet says of a bad file into one line that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise errors.UsageError(
            f"{path} cannot be read as a Parquet file, it is truncated or corrupt ({reason}): "
            "download or copy it again."
        ) from error
