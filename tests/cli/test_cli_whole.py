"""Every command with a real model behind it, tiny and untrained: the pieces fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lwm_cli import app, failures
from lwm_core import checkpoint, vqgan
from lwm_core.config import ModelConfig, VQConfig
from lwm_core.errors import OutputError
from lwm_core.media import read_media
from lwm_core.parameters import parameters
from lwm_core.tokenizer import Tokenizer
from lwm_core.weights import Held

IMAGE = VQConfig(16, 8, (1, 2, 2), 1, 8, codes=32, code_dim=8, groups=4)
MODEL = ModelConfig(
    text_vocab=512,
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    max_length=640,
    vision_vocab=34,
    vision_codes=32,
    frame_codes=16,
)


@pytest.fixture(scope="module")
def model(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny model with random weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    rng = np.random.default_rng(0)
    table = parameters(MODEL)
    image = {name: rng.normal(0, 0.1, shape) for name, shape in vqgan.shapes(IMAGE).items()}
    checkpoint.write_model(
        directory,
        MODEL,
        Held({name: rng.normal(0, 0.1, weight.shape) for name, weight in table.items()}),
        tokenizer=Tokenizer.load(reference / "tokenizer" / "tokenizer.model"),
        image=vqgan.from_tensors(IMAGE, image),
    )
    return str(directory)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a picture in it; LWM_HOME lies in it too."""
    monkeypatch.setenv("LWM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("red.png")
    Path("notes").write_text("Emma is clever.")
    return tmp_path


def test_chat_and_see(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["chat", "Hello.", "-m", model, "-n", "8", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert 1 <= answer["tokens"] <= 8
    assert app.main(["see", "red.png", "what?", "-m", model, "-n", "8"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\n")
    assert "tok/s · cpu" in said.err
    assert app.main(["chat", "More?", "-c", "-n", "8", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_the_same_seed_gives_the_same_answer(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["chat", "Hello.", "-m", model, "-n", "12", "-q", "-t", "1.5", "--top-k", "500"]
    answers = []
    for seed in ("1", "1", "2"):
        assert app.main([*ask, "--seed", seed]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_draw(model: str) -> None:
    assert app.main(["draw", "x", "-m", model, "-o", "x.png", "-N", "2", "--size", "32"]) == 0
    assert read_media("x-1.png").frames.shape == (1, 32, 32, 3)
    assert Path("x-1.png").read_bytes() != Path("x-2.png").read_bytes()


def test_film(model: str) -> None:
    film = ["film", "x", "-m", model, "--frames", "2", "--size", "32", "--seed", "5"]
    assert app.main([*film, "-o", "a.mp4"]) == 0
    assert app.main([*film, "-o", "b.mp4"]) == 0
    first, second = (read_media(name).frames for name in ("a.mp4", "b.mp4"))
    assert first.shape == (2, 32, 32, 3)
    assert np.array_equal(first, second)


def test_convert(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["convert", model, "half", "--dtype", "bfloat16", "-q"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("half\n", "")
    sizes = [(Path(place) / "model.safetensors").stat().st_size for place in (model, "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert app.main(["chat", "Hello.", "-m", "half", "-n", "4"]) == 0
    assert app.main(["convert", model, "half"]) == failures.WRONG_USAGE
    assert app.main(["convert", model, "half", "--force"]) == 0


def test_convert_says_what_it_would_do(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert app.main(["convert", model, "out", "--to", "lwm-jax", "--dry-run"]) == 0
    assert "format lwm-jax" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    assert app.main(["convert", model, "out", "--to", "lwm-jax", "--verify", "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "its logits are those of the source" in said.err
    params = (folder / "out/params").stat().st_size
    assert told["bytes"] < params < told["bytes"] + 4096
    assert app.main(["convert", model, "out", "--dry-run"]) == failures.WRONG_USAGE
    assert app.main(["convert", model, "new", "--like", "chat-1m"]) == failures.WRONG_USAGE
    assert app.main(["convert", "out", "back", "-q"]) == 0
    assert app.main(["chat", "Hello.", "-m", "back", "-n", "4"]) == 0


def test_needle(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    test = ["needle", "-m", model, "--ctx", "512", "--lengths", "1", "--depths", "2", "--json"]
    assert app.main([*test, "-o", "heat.png"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2
    assert Path("heat.png").is_file()


def test_a_context_is_read_once(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second question names neither model nor text, and gets the answer that the first got."""
    ask = ["chat", "Who?", "-n", "8", "-t", "0", "--context", "kept"]
    assert app.main([*ask, "-m", model, "-a", "notes", "--cache", "int8"]) == 0
    first = capsys.readouterr()
    assert "tokens are kept in kept" in first.err
    whole = Path("kept").read_bytes()
    assert app.main(ask) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.startswith(f"this context was read by {model}\n")
    assert "kept" not in second.err
    assert app.main([*ask, "-a", "notes"]) == 0
    assert app.main(["chat", "-c", "And?", "-n", "8"]) == 0
    capsys.readouterr()
    Path("notes").write_text("Emma is rich.")
    for other in (["-a", "notes"], ["-s", "Be brief."], ["--cache", "float32"], ["-c"]):
        assert app.main([*ask, *other]) == failures.WRONG_USAGE
        *notes, error = capsys.readouterr().err.splitlines()
        assert "kept" in error or "--context" in error
        assert [line.startswith("this context") for line in notes] == [True] * (other != ["-c"])
    assert Path("kept").read_bytes() == whole
    assert app.main([*ask, "-m", model, "-a", "notes", "--force"]) == 0
    assert Path("kept").read_bytes() != whole
    assert app.main(["chat", "Who?", "-a", "notes", "--context", "notes"]) == failures.FAILED
    assert Path("notes").read_text() == "Emma is rich."


def test_a_conversation_about_a_context_goes_on(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is given with -c goes with the next message; what was told at the begin stays."""
    begin = ["chat", "Who?", "-n", "8", "-m", model, "-a", "notes", "-s", "Be brief."]
    assert app.main([*begin, "--context", "kept"]) == 0
    Path("more").write_text("Emma is rich.")
    for more in ([], ["-a", "more"], ["-s", "Be brief."]):
        assert app.main(["chat", "And?", "-n", "8", "-c", *more]) == 0
    (saved,) = Path("home/conversations").iterdir()
    turns = json.loads(saved.read_text())["turns"]
    asked = [turn["text"] for turn in turns if turn["role"] == "user"]
    assert asked == ["Who?", "And?", "more:\nEmma is rich.\n\nAnd?", "And?"]
    capsys.readouterr()
    assert app.main(["chat", "And?", "-c", "-s", "Be long."]) == failures.WRONG_USAGE
    assert "leave out -s" in capsys.readouterr().err
    Path("kept").unlink()
    assert app.main(["chat", "And?", "-c"]) == failures.WRONG_USAGE
    assert "kept is not there" in capsys.readouterr().err


def test_a_full_disk_before_and_after_reading(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known before, nothing is read; found out afterwards, the answer comes all the same."""
    ask = ["chat", "Who?", "-n", "8", "-t", "0", "-m", model, "-a", "notes", "--context"]
    assert app.main([*ask, "kept"]) == 0
    answer = capsys.readouterr().out
    conversations = sorted(Path("home/conversations").iterdir())

    def refuse(*_: object) -> None:
        raise OutputError("can't write new: No space left on device")

    with monkeypatch.context() as full:
        full.setattr("lwm_core.context.free_bytes", lambda _: 99)
        full.setattr("lwm_core.generate.read_context", refuse)
        assert app.main([*ask, "new"]) == failures.FAILED
        assert "new needs" in capsys.readouterr().err
    monkeypatch.setattr("lwm_core.context.save_context", refuse)
    assert app.main([*ask, "new", "-q"]) == 0
    said = capsys.readouterr()
    assert said.out == answer
    assert said.err.endswith("kept: can't write new: No space left on device\n")
    assert sorted(Path("home/conversations").iterdir()) == conversations


def test_several_processes_keep_nothing(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lwm_cli.contexts.are_several", lambda: True)
    for command, option in [
        (["chat", "Who?", "-a", "notes", "--context", "kept"], "--context"),
        (["see", "red.png", "what?", "--context", "kept"], "--context"),
        (["chat", "And?", "-c"], "-c"),
    ]:
        assert app.main([*command, "-m", model]) == failures.WRONG_USAGE
        said = capsys.readouterr().err
        assert f"{option} is for a single process" in said
        assert said.count("\n") == 1


def test_a_picture_is_seen_once(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["see", "which colour is it?", "-n", "8", "--context", "kept"]
    assert app.main(["see", "red.png", *ask[1:], "-m", model]) == 0
    first = capsys.readouterr().out
    assert app.main(ask) == 0
    assert capsys.readouterr().out == first
    assert app.main(["see", "red.png", *ask[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == first.rstrip("\n")


def test_contexts_beyond_the_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["chat", "x " * 400, "-m", model, "-n", "4"]
    assert app.main([*ask, "--ctx", "1k"]) == 0
    warning, *_ = capsys.readouterr().err.splitlines()
    assert "was made for 640 tokens and a rotary base of 10000" in warning
    assert warning.endswith("models of 1,024 are trained with 1e+06")
    assert app.main([*ask, "--ctx", "300"]) == failures.WRONG_USAGE
    assert "the 300 of" in capsys.readouterr().err
    assert app.main([*ask, "--ctx", "1000m"]) == failures.FAILED
    said = capsys.readouterr().err
    assert "fits, and --quantize int8 or --cache int8 holds more" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["see", "red.png", "very " * 700, "-m", "MODEL"], "640"),
        (["chat", "x", "-m", "MODEL", "--context", "new"], "attach"),
        (["chat", "x", "-m", "MODEL", "--force"], "--context"),
        (["chat", "x", "-m", "MODEL", "-a", "notes", "--context", "no/new"], "can't be a file"),
        (["film", "x", "--frames", "99", "-o", "x.mp4", "-m", "MODEL"], "640"),
        (["chat", "x", "-m", "nanno"], "did you mean nano"),
        (["chat", "x", "-m", "text-1m"], "lwm download"),
        (["chat", "x", "-m", "MODEL", "--mesh", "tp=3"], "mesh"),
        (["chat", "x", "-m", "MODEL", "--attention", "none"], "attention"),
        (["chat", "x", "-m", "MODEL", "-t", "1", "--top-p", "0"], "top-p"),
    ],
)
def test_what_can_not_be(
    arguments: list[str], words: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [model if word == "MODEL" else word for word in arguments]
    assert app.main(arguments) == failures.WRONG_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not Path("x.mp4").exists()
