"""Which files of a repository are the model: its weights in one format, and what goes with them.

The same rules say what to fetch and whether what lies in the cache is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lwm_core import registry
from lwm_core.errors import DownloadError


@dataclass(frozen=True)
class Format:
    """A format of weights: in one file, or in shards that an index names."""

    single: re.Pattern[str]
    shard: re.Pattern[str] | None = None
    index: str | None = None


FORMATS = (
    Format(
        re.compile(r"model\.safetensors"),
        re.compile(r"model-\d+-of-\d+\.safetensors"),
        "model.safetensors.index.json",
    ),
    Format(re.compile("params")),
    Format(
        re.compile(r"pytorch_model\.bin"),
        re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
        "pytorch_model.bin.index.json",
    ),
    Format(re.compile(r"[^/]+\.gguf")),
)
"""The formats of weights; of the same weights in several, the first is fetched."""

_INDEX = re.compile(r".*\.index\.json")
_BESIDE = re.compile(r"[^/]+\.json|tokenizer\.model|vqgan|vqgan/(config\.json|model\.safetensors)")


@dataclass(frozen=True)
class Choice:
    """What to fetch of a repository. The weights are put in place last: they make it whole."""

    beside: tuple[str, ...]
    weights: tuple[str, ...]


def choose(repository: str, names: Collection[str]) -> Choice:
    """The files to fetch of those that a repository has.

    Raises DownloadError when no weights that are read are there, when one can't know which, or
    when a published model lacks a part.
    """
    weights, index = next(filter(None, (_weights(names, one) for one in FORMATS)), ((), None))
    if not weights:
        raise DownloadError(
            f"{repository} holds no weights that lwm reads (model.safetensors, params, "
            "pytorch_model.bin, one GGUF file); name a repository that has them"
        )
    if index is None and len(weights) > 1:
        raise DownloadError(
            f"{repository} holds {len(weights)} GGUF files; fetch one with "
            f"`hf download {repository} {weights[0]}` and give its path"
        )
    if missing := [name for name in _needed(repository) if name not in names]:
        raise DownloadError(
            f"{repository} lacks {' and '.join(missing)} here, a part of the model; "
            "try another revision"
        )
    beside = (name for name in names if _BESIDE.fullmatch(name) and not _INDEX.fullmatch(name))
    return Choice(tuple(sorted(beside)) + ((index,) if index else ()), weights)


def is_whole(directory: Path, repository: str) -> bool:
    """Whether all of a model lies in a directory of the cache, which shows complete files only."""
    if not all((directory / name).exists() for name in _needed(repository)):
        return False
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    return any(
        any(one.single.fullmatch(name) for name in names)
        or (one.index in names and names >= _shards(directory / one.index))
        for one in FORMATS
    )


def _weights(names: Collection[str], one: Format) -> tuple[tuple[str, ...], str | None] | None:
    """The files of one format and the index among them, or None: a single file before shards."""
    if single := sorted(filter(one.single.fullmatch, names)):
        return tuple(single), None
    shards = sorted(filter(one.shard.fullmatch, names)) if one.shard else []
    return (tuple(shards), one.index) if shards and one.index in names else None


def _needed(repository: str) -> tuple[str, ...]:
    """The files beside the weights without which a published model is none."""
    card = registry.find(repository)
    if card is None:
        return ()
    return ("tokenizer.model", "vqgan") if card.kind == "vision" else ("tokenizer.model",)


def _shards(index: Path) -> set[str | None]:
    """The files that an index names; one that is damaged names none that could be there."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {None}
