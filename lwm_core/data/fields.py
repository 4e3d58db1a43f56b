"""The original's field notation: which values of a record are read, in order, and which learned.

`[question],answer` reads two texts, and learns the second; `a+b` joins two; `<|bos|>` and
`<|eos|>` are ids. A name with `vision` in it is a flat list of codes. The same records give the
same ids and weights as in the original; beyond it, texts and codes can be joined, as in
`[instruction+vision],output`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np

from lwm_core.data.entry import Encoder, Entry
from lwm_core.data.packing import Weighted, weigh
from lwm_core.errors import ConfigError
from lwm_core.tokens import FrameLayout, clip_ids
from lwm_core.vocabulary import AnyTokenizer


@dataclass(frozen=True)
class FieldOptions:
    """The options of the original's processors, by their names there.

    The notation is `fields`, or stands in each record under the key `fields_from_example`, where
    it may be a list: of it `fields_index` is taken, or below 0 one that the record's number draws.
    Of `format` "text" the original's texts are encoded without `<s>`, of "vision" each has its
    own. `max_n_frames` above 0 is how many frames of a clip are kept, evenly spread.
    Raises ConfigError.
    """

    fields: str = ""
    fields_from_example: str = ""
    subfield_separator: str = " "
    add_bos_token: bool = True
    add_eos_token: bool = True
    prepend_text: str = ""
    fields_index: int = -1
    max_n_frames: int = -1
    format: Literal["text", "vision"] = "text"

    def __post_init__(self) -> None:
        if bool(self.fields) == bool(self.fields_from_example):
            raise ConfigError("fields, or fields_from_example: one of them must be given")
        if self.format not in ("text", "vision"):
            raise ConfigError(f"format: {self.format!r} is none; known are text and vision")


def fields_encoder(tokenizer: AnyTokenizer, layout: FrameLayout, options: FieldOptions) -> Encoder:
    """Makes one example of a record, as its notation says."""
    return _FieldsEncoder(tokenizer, layout, options)


def text_encoder(tokenizer: AnyTokenizer, key: str = "text") -> Encoder:
    """Makes one example of one text, between `<s>` and `</s>`, all of it to be learned."""
    return partial(_text, tokenizer, key)


def _text(
    tokenizer: AnyTokenizer, key: str, index: int, record: Mapping[str, Any]
) -> list[Weighted]:
    ids = tokenizer.encode(Entry(index, record).text(key), bos=False)
    return [weigh(tokenizer.encode(""), 0.0) + weigh([*ids, tokenizer.eos_id], 1.0)]


@dataclass(frozen=True)
class _FieldsEncoder:
    tokenizer: AnyTokenizer
    layout: FrameLayout
    options: FieldOptions

    def __call__(self, index: int, record: Mapping[str, Any]) -> list[Weighted]:
        entry = Entry(index, record)
        whole = Weighted([], [])
        if self.options.add_bos_token:
            whole += weigh(self._begin, 0.0)
        prepend = self.options.prepend_text
        for field in self._fields(entry).split(","):
            is_read = field.startswith("[") and field.endswith("]")
            ids = self._ids(entry, field[1:-1] if is_read else field, prepend)
            whole += weigh(ids, 0.0 if is_read else 1.0)
            prepend = ""
        if self.options.add_eos_token:
            whole += weigh([self.tokenizer.eos_id], 1.0)
        return [whole]

    @property
    def _begin(self) -> list[int]:
        """The id of `<s>`, of a tokenizer that has one."""
        return self.tokenizer.encode("")

    def _fields(self, entry: Entry) -> str:
        """The notation of a record, or the one chosen of several."""
        key = self.options.fields_from_example
        if not key:
            return self.options.fields
        choices = entry.value(key)
        if not isinstance(choices, list):
            return entry.text(key)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise entry.wrong(key, "is no list of texts")
        if self.options.fields_index < 0:
            return random.Random(entry.index).choice(choices)
        if self.options.fields_index >= len(choices):
            raise entry.wrong(key, f"has {len(choices)} choices; fields_index is beyond them")
        return choices[self.options.fields_index]

    def _ids(self, entry: Entry, field: str, prepend: str) -> list[int]:
        """Ids of one field; `prepend` stands before it if it begins with text."""
        if field == "<|bos|>":
            return self._begin
        if field == "<|eos|>":
            return [self.tokenizer.eos_id]
        has_vision = self.options.format == "vision"
        ids: list[int] = []
        for is_vision, keys in groupby(
            field.split("+"), lambda key: has_vision and "vision" in key
        ):
            if is_vision:
                for key in keys:
                    ids += clip_ids(self.tokenizer, self.layout, self._frames(entry, key))
            else:
                text = prepend + self.options.subfield_separator.join(map(entry.text, keys))
                ids += self.tokenizer.encode(text, bos=has_vision)
            prepend = ""
        return ids

    def _frames(self, entry: Entry, key: str) -> np.ndarray:
        """The frames of a clip that are kept, int32 `[F, frame_codes]`."""
        frames = entry.codes(key, self.layout)
        if 0 < self.options.max_n_frames < len(frames):
            return frames[np.linspace(0, len(frames) - 1, self.options.max_n_frames).astype(int)]
        return frames
