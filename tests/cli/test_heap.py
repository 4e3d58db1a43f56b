"""The program starts anew with the heap that suits it, and remains what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwm_cli import __main__, app, heap

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")

PROGRAM = """
import json, os, sys
from pathlib import Path
from lwm_cli import heap
heap._POLICY = Path(sys.argv[1])
heap.start_with_heap(for_threads="threads" in sys.argv)
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv, sys.flags.dev_mode]))
"""


def run(policy: Path, tunables: str | None, *words: str) -> tuple[bool, list]:
    """Whether a program stayed the process it was, and what it says at the end."""
    environment = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-X", "dev", "-c", PROGRAM, str(policy), "two words", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate(timeout=60)
    number, *rest = json.loads(said)
    return number == process.pid, rest


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "enabled"


@on_linux
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_where_they_are_given_on_request(policy: Path, before: str | None, after: str) -> None:
    """Process, words and flags stay; what the user chose stands."""
    policy.write_text("always [madvise] never\n")
    same, (tunables, words, is_dev) = run(policy, before, "-x")
    assert same
    assert tunables == after
    assert words == ["-c", str(policy), "two words", "-x"]
    assert is_dev


@on_linux
@pytest.mark.parametrize("choice", ["always [madvise] never", "always madvise [never]"])
def test_one_heap_for_threads(policy: Path, choice: str) -> None:
    policy.write_text(choice)
    _, (tunables, *_) = run(policy, None, "threads")
    assert "glibc.malloc.arena_max=1" in tunables.split(":")
    assert ("hugetlb" in tunables) == ("[madvise]" in choice)


@pytest.mark.parametrize("choice", ["[always] madvise never", "always madvise [never]", None])
def test_elsewhere_nothing_changes(
    policy: Path, choice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choice:
        policy.write_text(choice)
    monkeypatch.setattr(heap, "_POLICY", policy)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the program was started anew"))
    heap.start_with_heap()


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        ("train nano", [True]),
        ("--debug train nano", [True]),
        ("chat train", [False]),
        ("--version", [False]),
    ],
)
def test_training_has_many_threads(
    words: str, asks: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(words, monkeypatch) == asks


def test_a_completion_is_not_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LWM_COMPLETE", "complete_bash")
    assert asked("train", monkeypatch) == []


def asked(words: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For which heaps the program asks, given these words."""
    found: list[bool] = []
    monkeypatch.setattr(sys, "argv", ["lwm", *words.split()])
    monkeypatch.setattr(app, "main", lambda: 0)
    monkeypatch.setattr(
        __main__, "start_with_heap", lambda *, for_threads: found.append(for_threads)
    )
    frozen: list[bool] = []
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    assert __main__.run() == 0
    assert frozen
    return found
