"""The long text that needles are hidden in, as passages that are laid end to end.

The package's own, `data/haystack.txt.gz`, is Jane Austen's *Persuasion* (1818, public domain).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from lwm_core.errors import UsageError
from lwm_core.tokenizer import Tokenizer


def read_haystack(path: Path | None = None) -> list[str]:
    """The passages of a text: of the package's own, of a text file (UTF-8), of JSON lines.

    A passage is a paragraph, or the `text` of a line of a `.jsonl` file.
    Raises UsageError when the file can't be read as that.
    """
    try:
        if path is None:
            packed = files("lwm_core").joinpath("data/haystack.txt.gz").read_bytes()
            text = gzip.decompress(packed).decode()
        else:
            text = path.read_text(encoding="utf-8")
        if path is not None and path.suffix == ".jsonl":
            passages = [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
        else:
            passages = [part + "\n\n" for part in re.split(r"\n\s*\n", text) if part.strip()]
        if not "".join(passages):
            raise UsageError(f"{path}: the haystack is empty")
    except OSError as error:
        raise UsageError(f"{path}: can't read the haystack: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path}: not a haystack: UTF-8 text or JSON lines with a text are needed"
        ) from error
    return passages


def fill(passages: Iterator[str], size: int, tokenizer: Tokenizer) -> list[int]:
    """The ids of the next passages, joined: as few as hold `size` tokens."""
    text = ""
    ids: list[int] = []
    while len(ids) < size:
        missing = size - len(ids)
        while missing > 0:
            passage = next(passages)
            text += passage
            missing -= len(tokenizer.encode(passage))
        ids = tokenizer.encode(text)
    return ids
