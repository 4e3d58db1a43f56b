"""The tokenizer in the metadata of a GGUF file, as one of the two kinds that we have.

llama.cpp keeps the vocabulary in lists and drops the rest of the original file, of which only a
name remains; the rest is put back here, and what the name does not tell us is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lwm_core.formats.gguf_file import GGUFFile
from lwm_core.tokenizer import BPE, Kind, Tokenizer
from lwm_core.tokenizer_json import JsonTokenizer
from lwm_core.vocabulary import AnyTokenizer

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_ONE_DIGIT = {"type": "Digits", "individual_digits": True}

_PRE_TOKENIZERS: dict[str | None, list[dict[str, Any]]] = {
    None: [_BYTE_LEVEL],
    "default": [_BYTE_LEVEL],
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [_ONE_DIGIT, _BYTE_LEVEL],
}
"""How a text is cut before pairs are merged, by llama.cpp's name for it."""


def read_special_ids(file: GGUFFile) -> tuple[int | None, int]:
    """The ids that begin (None if there is none) and end a text. Raises FormatError."""
    key = "tokenizer.ggml.bos_token_id"
    bos_id = file.whole(key, least=0) if key in file.metadata else None
    return bos_id, file.whole("tokenizer.ggml.eos_token_id", least=0)


def read_tokenizer(file: GGUFFile) -> AnyTokenizer:
    """The tokenizer of a file. Raises FormatError when it is damaged or of a kind we don't have."""
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(file)
    if kind == "llama":
        return _sentencepiece(file)
    raise file.wrong(f"its tokenizer is of the kind {kind!a:.80}, expected 'llama' or 'gpt2'")


def _vocabulary(file: GGUFFile) -> tuple[list[str], list[Kind]]:
    """The tokens, and what kind each of them is."""
    tokens = file.texts("tokenizer.ggml.tokens")
    kinds = file.numbers("tokenizer.ggml.token_type", len(tokens)).tolist()
    if unknown := set(kinds) - set(Kind):
        raise file.wrong(f"a token is of the unknown kind {min(unknown)}")
    return tokens, [Kind(kind) for kind in kinds]


def _special_tokens(file: GGUFFile, tokens: Sequence[str]) -> tuple[str | None, str]:
    """The tokens that begin (None if there is none) and end a text."""
    bos_id, eos_id = read_special_ids(file)
    for index in (bos_id or 0, eos_id):
        if index >= len(tokens):
            raise file.wrong(f"token {index} begins or ends a text, but there is no such token")
    return None if bos_id is None else tokens[bos_id], tokens[eos_id]


def _adds_bos(file: GGUFFile, default: bool) -> bool:
    value = file.metadata.get("tokenizer.ggml.add_bos_token", default)
    if not isinstance(value, bool):
        raise file.wrong(f"tokenizer.ggml.add_bos_token is {value!a:.80}, expected true or false")
    return value


def _byte_level(file: GGUFFile) -> JsonTokenizer:
    """A byte-level vocabulary, by way of the `tokenizer.json` that it once was."""
    pre = file.text("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(filter(None, _PRE_TOKENIZERS))
        raise file.wrong(f"its tokenizer cuts text as {pre!a:.80} does; known are {known}")
    tokens, kinds = _vocabulary(file)
    bos, eos = _special_tokens(file, tokens)
    verbatim = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise file.wrong("a token is there twice")
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(index, token, special=kind != Kind.USER)
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in verbatim
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": file.texts("tokenizer.ggml.merges"),
        },
    }
    settings = {"bos_token": bos, "eos_token": eos, "add_bos_token": _adds_bos(file, False)}
    return JsonTokenizer.parse(json.dumps(values), settings, source=file.path)


def _added_token(index: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, "special": special, **flags}


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    """A SentencePiece vocabulary, by way of the `tokenizer.model` that it once was."""
    if not _adds_bos(file, True) or file.metadata.get("tokenizer.ggml.add_space_prefix") is False:
        raise file.wrong("its texts begin without <s> or a space, which Llama's do not")
    tokens, kinds = _vocabulary(file)
    bos, eos = _special_tokens(file, tokens)
    if bos is None:
        raise file.wrong("tokenizer.ggml.bos_token_id is missing")
    scores = file.numbers("tokenizer.ggml.scores", len(tokens))
    model = b"".join(map(_piece, tokens, scores, kinds))
    # trainer_spec: algorithm, size, byte fallback, and the pieces of the special ids.
    trainer = _number(3, BPE) + _number(4, len(tokens)) + _number(35, 1)
    trainer += _bytes(46, bos.encode()) + _bytes(47, eos.encode())
    # normalizer_spec: a space in front, several kept, and marked.
    normalizer = _bytes(1, b"identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    return Tokenizer.parse(model + _bytes(2, trainer) + _bytes(3, normalizer), source=file.path)


def _piece(token: str, score: np.number, kind: Kind) -> bytes:
    """A piece as a message; the numbers of fields are those of `sentencepiece_model.proto`."""
    with np.errstate(all="ignore"):
        number = score.astype("<f4").tobytes()
    score_field = _varint(2 << 3 | 5) + number
    return _bytes(1, _bytes(1, token.encode()) + score_field + _number(3, kind))


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
