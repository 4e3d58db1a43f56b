"""`lwm download`: the list of models, the path of one, and what is said when it does not come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from lwm_cli import app
from lwm_core import registry

REPOSITORY = "some-one/llama"


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's cache is empty, and how much its client says is as it was afterwards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")


@pytest.fixture
def model(hub: Hub) -> dict[str, bytes]:
    """A repository with a model."""
    files = {"model.safetensors": bytes(50_000), "config.json": b"{}"}
    hub.add(REPOSITORY, files)
    return files


def test_the_list_shows_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["download", "--list"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["model", "name", "kind", "tokens", "size", "licence", "here"]
    assert len(rows) == 2 + len(registry.PUBLISHED) == 13
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


def test_a_repository_by_name_and_by_url(
    hub: Hub, model: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["download", REPOSITORY]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == model
    url = f"https://huggingface.co/{REPOSITORY}/tree/main"
    hub.requests.clear()
    assert app.main(["download", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": url, "path": str(path)}
    assert hub.requests == []
    assert app.main(["download", REPOSITORY, "--force"]) == 0
    assert sorted(hub.fetched_names()) == sorted(model)


def test_a_revision(hub: Hub, model: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    hub.add(REPOSITORY, {"model.safetensors": b"second"}, "v2")
    assert app.main(["download", REPOSITORY, "--revision", "v2"]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert (path / "model.safetensors").read_bytes() == b"second"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=401, code="GatedRepo"), "accept its terms"),
        (Fault("resolve/", status=403, code="GatedRepo"), "accept its terms"),
        (Fault(status=401), "HF_TOKEN"),
        (Fault(status=404, code="RepoNotFound"), "check the name"),
        (Fault(status=404, code="RevisionNotFound"), "no revision"),
        (Fault(status=429), "too many requests"),
        (Fault("resolve/", status=500), "answers 500"),
        (Fault("model.safetensors", "GET", damaged=True), "came damaged"),
        (Fault("model.safetensors", "GET", size=9), "9 bytes instead of 50000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_is_one_line_and_code_1(
    hub: Hub,
    model: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
    expected: str,
) -> None:
    hub.faults.append(fault)
    assert app.main(["download", REPOSITORY, "--revision", "main"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("lwm: error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert REPOSITORY in lines[0]


def test_offline(
    hub: Hub,
    model: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert app.main(["download", REPOSITORY]) == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert app.main(["download", REPOSITORY]) == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert app.main(["download", REPOSITORY]) == 0


def test_a_url_of_another_host_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["download", f"https://example.org/{REPOSITORY}"]) == 2
    assert "HF_ENDPOINT" in capsys.readouterr().err


def test_ctrl_c_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lwm_core.download.download", press)
    assert app.main(["download", REPOSITORY]) == 130
    assert "goes on from there" in capsys.readouterr().err
