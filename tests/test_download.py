"""Downloading from a small hub on this machine: what arrives, and what is said when it does not."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from lwm_core import registry
from lwm_core.download import download, local_path
from lwm_core.errors import DownloadError, ModelNotFound
from lwm_core.types import Progress

COMMIT = "a" * 40
REPOSITORY = "LargeWorldModel/LWM-Chat-32K-Jax"


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as a download needs; `refusal` is (status, code)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refusal: tuple[int, str] | None = None
        self.fetched: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        owner_and_name = parts[2:4] if parts[0] == "api" else parts[:2]
        files = self.server.repositories.get("/".join(owner_and_name))
        if self.server.refusal:
            self.refuse(*self.server.refusal)
        elif files is None:
            self.refuse(404, "RepoNotFound")
        elif parts[0] != "api":
            self.send_file("/".join(parts[4:]), files)
        elif parts[4] == "tree":
            self.send(json.dumps([entry(name, data) for name, data in files.items()]).encode())
        elif parts[5] in ("main", COMMIT):
            self.send(json.dumps({"id": "x/y", "sha": COMMIT, "siblings": []}).encode())
        else:
            self.refuse(404, "RevisionNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", status, {"X-Error-Code": code})

    def send_file(self, name: str, files: dict[str, bytes]) -> None:
        if self.command == "GET":
            self.server.fetched.append(name)
        self.send(
            files[name], 200, {"ETag": f'"{abs(hash(files[name]))}"', "X-Repo-Commit": COMMIT}
        )

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture
def vision_model(hub: Hub) -> dict[str, bytes]:
    files = {"params": bytes(300_000), "vqgan": b"v" * 1000, "tokenizer.model": b"t"}
    hub.repositories[REPOSITORY] = {**files, "README.md": b"read me", "tf_model.h5": b"other"}
    return files


def test_fetches_what_a_model_needs(hub: Hub, vision_model: dict[str, bytes]) -> None:
    card = registry.get("chat-32k")
    assert local_path(card) is None
    events: list[Progress] = []
    path = download("chat-32k", on_progress=events.append)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == vision_model
    assert local_path(card) == local_path(REPOSITORY) == path
    assert local_path(REPOSITORY, revision=COMMIT) == path
    assert events[-1] == Progress("download", 301_001, 301_001, "bytes")
    done = [event.done for event in events]
    assert done == sorted(set(done))


def test_fetches_only_once(hub: Hub, vision_model: dict[str, bytes]) -> None:
    path = download("LargeWorldModel/lwm-chat-32k-jax")
    hub.fetched.clear()
    hub.refusal = (500, "")
    assert download("chat-32k") == path
    hub.refusal = None
    assert download("chat-32k", force=True) == path
    assert sorted(hub.fetched) == sorted(vision_model)


def test_any_repository_and_no_weights_twice(hub: Hub) -> None:
    hub.repositories["some-one/llama.2"] = {
        "config.json": b"{}",
        "model.safetensors": b"s",
        "pytorch_model.bin": b"p",
        "pytorch_model.bin.index.json": b"{}",
    }
    path = download("some-one/llama.2")
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors"}


def test_text_models_come_in_the_format_that_is_read(hub: Hub) -> None:
    """The one repository has what `lwm convert` reads, the other what only PyTorch does."""
    hub.repositories["LargeWorldModel/LWM-Text-1M"] = {
        "config.json": b"{}",
        "pytorch_model.bin": b"p",
        "tokenizer.model": b"t",
    }
    hub.repositories["LargeWorldModel/LWM-Text-1M-Jax"] = {
        "params": b"p",
        "tokenizer.model": b"t",
    }
    message = failure(lambda: download("LargeWorldModel/LWM-Text-1M"))
    assert ".bin only" in message
    assert hub.fetched == []
    assert (download("text-1m") / "params").is_file()


def test_weights_that_are_not_read_are_no_model(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["some-one/llama"] = {"config.json": b"{}", "model.safetensors": b"s"}
    path = download("some-one/llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert local_path("some-one/llama") is None


def test_half_a_model_is_not_here(hub: Hub, vision_model: dict[str, bytes]) -> None:
    path = download("chat-32k")
    (path / "vqgan").unlink()
    assert local_path(registry.get("chat-32k")) is None
    assert (download("chat-32k") / "vqgan").exists()


def test_half_of_the_shards_are_not_here(hub: Hub) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    files = {
        **dict.fromkeys(shards, b"s"),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.repositories["some-one/sharded"] = files
    path = download("some-one/sharded")
    assert local_path("some-one/sharded") == path
    (path / shards[1]).unlink()
    assert local_path("some-one/sharded") is None


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((404, "RepoNotFound"), "no public repository"),
        ((401, ""), "HF_TOKEN"),
        ((401, "GatedRepo"), "accept its terms"),
        ((403, "GatedRepo"), "accept its terms"),
        ((403, ""), "the hub answers 403"),
        ((410, ""), "try again"),
    ],
)
def test_refusals_say_what_to_do(
    hub: Hub, vision_model: dict[str, bytes], refusal: tuple[int, str], expected: str
) -> None:
    hub.refusal = refusal
    message = failure(lambda: download("chat-32k"))
    assert expected in message
    assert REPOSITORY in message


def failure(attempt: Callable[[], object]) -> str:
    with pytest.raises(DownloadError) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_such_revision(hub: Hub, vision_model: dict[str, bytes]) -> None:
    assert "no revision 'v9'" in failure(lambda: download("chat-32k", revision="v9"))


def test_no_weights(hub: Hub) -> None:
    hub.repositories["some-one/words"] = {"README.md": b"", "config.json": b"{}"}
    assert "holds no weights" in failure(lambda: download("some-one/words"))


def test_offline(hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(lambda: download("chat-32k"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = download("chat-32k")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("chat-32k") == path


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "check the connection" in failure(lambda: download("chat-32k"))


def test_disk_too_small(
    hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    message = failure(lambda: download("chat-32k"))
    assert "needs 0.0 GB" in message
    assert "HF_HOME" in message
    assert local_path(registry.get("chat-32k")) is None
    assert hub.fetched == []


def test_disk_gets_full(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    assert "the disk is full" in failure(lambda: download("chat-32k"))


def test_embedded_model_needs_no_download() -> None:
    assert download("nano") == registry.embedded_path()
    assert local_path(registry.NANO) == registry.embedded_path()


@pytest.mark.parametrize("name", ["chat-33k", "a/b/c", "../secret", ""])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ModelNotFound):
        download(name)


def test_looking_up_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lwm_core import registry; from lwm_core.download import local_path; "
        "[local_path(card) for card in registry.CARDS]; "
        "print([n for n in ('numpy', 'jax', 'httpx2', 'httpx') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
