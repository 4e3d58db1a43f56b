"""`lwm download`: the list of models, as a table and as JSON, and the path of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lwm_cli import app
from lwm_core import registry


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_the_list_shows_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["download", "--list"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["model", "name", "kind", "tokens", "size", "licence", "here"]
    assert len(rows) == 1 + len(registry.PUBLISHED) == 12
    chat = next(row for row in rows if row.startswith("chat-1m ")).split()
    assert chat == ["chat-1m", "LWM-Chat-1M", "vision", "1M", "14.2", "GB", "Llama", "2", "no"]
    assert rows[0].split()[-1] == "yes"


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["download", "--list", "--json"]) == 0
    models = {model["model"]: model for model in json.loads(capsys.readouterr().out)}
    assert models["text-128k"]["context"] == 131072
    assert models["text-128k"]["path"] is None
    assert models["nano"]["path"] == str(registry.embedded_path())


def test_the_embedded_model_is_always_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["download", "nano"]) == 0
    assert capsys.readouterr().out == f"{registry.embedded_path()}\n"
