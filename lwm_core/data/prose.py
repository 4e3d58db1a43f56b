"""Long English text as passages that are laid end to end: to learn from, and to hide needles in.

The package's own, `haystack.txt.gz`, is Jane Austen's *Persuasion* (1818, public domain).
"""

from __future__ import annotations

import gzip
import json
import re
from importlib.resources import files
from pathlib import Path

from lwm_core.errors import UsageError


def read_prose(path: Path | None = None) -> list[str]:
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
            raise UsageError(f"{path}: there is no text in it")
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path}: not prose: UTF-8 text, or JSON lines with a `text`, is needed"
        ) from error
    return passages
