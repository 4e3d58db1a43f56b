"""`lwm needle`: the table, the JSON, the heat map, and runs that are stopped and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from player import Player

from lwm_cli import app, failures
from lwm_core.axes import MeshSizes
from lwm_core.config import ModelConfig
from lwm_core.costs import Work
from lwm_core.media import read_media
from lwm_core.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parent.parent / "reference" / "tokenizer" / "tokenizer.model"


@pytest.fixture
def arguments(player: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small test with a haystack of its own; two questions are answered at once."""
    player.tokenizer = Tokenizer.load(TOKENIZER)
    (tmp_path / "hay.txt").write_text("The grass was green. The sky was blue.\n\n" * 199)

    def load_model(name: str, **settings: Any) -> SimpleNamespace:
        model = player.load_model(name, **settings)
        size = ModelConfig(
            text_vocab=512, hidden=16, intermediate=16, layers=2, heads=2, kv_heads=2, head_dim=8,
            max_length=2048,
        )  # fmt: skip
        devices = np.array([SimpleNamespace(memory_stats=lambda: None)])
        return SimpleNamespace(
            **vars(model) | {"config": size},
            params={"layers": {}},
            how=SimpleNamespace(
                dtype=np.dtype(np.float32),
                mesh=SimpleNamespace(local_devices=devices, shape=MeshSizes()._asdict()),
            ),
            cache_dtype=np.dtype(np.float32),
            reading=lambda tokens: Work(size, "prefill", tokens),
        )

    monkeypatch.setattr(sys.modules["lwm_core.load"], "load_model", load_model)
    monkeypatch.setattr("lwm_core.needle.memory.MOST_ROWS", 2)
    return ["needle", "--ctx", "2k", "--lengths", "2", "--depths", "3", "--haystack", "hay.txt"]


