"""Records in rows of tables: Parquet, Arrow, and the datasets of Hugging Face.

The packages `pyarrow` and `datasets`, of the extra `[data]`, are imported where a table is opened.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from lwm_core.data.extra import needed_for
from lwm_core.errors import DownloadError, FormatError, UsageError

Rows = Iterator[tuple[int, dict[str, Any]]]

MOST = 64
"""Rows that become records at once: one that holds an hour of video is large."""
HUB = "hf:"
"""What the name of a dataset of Hugging Face begins with."""
SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""What an option that is on or off may be."""


class Parquet:
    """The rows of a Parquet file. Raises FormatError where it is none, or damaged."""

    def __init__(self, path: Path):
        self._path = path
        with needed_for(path):
            import pyarrow.parquet
        self._open = pyarrow.parquet.ParquetFile
        with _readable(path), self._open(path) as file:
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            self._starts = [0, *accumulate(group.num_rows for group in groups)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, step: int = 1) -> Rows:
        """Every `step`-th row from number `start` on; groups of rows before it are not read."""
        if start >= len(self):
            return
        group = bisect_right(self._starts, start) - 1
        groups = range(group, len(self._starts) - 1)
        with _readable(self._path), self._open(self._path) as file:
            batches = file.iter_batches(MOST, row_groups=groups)
            yield from _rows(batches, self._starts[group], start, step)


class Arrow:
    """The rows of an Arrow file, of either kind: Arrow's own, or a stream as Hugging Face writes.

    Raises FormatError where it is none, or damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        with needed_for(path):
            import pyarrow.ipc
        self._arrow = pyarrow
        with _readable(path):
            self._count = sum(batch.num_rows for batch in self._batches())

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, step: int = 1) -> Rows:
        """Every `step`-th row from number `start` on; the file is mapped, so that the others cost
        little."""
        with _readable(self._path):
            yield from _rows(self._batches(), 0, start, step)

    def _batches(self) -> Iterable[Any]:
        file = self._arrow.memory_map(str(self._path))
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        if is_stream:
            return self._arrow.ipc.open_stream(file)
        opened = self._arrow.ipc.open_file(file)
        return map(opened.get_batch, range(opened.num_record_batches))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of the reader as ours."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{path}: can't be read: {_first_line(error)}") from error


def _rows(batches: Iterable[Any], first: int, start: int, step: int) -> Rows:
    """Every `step`-th row of Arrow's batches from number `start` on; the first batch begins with
    row `first`."""
    for batch in batches:
        for begin in range(max(0, start - first), batch.num_rows, MOST):
            rows = batch.slice(begin, MOST)
            rows.validate(full=True)  # or what a damaged file says could lead out of memory
            chosen = np.arange((start - first - begin) % step, rows.num_rows, step)
            numbers = (first + begin + chosen).tolist()
            yield from zip(numbers, rows.take(chosen).to_pylist(), strict=True)
        first += batch.num_rows


class HubDataset:
    """A dataset of Hugging Face's: `hf:OWNER/NAME?split=…&config=…&revision=…&streaming=true`.

    Also of a folder, where its path stands for the name. Without `streaming` it is fetched whole,
    into the cache of the package. Raises UsageError for what is not there, and DownloadError.
    """

    OPTIONS = ("split", "config", "revision", "streaming")

    def __init__(self, spec: str):
        self.name = spec
        self._path, _, query = spec.removeprefix(HUB).partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := options.keys() - set(self.OPTIONS):
            raise UsageError(
                f"{spec}: {min(unknown)} is no option; known are {', '.join(self.OPTIONS)}"
            )
        streaming = options.pop("streaming", "false").lower()
        if streaming not in SWITCH:
            raise UsageError(f"{spec}: streaming is {streaming!r}; it may be true or false")
        self._options, self._streams = options, SWITCH[streaming]
        with needed_for(spec):
            import datasets
        with self._reached():
            self._dataset = datasets.load_dataset(
                self._path,
                options.get("config"),
                split=options.get("split", "train"),
                revision=options.get("revision"),
                streaming=self._streams,
            )

    def fingerprint(self) -> str:
        """Of its name on the Hub, columns, number of rows, and first row.

        The row is taken as it is stored: a picture that is decoded tells of no more than where in
        memory it lies. Where a folder or a file that the row names lies is left out.
        """
        with self._reached():
            first = [row.to_pylist() for row in islice(self._dataset.with_format("arrow"), 1)]
        count = None if self._streams else len(self._dataset)
        name = "" if Path(self._path).expanduser().exists() else self._path
        known = [name, self._options, str(self._dataset.features), count, _placeless(first)]
        return hashlib.sha256(json.dumps(known, default=_as_text).encode()).hexdigest()

    def read(self, start: int, step: int = 1) -> Rows:
        """Every `step`-th row from number `start` on; a streamed dataset fetches the others too."""
        with self._reached():
            chosen: Iterable[Any]
            if self._streams:
                chosen = islice(self._dataset.skip(start), 0, None, step)
            else:
                places = range(start, len(self._dataset), step)
                chosen = self._dataset.select(places) if places else ()
            yield from zip(count(start, step), chosen)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Errors of the package, which are of many kinds, as ours."""
        try:
            yield
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(f"{self.name}: {_first_line(error)}") from error
        except Exception as error:
            raise DownloadError(f"{self.name}: can't be fetched: {_first_line(error)}") from error


def _placeless(value: Any) -> Any:
    """A value of a row, where pictures and the like are named without the folder they lie in."""
    if isinstance(value, list):
        return [_placeless(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"bytes", "path"} and value["path"]:
        return {**value, "path": Path(value["path"]).name}
    return {name: _placeless(one) for name, one in value.items()}


def _as_text(value: Any) -> str:
    """A value of a row that JSON has no word for, such as bytes or a date."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
