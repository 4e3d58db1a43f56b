"""`lwm needle`: the table, the JSON and the heat map."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from player import Player

from lwm_cli import app, failures
from lwm_core.media import read_media
from lwm_core.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parent.parent / "reference" / "tokenizer" / "tokenizer.model"


@pytest.fixture
def arguments(player: Player, tmp_path: Path) -> list[str]:
    """A small test with a haystack of its own."""
    player.tokenizer = Tokenizer.load(TOKENIZER)
    (tmp_path / "hay.txt").write_text("The grass was green. The sky was blue.\n\n" * 99)
    return ["needle", "--ctx", "2k", "--lengths", "2", "--depths", "3", "--haystack", "hay.txt"]


def test_table(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(arguments) == 0
    heading, *rows, total = capsys.readouterr().out.splitlines()
    assert heading.split() == ["depth", "1024", "2048"]
    assert rows[0].split() == ["0", "%", "100%", "100%"]
    assert rows[-1].split() == ["100", "%", "0%", "0%"]
    assert total.endswith("of the needles found")


def test_json_and_heat_map(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*arguments, "--json", "-o", "heat.png"]) == 0
    said = capsys.readouterr().out
    result = json.loads(said)
    assert result["model"] == "nano"
    assert len(result["results"]) == 6
    assert min(read_media("heat.png").frames.shape[1:3]) > 100


def test_several_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*arguments, "--needles", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [len(result["found"]) for result in results] == [2, 2]


@pytest.mark.parametrize(
    "change",
    [
        ["--haystack", "missing"],
        ["-o", "heat.txt"],
        ["-o", "-"],
        ["--needles", "4"],
        ["--ctx", "0"],
    ],
)
def test_mistakes_before_the_model(change: list[str], arguments: list[str], player: Player) -> None:
    assert app.main([*arguments, *change]) == failures.WRONG_USAGE
    assert not player.loaded
