"""A newcomer's walk: what README says of training on one's own clips, done as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lwm_cli import app

README = Path(__file__).parents[2] / "README.md"


def first_block(language: str) -> str:
    """The first of a language in the section about training."""
    section = README.read_text(encoding="utf-8").partition("## Train your own\n")[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_a_walk_with_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten clips become tokens, nano learns from them, and then knows what it did not know."""
    monkeypatch.chdir(tmp_path)
    exec(first_block("python"), {})
    tokenize, train, see = (shlex.split(line)[1:] for line in first_block("sh").splitlines())

    def answers(*model: str) -> list[str]:
        """To the question of README, about a clip of each kind."""
        for number in (0, 1):
            assert app.main(["see", f"clips/{number}.mp4", see[2], *model, "-q"]) == 0
        return capsys.readouterr().out.splitlines()

    before = answers()
    assert app.main(tokenize) == 0
    assert app.main(train) == 0
    assert capsys.readouterr().out.split() == ["data", "runs/finetune/model"]
    after = answers(*see[3:])
    assert after == ["It is a fence.", "It is a ladder."]
    assert not {"fence", "ladder"} & set(re.findall(r"\w+", " ".join(before)))
    for left in ("metrics.jsonl", "report.html", "model/config.json"):
        assert (tmp_path / "runs/finetune" / left).stat().st_size
