"""The completion scripts in `completions/` are what the program itself hands out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lwm_cli.completions import SCRIPTS, script, write_scripts

FOLDER = Path(__file__).parents[2] / "completions"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_up_to_date(shell: str) -> None:
    assert (FOLDER / SCRIPTS[shell]).read_text() == script(shell), (
        "run python -m lwm_cli.completions"
    )


def test_nothing_else_lies_there(tmp_path: Path) -> None:
    write_scripts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.iterdir()}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with `lwm` in it, to be put on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "lwm").write_text(f'#!/bin/sh\nexec {sys.executable} -m lwm_cli "$@"\n')
    (folder / "lwm").chmod(0o755)
    return folder


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_bash_completes_commands_and_models(program: Path) -> None:
    ask = f"""
    source {FOLDER / "lwm.bash"}
    COMP_WORDS=(lwm dr); COMP_CWORD=1; _lwm_completion lwm; echo "${{COMPREPLY[@]}}"
    COMP_WORDS=(lwm chat -m na); COMP_CWORD=3; _lwm_completion lwm; echo "${{COMPREPLY[@]}}"
    """
    answered = subprocess.run(
        ["bash", "--norc", "-c", ask],
        env=os.environ | {"PATH": f"{program}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout.split() == ["draw", "nano"]


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_installs_for_the_shell_it_runs_in(program: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["bash", "--norc", "-c", "lwm --install-completion; true"],
        env=os.environ | {"PATH": f"{program}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    installed = tmp_path / ".bash_completions" / "lwm.sh"
    assert installed.read_text().strip() == (FOLDER / "lwm.bash").read_text().strip()
    assert str(installed) in (tmp_path / ".bashrc").read_text()
