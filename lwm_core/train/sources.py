"""A recipe's sources of data: how their records become examples, and what is spelled in them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import cast

from lwm_core.data.conversation import chat_encoder
from lwm_core.data.entry import Encoder
from lwm_core.data.fields import FieldOptions, fields_encoder, text_encoder
from lwm_core.data.records import open_records
from lwm_core.errors import RecordError
from lwm_core.tokens import FrameLayout
from lwm_core.train.recipe import DataSource
from lwm_core.vocabulary import AnyTokenizer

CHARACTERS = 8_000_000
"""Of all sources together, about so much text shows how often each word will be met."""
RECORDS = 100_000
"""So many records of a source are looked at for it, at most."""


def encoder_of(source: DataSource, tokenizer: AnyTokenizer, layout: FrameLayout) -> Encoder:
    """How a record of a source becomes examples."""
    if source.format == "text":
        return text_encoder(tokenizer, source.key)
    if source.format == "chat":
        return chat_encoder(tokenizer, layout)
    options = FieldOptions(
        fields=source.fields,
        fields_from_example=source.fields_from,
        max_n_frames=source.max_frames or -1,
        format="vision" if source.format == "vision" else "text",
    )
    return fields_encoder(tokenizer, layout, options)


def spelled_in(sources: Mapping[str, DataSource], layout: FrameLayout) -> list[str]:
    """The texts that the first records of each source ask a tokenizer to encode, worded as there.

    Bad records are passed over. Raises UsageError for data that can't be opened.
    """
    texts: list[str] = []
    for source in sources.values():
        listener = _Listener(CHARACTERS // len(sources))
        encode = encoder_of(source, cast(AnyTokenizer, listener), layout)
        for index, record in islice(open_records(source.path).read(0), RECORDS):
            if record is not None:
                with suppress(RecordError):
                    encode(index, record)
            if listener.room <= 0:
                break
        texts += listener.texts
    return texts


class _Listener:
    """Stands in for a tokenizer that is still to be made, and keeps what it is asked to encode.

    There is `room` for so many characters more.
    """

    eos_id = 0

    def __init__(self, room: int):
        self.room = room
        self.texts: list[str] = []

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Nothing is known of ids: it is one, whatever the text."""
        self.texts.append(text.removeprefix("<s>"))
        self.room -= len(text)
        return [0]
