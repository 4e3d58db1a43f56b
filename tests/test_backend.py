"""A process that is prepared keeps its compiled programs for the next, and says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwm_core.backend import home

PROGRAM = """
from lwm_core.backend import prepare
prepare()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
print(sum(event.endswith("/cache_hits") for event in events))
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


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LWM_HOME", "~/models")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / "models"
    monkeypatch.delenv("LWM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert home() == tmp_path / "data/lwm"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert home() == tmp_path / ".local/share/lwm"