def test_table(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(arguments) == 0
    said = capsys.readouterr()
    heading, *rows, total = said.out.splitlines()
    assert " ".join(heading.split()) == "length 0 % 50 % 100 % all 95 % interval"
    assert [row.split()[0] for row in rows] == ["1k", "2k"]
    for row in rows:
        assert (row.split()[1], row.split()[3]) == ("100%", "0%")
    assert "of 6 numbers found (95 % interval" in total
    assert "6 questions" in said.err


def test_json_and_heat_map(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*arguments, "--json", "-o", "heat.png"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "nano"
    assert len(result["results"]) == result["asked"] == 6
    assert [one["asked"] for one in result["lengths"]] == [3, 3]
    assert Path(result["answers"]).read_bytes().count(b"\n") == 7
    assert min(read_media("heat.png").frames.shape[1:3]) > 100


def test_lengths_from_the_shortest_on(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*arguments, "--min-ctx", "512", "--lengths", "4", "--json"]) == 0
    lengths = [one["length"] for one in json.loads(capsys.readouterr().out)["lengths"]]
    assert lengths == [512, 1024, 1536, 2048]


@pytest.mark.parametrize(("retrieve", "asked"), [([], 2), (["--retrieve", "1"], 1)])
def test_several_at_once(
    retrieve: list[str], asked: int, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*arguments, "--needles", "2", *retrieve, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [len(result["needles"]) for result in results] == [2, 2]
    assert [len(result["found"]) for result in results] == [asked, asked]


def test_haystack_of_a_directory(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    Path("hay.txt").rename("texts/b.txt")
    Path("texts/a.jsonl").write_text(json.dumps({"text": "It begins here. "}) + "\n")
    assert app.main([*arguments, "--haystack", "texts"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--haystack", "missing"], "missing"),
        (["-o", "heat.txt"], "heat.txt"),
        (["-o", "-"], "standard output"),
        (["--results", "-"], "standard output"),
        (["--results", "no/answers.jsonl"], "no directory no"),
        (["--needles", "4"], "as many depths"),
        (["--retrieve", "2"], "2 of 1"),
        (["--min-ctx", "4k"], "--min-ctx"),
        (["--ctx", "0"], "length"),
        (["--depths", "200"], "--depths"),
        (["--ctx", "40", "--lengths", "99"], "--lengths"),
        (["--compare", "a.jsonl", "b.jsonl"], "a.jsonl: No such file"),
        (["--compare", "a.jsonl", "b.jsonl", "-o", "x.png"], "--compare"),
    ],
)
def test_mistakes_before_the_model(
    change: list[str],
    words: str,
    arguments: list[str],
    player: Player,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main([*arguments, *change]) == failures.WRONG_USAGE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert words in said.err
    assert not player.loaded


def test_context_has_a_default(arguments: list[str]) -> None:
    assert app.main(["needle", *arguments[3:]]) == 0


def test_short_haystack_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], player: Player
) -> None:
    Path("hay.txt").write_text("A line of text. " * 9)
    assert app.main(arguments) == failures.WRONG_USAGE
    tokens = len(player.tokenizer.encode("A line of text. " * 9 + "\n\n"))
    assert f"has {tokens} tokens, the longest context needs 2048" in capsys.readouterr().err


def test_the_novel_repeats_with_a_note(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments[:-2]) == 0
    assert "more than once" not in capsys.readouterr().err
    for module in ("lwm_core.data.prose", "lwm_core.needle.trial"):
        monkeypatch.setattr(f"{module}.read_prose", lambda *_: ["A very short novel. "])
    assert app.main(arguments[:-2]) == 0
    assert "more than once" in capsys.readouterr().err


@pytest.fixture
def calls(player: Player, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each call asked."""
    calls: list[int] = []
    generate = sys.modules["lwm_core.generate"]
    complete = generate.complete

    def counted(model: object, prompts: list[str], **options: Any) -> list[str]:
        calls.append(len(prompts))
        return complete(model, prompts, **options)

    monkeypatch.setattr(generate, "complete", counted)
    return calls


def stop_at(call: int, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C be pressed while this call answers."""
    generate = sys.modules["lwm_core.generate"]
    complete = generate.complete

    def interrupted(*asked: Any, **options: Any) -> list[str]:
        answers = complete(*asked, **options)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return answers

    monkeypatch.setattr(generate, "complete", interrupted)


def test_ctrl_c_loses_nothing(
    arguments: list[str],
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main([*arguments, "--results", "whole.jsonl", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["results"]
    assert calls == [2, 1, 2, 1]
    stop_at(6, calls, monkeypatch)
    test = [*arguments, "--results", "stopped.jsonl", "--json"]
    assert app.main(test) == failures.INTERRUPTED
    assert "2 of 6 answers are kept" in capsys.readouterr().err
    assert app.main(test) == 0
    said = capsys.readouterr()
    assert "2 of 6 answers are in stopped.jsonl (--fresh asks again)" in said.err
    assert json.loads(said.out)["results"] == whole
    assert calls == [2, 1, 2, 1, 2, 1, 1, 2, 1]
    assert Path("stopped.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_answers_are_kept_unless_they_are_given_up(
    arguments: list[str], calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    for more, asked in [([], 6), ([], 0), (["--fresh"], 6), (["--seed", "1"], 6), ([], 0)]:
        calls.clear()
        assert app.main([*arguments, *more, "--json"]) == 0
        assert sum(calls) == asked
        assert len(json.loads(capsys.readouterr().out)["results"]) == 6
    assert len(list(Path("home/needle").iterdir())) == 2


def test_answers_of_another_test_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--results", "answers.jsonl"]
    assert app.main(arguments) == 0
    before = Path("answers.jsonl").read_bytes()
    assert app.main([*arguments, "--rounds", "2"]) == failures.WRONG_USAGE
    assert "(rounds: 1 != 2)" in capsys.readouterr().err
    assert Path("answers.jsonl").read_bytes() == before


def test_home_that_can_not_hold_answers(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("home").write_text("a file")
    assert app.main(arguments) == failures.WRONG_USAGE
    assert "--results" in capsys.readouterr().err


def test_compare(arguments: list[str], player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*arguments, "--results", "one.jsonl"]) == 0
    assert app.main([*arguments, "--results", "two.jsonl", "-m", "other"]) == 0
    text = Path("two.jsonl").read_text()
    Path("two.jsonl").write_text(text.replace('"found": [false]', '"found": [true]'))
    missed = text.count('"found": [false]')
    player.loaded.clear()
    capsys.readouterr()
    compare = ["needle", "--compare", "one.jsonl", "two.jsonl"]
    assert app.main(compare) == 0
    heading, *rows, models = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["length", "numbers", "one", "two"]
    assert rows[-1].split()[:2] == ["all", "6"]
    assert rows[-1].split()[3] == "100%"
    assert models.startswith("nano and other")
    assert app.main([*compare, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["found_by_one"] == [0, missed]
    assert said["p"] == pytest.approx(min(1, 2 / 2**missed))
    assert not player.loaded


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A test of the embedded model in a process of its own: four calls, eight questions."""
    test = ["needle", "--ctx", "400", "--min-ctx", "250", "--depths", "2", "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "lwm_cli", *test],
        env=os.environ | {"LWM_HOME": str(folder / "home"), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """It is killed when the first answer is there, and once more in the middle of a write."""
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    said, _ = start(tmp_path, "--results", str(whole)).communicate(timeout=300)
    assert len(json.loads(said)["results"]) == 8
    process = start(tmp_path, "--results", str(killed))
    while process.poll() is None and (not killed.exists() or killed.read_text().count("\n") < 2):
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert 2 <= killed.read_text().count("\n") < 9
    with killed.open("a") as file:
        file.write('{"length": 250, "rou')
    again, words = start(tmp_path, "--results", str(killed)).communicate(timeout=300)
    assert f"answers are in {killed} (--fresh asks again)" in words
    assert killed.read_text() == whole.read_text()
    assert json.loads(again)["results"] == json.loads(said)["results"]
