"""Either kind of tokenizer, and which of them a directory has."""

from __future__ import annotations

from pathlib import Path

from lwm_core import tokenizer, tokenizer_json
from lwm_core.errors import FormatError
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokenizer_json import JsonTokenizer

AnyTokenizer = Tokenizer | JsonTokenizer
"""What encodes, decodes, streams, splits and saves in the same way."""


def load_tokenizer(directory: Path) -> AnyTokenizer:
    """The tokenizer of a model directory: `tokenizer.model`, or else `tokenizer.json`.

    Raises FormatError when neither is there, or the one is damaged or of another kind.
    """
    if (directory / tokenizer.FILE).is_file():
        return Tokenizer.load(directory / tokenizer.FILE)
    if (directory / tokenizer_json.FILE).is_file():
        return JsonTokenizer.load(directory / tokenizer_json.FILE)
    raise FormatError(
        f"{directory}: neither {tokenizer.FILE} nor {tokenizer_json.FILE} is there; "
        "fetch or convert the model again"
    )
