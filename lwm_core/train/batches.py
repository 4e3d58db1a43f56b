"""Where batches come from: lessons of the package's world, or the data that a recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from glob import glob
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lwm_core.data.concatenated import Concatenated
from lwm_core.data.cursors import join_cursors
from lwm_core.data.lessons import Lessons, Stage
from lwm_core.data.pieces import Source
from lwm_core.data.records import open_records
from lwm_core.data.stream import Stream
from lwm_core.errors import ConfigError
from lwm_core.frame_batches import encode_frames
from lwm_core.tokenize import read_manifest
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import FrameLayout
from lwm_core.train.recipe import DataSource, LanguageRecipe
from lwm_core.train.shard import Shard
from lwm_core.train.sources import encoder_of
from lwm_core.train.start import Start
from lwm_core.types import Batch

TOLD = ("malformed", "too_long", "left_out", "epoch")
"""What is told of a stream: records that could not be read, examples that exceed a row or were not
learned from, and in which epoch it is, of each source where they are mixed."""

Cursor = dict[str, Any]
"""A place in the data, as JSON."""


class Made(NamedTuple):
    """A batch, and counts of the data up to it, by name."""

    batch: Batch
    counts: dict[str, int]

    @property
    def packed(self) -> float:
        """The share of its places that are filled."""
        return float((self.batch.segments > 0).mean())


Placed = tuple[Made, Cursor]
"""A batch and the place after it."""


class Batches(Protocol):
    """This process's rows of batches, by number."""

    def after(self, first: int, cursors: Sequence[Cursor]) -> Iterator[Placed]:
        """Batches from number `first` on; `cursors` are the places of all processes before it.

        There are none at the beginning.
        """

    def fingerprint(self) -> dict[str, str]:
        """Digests of what is learned from, by name: all processes must have the same."""


def batches_of(recipe: LanguageRecipe, start: Start, shard: Shard) -> Batches:
    """The batches of a recipe. Raises ConfigError, and UsageError for data that can't be opened."""
    if recipe.data:
        return DataBatches(recipe, recipe.data, start, shard)
    return LessonBatches(recipe, start, shard)


class LessonBatches:
    """Lessons of the world. Each batch is a function of its number: that is the whole place."""

    def __init__(self, recipe: LanguageRecipe, start: Start, shard: Shard):
        if not isinstance(start.tokenizer, Tokenizer):
            raise ConfigError(f"start_from: lessons can't be spelled for {recipe.start_from}")
        self._recipe, self._shard, self._prose = recipe, shard, start.prose
        self._lessons = Lessons(
            start.tokenizer,
            FrameLayout.of(start.config),
            partial(encode_frames, start.image) if start.image else _no_frames,
            start.image.config.resolution if start.image else 0,
            start.prose,
        )

    def after(self, first: int, cursors: Sequence[Cursor]) -> Iterator[Placed]:
        for index in count(first):
            stage = self._recipe.stage_at(index)
            whole = self._lessons.batch(stage, self._recipe.seed, index)
            yield Made(self._shard.of(whole), {}), {}

    def fingerprint(self) -> dict[str, str]:
        return {"the prose": sha256(self._prose.encode()).hexdigest()}


class DataBatches:
    """Packed rows of the records of a recipe's sources, mixed as each stage says."""

    called = "the data"

    def __init__(
        self,
        recipe: LanguageRecipe,
        data: Mapping[str, DataSource],
        start: Start,
        shard: Shard,
    ):
        self._recipe, self._shard = recipe, shard
        self._bos_id = start.config.bos_id
        self._data = data
        self._records = {name: open_records(source.path) for name, source in data.items()}
        layout = FrameLayout.of(start.config)
        self._encoders = {
            name: encoder_of(source, start.tokenizer, layout) for name, source in data.items()
        }
        for source in data.values():
            _check_codes(source, start)

    def after(self, first: int, cursors: Sequence[Cursor]) -> Iterator[Placed]:
        before = None
        for index in count(first):
            stage = self._recipe.stage_at(index)
            if stage is not before:
                stream, before = self.open(stage, cursors), stage
            batch, cursors = next(stream), [stream.cursor]
            yield Made(batch, _told(stream.counts)), cursors[0]

    def fingerprint(self) -> dict[str, str]:
        return {f"{self.called} {name!r}": one.fingerprint() for name, one in self._records.items()}

    def open(self, stage: Stage, cursors: Sequence[Cursor] = ()) -> Stream | Concatenated:
        """The stream of a stage, from a place on."""
        rows, shard = stage.rows // self._shard.count, (self._shard.index, self._shard.count)
        if self._recipe.packing == "concatenated":
            (name,) = self._data
            return Concatenated(
                self._records[name],
                self._encoders[name],
                rows,
                stage.length,
                bos_id=self._bos_id,
                shard=shard,
                cursor=join_cursors(cursors) if cursors else None,
            )
        shares = stage.mix or dict.fromkeys(self._data, 1.0)
        sources = [
            Source(
                name,
                self._records[name],
                self._encoders[name],
                share,
                self._data[name].shuffle,
                self._data[name].weigh,
            )
            for name, share in shares.items()
            if share
        ]
        return Stream(
            sources,
            rows,
            stage.length,
            self._recipe.seed,
            shard=shard,
            too_long=self._recipe.too_long,
            cursor=join_cursors(cursors) if cursors else None,
        )


class EvaluationBatches(DataBatches):
    """The first batches of data that is not learned from, of the last stage's size.

    They are always the same, for as many processes.
    """

    called = "the evaluation's data"

    def __init__(self, recipe: LanguageRecipe, start: Start, shard: Shard):
        super().__init__(recipe, recipe.evaluation, start, shard)
        self._stage = dataclasses.replace(recipe.stages[-1], mix={})
        self._count = recipe.evaluate_batches

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.open(self._stage), self._count)


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: one for name, one in counts.items() if name.partition("/")[0] in TOLD}


def _check_codes(source: DataSource, start: Start) -> None:
    """Raise ConfigError for codes of another image tokenizer than the model's."""
    path = Path(source.path).expanduser()
    files = path.rglob("*.jsonl") if path.is_dir() else map(Path, glob(str(path), recursive=True))
    for folder in sorted({file.parent for file in files}):
        manifest = read_manifest(folder)
        if manifest and start.image is None:
            raise ConfigError(f"{folder} holds pictures, and there is no image_tokenizer")
        if manifest and start.image and (reason := manifest.misfit(start.image)):
            raise ConfigError(f"{folder}: {reason}")


def _no_frames(frames: np.ndarray) -> np.ndarray:
    raise AssertionError("there are no frames without an image tokenizer")
