"""A process that is prepared keeps its compiled programs for the next, and says nothing."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lwm_core import backend
from lwm_core.backend import home

M_MMAP_THRESHOLD = -3  # malloc.h

PROGRAM = """
from lwm_core.backend import prepare
prepare()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
print(sum(event.endswith("/cache_hits") for event in events))
"""


BUFFERS = """
import ctypes
from lwm_core.backend import _keep_freed_memory

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.mallinfo2.restype = Counts
for prepare in (lambda: None, _keep_freed_memory):
    prepare()
    before = libc.mallinfo2().hblks
    libc.malloc(24 << 20)
    print(libc.mallinfo2().hblks - before)
"""


def hits(**environment: str) -> int:
    """How many programs a fresh process found compiled; anything else that it says fails."""
    ours = ("JAX_COMPILATION", "JAX_PERSISTENT", "TF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    return int(process.stdout)


def test_programs_are_kept(tmp_path: Path) -> None:
    assert hits(LWM_HOME=str(tmp_path)) == 0
    assert any((tmp_path / "xla").iterdir())
    assert hits(LWM_HOME=str(tmp_path)) > 0


def test_a_home_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert hits(LWM_HOME=str(tmp_path / "file")) == 0


def test_the_users_own_cache_goes_first(tmp_path: Path) -> None:
    hits(LWM_HOME=str(tmp_path / "home"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 counts them")
def test_large_buffers_are_no_longer_mapped_one_by_one() -> None:
    process = subprocess.run(
        [sys.executable, "-c", BUFFERS], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["1", "0"]


@pytest.mark.parametrize(("most", "threshold"), [(2**31, 2**30), (2**25, 2**25), (0, None)])
def test_memory_is_left_alone_where_no_threshold_is_taken(
    most: int, threshold: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is set fixes glibc's threshold at its least, so it must come first."""
    taken: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> bool:
        if parameter != M_MMAP_THRESHOLD or value <= most:
            taken[parameter] = value
        return taken.get(parameter) == value

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    backend._keep_freed_memory()
    if threshold is None:
        assert taken == {}
    else:
        assert next(iter(taken.items())) == (M_MMAP_THRESHOLD, threshold)
        assert len(taken) == 3


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LWM_HOME", "~/models")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / "models"
    monkeypatch.delenv("LWM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert home() == tmp_path / "data/lwm"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert home() == tmp_path / ".local/share/lwm"
