"""Text to ids and back with LLaMA's SentencePiece vocabularies, exactly as Hugging Face does it.

Every published model of this family expects the ids of Hugging Face's legacy LLaMA tokenizer,
which are SentencePiece's own except around special pieces: `<s>`, `</s>`, `<unk>` and the user's
own pieces (`<vision>`) are found verbatim in the text first, and every stretch between them is
encoded by itself, each with its own dummy prefix space.

Decoding goes by pieces. Bytes that no piece covers are single tokens, so a character may be split
over several; a run of byte tokens becomes text only when the whole run is valid UTF-8, and one
U+FFFD per byte otherwise. A stream therefore holds a run back until it ends.
"""

from __future__ import annotations

import io
import os
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from pathlib import Path

import sentencepiece

from lwm_core.atomic import replacing
from lwm_core.errors import FormatError, TrainingError, UsageError

FILE = "tokenizer.model"
"""What the file of a vocabulary is called in a model directory."""

SPACE = "▁"
"""How SentencePiece writes a space inside a piece (U+2581)."""

BPE = 2
"""SentencePiece's number of the algorithm byte-pair encoding."""


class Kind(IntEnum):
    """The types of pieces in a SentencePiece file (`sentencepiece_model.proto`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of a vocabulary: its text with spaces as spaces, and what it stands for."""

    text: str
    kind: Kind

    @property
    def special(self) -> bool:
        """Whether the piece steers the model and is no text (`<s>`, `</s>`, `<unk>`)."""
        return self.kind in (Kind.CONTROL, Kind.UNKNOWN)

    @property
    def verbatim(self) -> bool:
        """Whether the piece is found in a text before anything else is."""
        return self.special or self.kind is Kind.USER

    @property
    def data(self) -> bytes:
        """The UTF-8 bytes that the piece stands for; part of a character for a byte piece."""
        if self.kind is Kind.BYTE:  # written `<0x0A>`
            return bytes([int(self.text[3:5], 16)])
        return self.text.encode()


