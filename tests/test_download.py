"""Downloading from a small hub on this machine: what arrives, and what is said when it does not."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from hub_server import Fault, Hub, commit_of
from huggingface_hub import constants

from lwm_core import registry
from lwm_core.download import download, local_path
from lwm_core.errors import DownloadError, ModelNotFound, UsageError
from lwm_core.types import Progress

REPOSITORY = "LargeWorldModel/LWM-Chat-32K-Jax"
SIZE = 300_000


@pytest.fixture
def vision_model(hub: Hub) -> dict[str, bytes]:
    files = {"params": bytes(SIZE), "vqgan": b"v" * 1000, "tokenizer.model": b"t"}
    hub.add(REPOSITORY, {**files, "README.md": b"read me", "tf_model.h5": b"other"})
    return files


def failure(attempt: Callable[[], object]) -> str:
    with pytest.raises(DownloadError) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def parts(tmp_path: Path) -> list[Path]:
    """What has come of files that are not whole."""
    return sorted((tmp_path / "cache").rglob("*.incomplete"))


def test_fetches_what_a_model_needs(hub: Hub, vision_model: dict[str, bytes]) -> None:
    card = registry.get("chat-32k")
    assert local_path(card) is None
    path = download("chat-32k")
    assert contents(path) == vision_model
    assert local_path(card) == local_path(REPOSITORY) == path
    assert local_path(REPOSITORY, revision=commit_of(REPOSITORY, "main")) == path


def test_progress_of_each_file_and_of_all(hub: Hub, vision_model: dict[str, bytes]) -> None:
    events: list[Progress] = []
    download("chat-32k", on_progress=events.append)
    last = {event.phase: event for event in events}
    total = SIZE + 1001
    assert last["download"] == Progress("download", total, total, "bytes")
    assert last["params"] == Progress("params", SIZE, SIZE, "bytes")
    assert last["checking params"] == Progress("checking params", SIZE, SIZE, "bytes")
    for phase in last:
        done = [event.done for event in events if event.phase == phase]
        assert done == sorted(done)
    assert sum(event.phase == "params" for event in events) > 100


def test_fetches_only_once(hub: Hub, vision_model: dict[str, bytes]) -> None:
    path = download("LargeWorldModel/lwm-chat-32k-jax")
    hub.requests.clear()
    hub.faults.append(Fault(status=500))
    assert download("chat-32k") == path
    assert hub.requests == []


def test_force_fetches_again(hub: Hub, vision_model: dict[str, bytes]) -> None:
    path = download("chat-32k")
    (path / "params").resolve().write_bytes(b"somebody's")
    hub.requests.clear()
    assert download("chat-32k", force=True) == path
    assert sorted(hub.fetched_names()) == sorted(vision_model)
    assert contents(path) == vision_model


@pytest.mark.parametrize(
    "name",
    [
        "some-one/llama.2",
        "https://huggingface.co/some-one/llama.2",
        "https://hf.co/some-one/llama.2/",
        "https://huggingface.co/some-one/llama.2/tree/main?x=1",
        "hf://some-one/llama.2",
        "hf://some-one/llama.2@main",
    ],
)
def test_ways_to_write_a_repository(hub: Hub, name: str) -> None:
    hub.add("some-one/llama.2", {"config.json": b"{}", "model.safetensors": b"s"})
    path = download(name)
    assert contents(path) == {"config.json": b"{}", "model.safetensors": b"s"}
    assert local_path(name) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("https://example.org/some-one/llama", "HF_ENDPOINT"),
        ("https://huggingface.co/datasets/some-one/words", "no model"),
        ("https://huggingface.co/some-one", "no model"),
        ("ftp://huggingface.co/some-one/llama", "no model"),
        ("hf://some-one/llama@../main", "no revision"),
    ],
)
def test_urls_of_something_else(hub: Hub, name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        download(name)
    assert hub.requests == []


def test_revisions(hub: Hub) -> None:
    for revision in ("main", "v2"):
        hub.add("some-one/llama", {"model.safetensors": revision.encode()}, revision)
    one = download("some-one/llama")
    two = download("some-one/llama", revision="v2")
    assert (one / "model.safetensors").read_bytes() == b"main"
    assert (two / "model.safetensors").read_bytes() == b"v2"
    assert download("https://hf.co/some-one/llama/tree/v2") == two
    assert download("some-one/llama", revision=two.name) == two
    assert local_path("some-one/llama", revision="v2") == two
    with pytest.raises(UsageError, match="another"):
        download("https://hf.co/some-one/llama/tree/v2", revision="main")
    message = failure(lambda: download("some-one/llama", revision="v9"))
    assert "no revision 'v9'" in message


INDEX = json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}).encode()


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        ("model.safetensors params pytorch_model.bin a.gguf", "model.safetensors"),
        ("params pytorch_model.bin a.gguf", "params"),
        ("pytorch_model.bin pytorch_model-00001-of-00001.bin a.gguf", "pytorch_model.bin"),
        (
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json a.gguf",
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
        ),
        ("model.safetensors.index.json params", "params"),
        ("a.gguf training_args.bin consolidated.safetensors", "a.gguf"),
        (
            "model.safetensors vqgan/config.json vqgan/model.safetensors onnx/config.json",
            "model.safetensors vqgan/config.json vqgan/model.safetensors",
        ),
    ],
)
def test_the_same_weights_come_once(hub: Hub, files: str, fetched: str) -> None:
    beside = {"config.json": b"{}", "tokenizer.model": b"t"}
    hub.add("some-one/llama", {**dict.fromkeys(files.split(), INDEX), **beside})
    path = download("some-one/llama")
    assert set(contents(path)) == {*fetched.split(), *beside}
    assert local_path("some-one/llama") == path


def test_text_models_in_both_formats(hub: Hub) -> None:
    hub.add("LargeWorldModel/LWM-Text-1M", {"pytorch_model.bin": b"p", "tokenizer.model": b"t"})
    hub.add("LargeWorldModel/LWM-Text-1M-Jax", {"params": b"p", "tokenizer.model": b"t"})
    path = download("largeworldmodel/lwm-text-1m")
    assert (path / "pytorch_model.bin").is_file()
    assert local_path(registry.get("text-1m")) == path
    assert (download("text-1m") / "params").is_file()


def test_half_a_model_is_not_here(hub: Hub, vision_model: dict[str, bytes]) -> None:
    path = download("chat-32k")
    for name in vision_model:
        (path / name).unlink()
        assert local_path(registry.get("chat-32k")) is None
        assert (download("chat-32k") / name).exists()


def test_half_of_the_shards_are_not_here(hub: Hub) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    files = {
        **dict.fromkeys(shards, b"s"),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.add("some-one/sharded", files)
    path = download("some-one/sharded")
    assert local_path("some-one/sharded") == path
    (path / shards[1]).unlink()
    assert local_path("some-one/sharded") is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("README.md config.json adapter_model.safetensors", "holds no weights that lwm reads"),
        ("a.gguf b.gguf", "hf download some-one/llama a.gguf"),
    ],
)
def test_no_weights_to_choose(hub: Hub, files: str, expected: str) -> None:
    hub.add("some-one/llama", dict.fromkeys(files.split(), b"x"))
    assert expected in failure(lambda: download("some-one/llama"))
    assert hub.fetched() == []


def test_a_published_model_has_all_its_parts(hub: Hub) -> None:
    hub.add(REPOSITORY, {"params": b"p", "tokenizer.model": b"t"})
    assert "lacks vqgan" in failure(lambda: download("chat-32k"))


def test_a_broken_line_is_taken_up_where_it_broke(hub: Hub, vision_model: dict[str, bytes]) -> None:
    hub.faults.append(Fault("params", "GET", times=1, drop_after=100_000))
    events: list[Progress] = []
    path = download("chat-32k", on_progress=events.append)
    assert contents(path) == vision_model
    assert [one.start for one in hub.fetched() if "params" in one.path] == [0, 100_000]
    assert max(event.done for event in events) == SIZE + 1001


def test_the_next_run_goes_on_inside_a_file(
    hub: Hub, vision_model: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults.append(Fault("params", "GET", times=1, drop_after=100_000))
    hub.faults.append(Fault("params", "GET", status=403))
    assert "answers 403" in failure(lambda: download("chat-32k"))
    assert local_path(REPOSITORY) is None
    assert max(part.stat().st_size for part in parts(tmp_path)) == 100_000
    hub.faults.clear()
    hub.requests.clear()
    assert contents(download("chat-32k")) == vision_model
    assert [one.start for one in hub.fetched() if "params" in one.path] == [100_000]
    assert parts(tmp_path) == []


@pytest.mark.parametrize("name", ["params", "config.json"])
def test_damage_is_found(
    hub: Hub, vision_model: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    hub.add(REPOSITORY, {"config.json": b"{}"})
    hub.faults.append(Fault(name, "GET", damaged=True))
    message = failure(lambda: download("chat-32k"))
    assert f"{name} of {REPOSITORY} came damaged" in message
    assert "not the Hub's" in message
    assert local_path(REPOSITORY) is None
    hub.faults.clear()
    assert local_path(REPOSITORY) is None
    assert contents(download("chat-32k")) == {**vision_model, "config.json": b"{}"}
    assert parts(tmp_path) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_sizes_that_are_lies(hub: Hub, vision_model: dict[str, bytes], method: str) -> None:
    hub.faults.append(Fault("params", method, size=1000))
    if method == "HEAD":  # what comes decides
        assert contents(download("chat-32k")) == vision_model
    else:
        assert "1000 bytes instead of 300000" in failure(lambda: download("chat-32k"))
        assert local_path(REPOSITORY) is None


@pytest.mark.parametrize("where", ["api/", "resolve/"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "RepoNotFound", "no public repository"),
        (401, "", "HF_TOKEN"),
        (401, "GatedRepo", "accept its terms"),
        (403, "GatedRepo", "accept its terms"),
        (403, "", "the hub answers 403"),
        (410, "", "try again"),
        (429, "", "too many requests"),
        (500, "", "the hub answers 500"),
    ],
)
def test_refusals_say_what_to_do(
    hub: Hub, vision_model: dict[str, bytes], where: str, status: int, code: str, expected: str
) -> None:
    hub.faults.append(Fault(where, status=status, code=code))
    message = failure(lambda: download("chat-32k"))
    assert expected in message
    assert REPOSITORY in message
    assert local_path(REPOSITORY) is None


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("where", "method"), [("api/", "GET"), ("params", "HEAD"), ("params", "")])
def test_a_bad_moment_passes(
    hub: Hub, vision_model: dict[str, bytes], status: int, where: str, method: str
) -> None:
    hub.faults.append(Fault(where, method, times=2, status=status))
    assert contents(download("chat-32k")) == vision_model


def test_offline(hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(lambda: download("chat-32k"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = download("chat-32k")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("chat-32k") == path
    assert "HF_HUB_OFFLINE" in failure(lambda: download("chat-32k", force=True))
    assert contents(path) == vision_model


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "check the connection" in failure(lambda: download("chat-32k"))


def test_disk_too_small(
    hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 200_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    message = failure(lambda: download("chat-32k"))
    assert "needs 0.0 GB" in message
    assert "HF_HOME" in message
    assert local_path(registry.get("chat-32k")) is None
    assert hub.fetched() == []


def test_what_has_come_needs_no_room_again(
    hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.append(Fault("params", "GET", times=1, drop_after=200_000))
    hub.faults.append(Fault("params", "GET", status=403))
    failure(lambda: download("chat-32k"))
    hub.faults.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE - 100_000))
    assert contents(download("chat-32k")) == vision_model


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "can't be written; set HF_HOME"),
    ],
)
def test_the_disk_refuses(
    hub: Hub,
    vision_model: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    expected: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    assert expected in failure(lambda: download("chat-32k"))
    assert local_path(REPOSITORY) is None


def test_larger_than_the_hub_gives(
    hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", SIZE - 1)
    assert f"hf download {REPOSITORY}" in failure(lambda: download("chat-32k"))


def test_ctrl_c_leaves_nothing_that_looks_whole(
    hub: Hub, vision_model: dict[str, bytes], tmp_path: Path
) -> None:
    pressed, released = threading.Event(), threading.Event()

    def press(event: Progress) -> None:
        if event.phase == "params" and event.done > 100_000 and not pressed.is_set():
            pressed.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            released.wait(10)

    with pytest.raises(KeyboardInterrupt):
        download("chat-32k", on_progress=press)
    assert local_path(REPOSITORY) is None
    assert not list((tmp_path / "cache").rglob("snapshots/*/*"))
    released.set()
    assert contents(download("chat-32k")) == vision_model


def test_weights_take_their_place_last(
    hub: Hub, vision_model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    client = huggingface_hub.snapshot_download

    def show(*given: object, allow_patterns: list[str], **options: object) -> object:
        shown.append(allow_patterns)
        assert local_path(REPOSITORY) is None
        return client(*given, allow_patterns=allow_patterns, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", show)
    download("chat-32k")
    assert shown == [["tokenizer.model", "vqgan"], ["params"]]


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
