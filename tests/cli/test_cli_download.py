"""`lwm download` and `lwm convert`: lists, paths, and what is handed to the core."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    assert heading.split() == ["model", "name", "kind", "context", "size", "licence", "here"]
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


def test_convert_hands_over_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted: list[Any] = []

    def convert(source: str, target: Path, **options: Any) -> None:
        converted.append((source, target, options["to"], options["dtype"], options["force"]))

    monkeypatch.setitem(sys.modules, "lwm_core.convert", SimpleNamespace(convert=convert))
    assert app.main(["convert", "old", "new", "--dtype", "bfloat16", "--force"]) == 0
    assert converted == [("old", Path("new"), "lwm", "bfloat16", True)]
    assert capsys.readouterr().out == "new\n"
