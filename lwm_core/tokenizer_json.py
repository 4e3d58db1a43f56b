"""Text to ids and back with a byte-level vocabulary in a `tokenizer.json` of Hugging Face.

Ids are those of the `tokenizers` package, which does the encoding. Such a vocabulary spells every
byte as a printable character, so every token is a few bytes and decoding is joining them; a
character may be split over several tokens, and a stream holds its bytes back until it is whole.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm_core.atomic import write_text
from lwm_core.errors import FormatError, UsageError
from lwm_core.tensor_files import read_json

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
"""What the files of a vocabulary are called in a model directory."""


def _spelled_bytes() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for, as GPT-2 began it.

    What Latin-1 can print is itself; the others are the characters from U+0100, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTES = _spelled_bytes()


class JsonTokenizer:
    """A byte-level vocabulary. Ids are plain Python ints; `bos_id` is None where there is none."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, bos_id: int | None, eos_id: int, adds_bos: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._adds_bos = adds_bos
        self.bos_id = bos_id
        self.eos_id = eos_id
        added = tokenizer.get_added_tokens_decoder()
        plain = tokenizer.get_vocab(with_added_tokens=False)
        self._data = {index: _token_bytes(token) for token, index in plain.items()}
        self._data |= {index: token.content.encode() for index, token in added.items()}
        self._special = frozenset(index for index, token in added.items() if token.special)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> JsonTokenizer:
        """Read a `tokenizer.json`, and the `tokenizer_config.json` beside it.

        Raises UsageError when there is no such file, FormatError when it is not a byte-level
        vocabulary or the other is missing or names no end; the message says why.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path}: can't read the tokenizer: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not a byte-level tokenizer: no UTF-8") from error
        return cls.parse(text, read_json(Path(path).with_name(SETTINGS)), source=path)

    @classmethod
    def parse(
        cls, text: str, settings: Mapping[str, Any], *, source: str | os.PathLike[str]
    ) -> JsonTokenizer:
        """Read what the two files hold; `source` names them in the FormatError of `load`."""
        import tokenizers

        try:
            _check_kind(json.loads(text))
            tokenizer = tokenizers.Tokenizer.from_str(text)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            bos_id = _special_id(tokenizer, settings, "bos_token")
            eos_id = _special_id(tokenizer, settings, "eos_token")
            if eos_id is None:
                raise ValueError(f"{SETTINGS} names no eos_token")
        except Exception as error:  # the package raises nothing more special
            missing = "it lacks " if isinstance(error, KeyError) else ""
            reason = missing + " ".join(str(error).split())
            raise FormatError(f"{source}: not a byte-level tokenizer: {reason:.200}") from error
        # An empty text shows what the file itself puts in front.
        adds = bos_id is not None and bos_id in tokenizer.encode("").ids[:1]
        if isinstance(chosen := settings.get("add_bos_token"), bool):
            adds = chosen and bos_id is not None
        return cls(tokenizer, bos_id, eos_id, adds)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into a folder. Raises OutputError."""
        from tokenizers.processors import TemplateProcessing

        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None if self.bos_id is None else self._tokenizer.id_to_token(self.bos_id),
            "eos_token": self._tokenizer.id_to_token(self.eos_id),
            "add_bos_token": self._adds_bos,
            "clean_up_tokenization_spaces": False,
        }
        # Here, and not in the settings, others look for what goes in front.
        if self._adds_bos and self.bos_id is not None:
            begin = self._tokenizer.id_to_token(self.bos_id)
            self._tokenizer.post_processor = TemplateProcessing(
                single=f"{begin} $A", special_tokens=[(begin, self.bos_id)]
            )
        write_text(Path(folder) / FILE, self._tokenizer.to_str(pretty=True) + "\n")
        write_text(Path(folder) / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._data) + 1

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of `text`, after that of the beginning if `bos` and the model wants one.

        Nothing is ever added at the end. Special tokens are found verbatim in the text. What is
        not Unicode (lone surrogates) counts as U+FFFD.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if bos and self._adds_bos and self.bos_id is not None:
            return [self.bos_id, *ids]
        return ids

    def split(self, text: str) -> list[bytes]:
        """`text` cut where its tokens end: joined, the parts are its UTF-8 bytes.

        One part for every id of `encode(text, bos=False)`; bytes that the vocabulary lacks are in
        none.
        """
        return [self._data[index] for index in self.encode(text, bos=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`, without special tokens if `skip_special`.

        Bytes that are no UTF-8 become U+FFFD. Ids outside the vocabulary have no text.
        """
        stream = self.stream(skip_special)
        return stream.feed(ids) + stream.flush()

    def stream(self, skip_special: bool = True) -> ByteDecoder:
        """A decoder for ids that come bit by bit."""
        return ByteDecoder(self._data, self._special if skip_special else frozenset())


class ByteDecoder:
    """Turns ids into text as they come: all that was returned, joined, is `decode`."""

    def __init__(self, data: Mapping[int, bytes], hidden: frozenset[int]) -> None:
        self._data = data
        self._hidden = hidden
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Take the next ids; return the text that no later id can change."""
        return self._text.decode(b"".join(self._shown(ids)))

    def flush(self) -> str:
        """The text that was held back; nothing follows it."""
        return self._text.decode(b"", final=True)

    def _shown(self, ids: Iterable[int]) -> Iterator[bytes]:
        return (self._data.get(index, b"") for index in ids if index not in self._hidden)


def _token_bytes(token: str) -> bytes:
    """The bytes of a token; one that is not spelled in bytes is its own text."""
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _check_kind(values: Any) -> None:
    """Raise ValueError, saying why, unless tokens are the bytes of the text and nothing else."""
    model, cutter = values["model"], values["pre_tokenizer"] or {}
    steps = cutter["pretokenizers"] if cutter.get("type") == "Sequence" else [cutter]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise ValueError("it is not of the kind BPE (byte-pair encoding) over bytes")
    if (values["decoder"] or {}).get("type") != "ByteLevel" or not _cuts_only(steps):
        raise ValueError("it does not spell bytes (ByteLevel)")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    strips = ("lstrip", "rstrip", "single_word")
    if (
        values["normalizer"]
        or any(model.get(affix) for affix in affixes)
        or any(token.get(flag) for token in values["added_tokens"] for flag in strips)
    ):
        raise ValueError("it changes the text")


def _cuts_only(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps before the merging cut the text, and spell its bytes at last."""
    *cuts, last = steps
    return (
        last.get("type") == "ByteLevel"
        and not last.get("add_prefix_space", True)
        and all(cut["type"] in ("Digits", "Split") for cut in cuts)
        and all(cut.get("behavior", "Isolated") == "Isolated" for cut in cuts)
    )


def _special_id(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], key: str
) -> int | None:
    """The id of a token that the settings name, as a text or an object; None if they don't."""
    token = settings.get(key)
    if isinstance(token, Mapping):
        token = token.get("content")
    if token is None:
        return None
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"{key} {token!a} is not in the vocabulary")
    return index
