"""A record as what is to be learned is taken out of it: each value checked, and named if wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwm_core.data.packing import Weighted
from lwm_core.errors import RecordError
from lwm_core.tokens import FrameLayout

Encoder = Callable[[int, Mapping[str, Any]], list[Weighted]]
"""A record and its number to examples to learn from; raises RecordError where it gives none."""


@dataclass(frozen=True)
class Entry:
    """The values of record `index`, or of a part of it that is found at `within`."""

    index: int
    values: Mapping[str, Any]
    within: str = ""

    def text(self, key: str) -> str:
        """A text. Raises RecordError when it is missing or of another type."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.wrong(key, f"is {type(value).__name__}, where text is needed")
        return value

    def codes(self, key: str, layout: FrameLayout) -> np.ndarray:
        """Vision codes as frames, int32 `[F, frame_codes]`, from one flat list of them.

        A last frame that is incomplete is dropped, as in the original. Raises RecordError when
        they are missing, no codes of the model, or too few for a frame.
        """
        value = self.value(key)
        try:
            codes = np.asarray(value)
        except ValueError:  # lists of several lengths
            codes = np.empty(0, object)
        if codes.ndim != 1 or codes.dtype.kind not in "iu":
            raise self.wrong(key, "is no flat list of whole numbers")
        if not layout.codes > codes.max(initial=0) >= codes.min(initial=0) >= 0:
            raise self.wrong(key, f"has other codes than the {layout.codes} of the model")
        frames = len(codes) // layout.frame_codes
        if not frames:
            raise self.wrong(key, f"has {len(codes)} codes; a frame is {layout.frame_codes}")
        whole = codes[: frames * layout.frame_codes].astype(np.int32)
        return whole.reshape(frames, layout.frame_codes)

    def parts(self, key: str) -> Iterator[Entry]:
        """The records in a list of them. Raises RecordError when it is none."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
            raise self.wrong(key, "is no list of records")
        for number, part in enumerate(value):
            yield Entry(self.index, part, f"{self.within}{key}[{number}].")

    def value(self, key: str) -> Any:
        """Whatever stands there. Raises RecordError when it is missing."""
        if not self.has(key):
            raise self.wrong(key, "is missing")
        return self.values[key]

    def has(self, key: str) -> bool:
        """Whether anything stands there; in a table, what a row lacks is None."""
        return self.values.get(key) is not None

    def wrong(self, key: str, reason: str) -> RecordError:
        """The error that names the record and the key."""
        # Keys may be data themselves: they stand in records' notations.
        shown = " ".join(f"{key:.80}".split())
        return RecordError(f"record {self.index}: {self.within}{shown} {reason}")