class Tokenizer:
    """A LLaMA-style SentencePiece vocabulary. Ids are plain Python ints."""

    def __init__(self, model: bytes, pieces: Sequence[Piece]) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._model = model
        self.pieces = tuple(pieces)
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self._verbatim = {p.text: i for i, p in enumerate(self.pieces) if p.verbatim}
        longest_first = sorted(self._verbatim, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.model`.

        Raises UsageError when there is no such file, FormatError when it is not a LLaMA-style
        SentencePiece vocabulary; the message says why.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: can't read the tokenizer: {error.strerror}") from error
        return cls.parse(model, source=path)

    @classmethod
    def parse(cls, model: bytes, *, source: str | os.PathLike[str]) -> Tokenizer:
        """Read what a `tokenizer.model` holds; `source` names it in the FormatError of `load`."""
        try:
            return cls(model, _read_pieces(model))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{source}: not a LLaMA tokenizer: {reason}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.model` into a folder. Raises OutputError."""
        with replacing(Path(folder) / FILE) as temporary:
            temporary.write_bytes(self._model)

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    def score(self, index: int) -> float:
        """How early a piece is joined: pairs whose piece has the highest score go first."""
        return float(self._processor.get_score(index))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of `text`, after the id of `<s>` if `bos`; nothing is ever added at the end.

        What is not Unicode (lone surrogates) counts as U+FFFD.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = [self.bos_id] if bos else []
        for stretch in filter(None, self._cut.split(text)):
            special = self._verbatim.get(stretch)
            ids += self._processor.encode(stretch) if special is None else [special]
        return ids

    def split(self, text: str) -> list[bytes]:
        """`text` cut where its tokens end, without `<s>`: joined, the parts are its UTF-8 bytes.

        One part for every id of `encode(text, bos=False)`; a dummy prefix is an empty part.
        """
        parts = []
        inside = False
        for piece in (self.pieces[i] for i in self.encode(text, bos=False)):
            starts = not inside and not piece.verbatim
            parts.append(piece.data[1:] if starts else piece.data)
            inside = not piece.verbatim
        return parts

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`, without `<s>`, `</s>`, `<unk>` if `skip_special`.

        One leading space, the dummy prefix, is dropped. Ids outside the vocabulary have no text.
        """
        stream = self.stream(skip_special)
        return stream.feed(ids) + stream.flush()

    def stream(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come bit by bit."""
        return StreamDecoder(self.pieces, skip_special)


class StreamDecoder:
    """Turns ids into text as they come: all that was returned, joined, is `Tokenizer.decode`."""

    def __init__(self, pieces: Sequence[Piece], skip_special: bool = True) -> None:
        self._pieces = pieces
        self._skip_special = skip_special
        self._run = bytearray()
        self._started = False

    def feed(self, ids: Iterable[int]) -> str:
        """Take the next ids; return the text that no later id can change."""
        text = []
        for piece in self._shown(ids):
            if piece.kind is Kind.BYTE:
                self._run += piece.data
            else:
                text += [self._end_run(), piece.text]
        return self._without_prefix("".join(text))

    def flush(self) -> str:
        """The text that was held back; nothing follows it."""
        return self._without_prefix(self._end_run())

    def _shown(self, ids: Iterable[int]) -> Iterator[Piece]:
        for index in ids:
            if 0 <= index < len(self._pieces):
                piece = self._pieces[index]
                if not (piece.special and self._skip_special):
                    yield piece

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _without_prefix(self, text: str) -> str:
        if text and not self._started:
            self._started = True
            return text.removeprefix(" ")
        return text


def train_tokenizer(
    texts: Iterable[str],
    path: str | os.PathLike[str],
    vocab_size: int,
    user_symbols: Sequence[str] = ("<vision>", "</vision>"),
) -> None:
    """Make a LLaMA-style vocabulary of `vocab_size` pieces from `texts`, and write it to `path`.

    Byte-pair encoding of unchanged text, one digit a piece, all of ASCII, and all 256 bytes as a
    last resort; ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`, then come `user_symbols`. The same texts
    give the same file.
    Raises TrainingError when the texts can't give such a vocabulary, OutputError when `path`
    can't be written.
    """
    # Trained line by line, so that a line break is a byte of its own, as in LLaMA.
    lines = list(chain.from_iterable(text.splitlines() for text in texts))
    if not any(lines):
        raise TrainingError("can't train a tokenizer: there is no text to train it on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            user_defined_symbols=list(user_symbols),
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            character_coverage=0.99995,
            required_chars=string.digits + string.ascii_letters + string.punctuation,
            max_sentence_length=1 << 20,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # the order of equally frequent pairs must not depend on threads
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2]  # after the place in SentencePiece's source
        raise TrainingError(f"can't train a tokenizer of {vocab_size} pieces: {reason}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(model.getvalue())


def _read_pieces(model: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece file; ValueError says why it is not LLaMA's kind.

    Field numbers are those of `sentencepiece_model.proto`. They are read here because
    SentencePiece itself tells neither the algorithm of a model nor which pieces are the user's.
    """
    file = _Message(model)
    pieces = [
        Piece(piece.data(1).decode().replace(SPACE, " "), Kind(piece.number(3, Kind.NORMAL)))
        for piece in map(_Message, file.fields[1])
    ]
    trainer, normalizer = _Message(file.data(2)), _Message(file.data(3))
    if not pieces:
        raise ValueError("it holds no vocabulary")
    if trainer.number(3, 1) != BPE:
        raise ValueError("it is not of the kind BPE (byte-pair encoding)")
    if {p.text for p in pieces if p.kind is Kind.BYTE} != {f"<0x{b:02X}>" for b in range(256)}:
        raise ValueError("it has no byte fallback (pieces <0x00> to <0xFF>)")
    if not {"<s>", "</s>"} <= {p.text for p in pieces if p.kind is Kind.CONTROL}:
        raise ValueError("it has no <s> or no </s>")
    adds_prefix, shrinks_spaces, marks_spaces = (normalizer.number(n, 1) for n in (3, 4, 5))
    if normalizer.data(2) or shrinks_spaces or not (adds_prefix and marks_spaces):
        raise ValueError("it changes the text in other ways than by a space in front")
    return pieces


class _Message:
    """One protocol-buffers message: the values of its fields by number."""

    def __init__(self, data: bytes) -> None:
        self.fields: defaultdict[int, list[bytes]] = defaultdict(list)
        self._numbers: dict[int, int] = {}
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            field, wire_type = divmod(_varint(stream), 8)
            if wire_type == 0:
                self._numbers[field] = _varint(stream)
            elif wire_type == 2:
                self.fields[field].append(_take(stream, _varint(stream)))
            else:  # a float, or no such message at all
                _take(stream, {1: 8, 5: 4}.get(wire_type, len(data) + 1))

    def number(self, field: int, default: int) -> int:
        """An integer, an enumeration or a truth value."""
        return self._numbers.get(field, default)

    def data(self, field: int) -> bytes:
        """Text, bytes or a message; the parts of a message that comes in parts are one message."""
        return b"".join(self.fields[field])


def _take(stream: io.BytesIO, size: int) -> bytes:
    if size > len(stream.getbuffer()) - stream.tell():
        raise ValueError("it is cut short or of another format")
    return stream.read(size)


def _varint(stream: io.BytesIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _take(stream, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ValueError("it is of another format")
