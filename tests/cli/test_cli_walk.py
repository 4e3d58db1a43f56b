"""A newcomer's walk: what README says of training on one's own clips, done as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
AS_USERS = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
"""One device, and programs that are optimized."""


def first_block(language: str) -> str:
    """The first of a language in the section about training."""
    section = README.read_text(encoding="utf-8").partition("## Train your own\n")[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.slow
def test_a_walk_with_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clips become tokens, nano learns from them, and then knows what it did not know."""
    monkeypatch.chdir(tmp_path)
    exec(first_block("python"), {})
    tokenize, train, see = (shlex.split(line)[1:] for line in first_block("sh").splitlines())

    def lwm(*words: str) -> list[str]:
        """The lines that a command answers."""
        return subprocess.run(
            [sys.executable, "-m", "lwm_cli", *words],
            env={**os.environ, **AS_USERS, "LWM_HOME": str(tmp_path / "home")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=600,
        ).stdout.splitlines()

    def answers(*model: str) -> list[str]:
        """To the question of README, about a clip of each kind."""
        clips = (f"clips/{number}.mp4" for number in (0, 1))
        return [line for clip in clips for line in lwm("see", clip, see[2], *model, "-q")]

    before = answers()
    assert [*lwm(*tokenize), *lwm(*train)] == ["data", "runs/finetune/model"]
    assert answers(*see[3:]) == ["It is a fence.", "It is a ladder."]
    assert not {"fence", "ladder"} & set(re.findall(r"\w+", " ".join(before)))
    for left in ("metrics.jsonl", "report.html", "model/config.json"):
        assert (tmp_path / "runs/finetune" / left).stat().st_size
