"""The program as a whole: help, start-up, exit codes, one line for every failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lwm_cli import app, failures, options
from lwm_core import errors

COMMANDS = (
    "chat",
    "see",
    "draw",
    "film",
    "needle",
    "plan",
    "tokenize",
    "train",
    "convert",
    "download",
)
HEAVY = ("jax", "numpy", "rich", "PIL", "av", "flax", "huggingface_hub", "sentencepiece")
REPORT_HEAVY = f"""
import sys
from lwm_cli.app import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def heavy_modules(*arguments: str, **environment: str) -> str:
    """The heavy modules that are loaded when the program ends, as the text of a list."""
    ended = subprocess.run(
        [sys.executable, "-c", REPORT_HEAVY, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout
    return ended.stderr.splitlines()[-1]


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `lwm download x` raise `error`."""

    def download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("lwm_core.download.download", download)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert heavy_modules(*command, "--help") == "[]"


@pytest.mark.parametrize(
    "environment",
    [
        {"_LWM_COMPLETE": "complete_bash", "COMP_WORDS": "lwm see --", "COMP_CWORD": "2"},
        {"_LWM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "lwm d"},
        {
            "_LWM_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_ARGS": "lwm see --model text",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    ],
)
def test_completion_loads_nothing_heavy(environment: dict[str, str]) -> None:
    assert heavy_modules(**environment) == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for parameter in typer.main.get_command(app.app).commands[command].params:
        assert parameter.help
    assert app.main([command, "-h"]) == 0
    text = capsys.readouterr().out
    assert "..." not in text.split("Options:")[0].replace("}...", "")


def test_letters_mean_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    meaning: dict[str, str] = {}
    for command in COMMANDS:
        app.main([command, "--help"])
        for letter, name in re.findall(r"(?m)^  (-\w), (--[\w-]+)", capsys.readouterr().out):
            assert meaning.setdefault(letter, name) == name
    assert meaning["-m"] == "--model"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S.*[^.]\.$", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sea"], "did you mean 'see'?"),
        (["chat", "--quantize", "int3"], "'--quantize': 'int3' is not one of 'int8', 'int4'"),
        (["--unknown"], "--unknown"),
        (["draw", "x", "--frames", "3"], "--frames"),
        (["see"], "missing argument"),
        (["draw", "x", "-N", "0"], "-N"),
        (["needle", "--ctx", "8q"], "8q"),
        (["see", "x.png", "--start", "1:2:3:4"], "--start"),
        (["download"], "--list"),
        (["download", "nanno"], "did you mean nano"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == failures.WRONG_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"lwm: error: .+\n", said.err)
    assert words in said.err.lower() or words in said.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("no such thing"), 2, "lwm: error: no such thing"),
        (errors.ContextTooLong("too long"), 2, "lwm: error: too long"),
        (errors.MediaError("no\npicture"), 1, "lwm: error: no picture"),
        (FileNotFoundError(2, "No such file", "x"), 1, "lwm: error: x: No such file"),
        (MemoryError(), 1, "lwm: error: out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 45G of 15G"), 1, "lwm: error: out of memory"),
        (ValueError("broken\ninside"), 1, "lwm: error: unexpected ValueError: broken inside"),
        (KeyboardInterrupt(), 130, "lwm: interrupted"),
        (typer.Abort(), 130, "lwm: interrupted"),
    ],
)
def test_failures_are_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_with(monkeypatch, error)
    assert app.main(["download", "nano"]) == code
    said = capsys.readouterr().err
    *notes, last, rest = said.split("\n")
    assert (last.startswith(line), rest) == (True, "")
    assert not notes or code == 130  # what to do after an interruption


@pytest.mark.parametrize("arguments", [["--debug", "download", "x"], ["download", "x", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_with(monkeypatch, errors.DownloadError("gone"))
    assert app.main(arguments) == failures.FAILED
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("lwm: error: gone\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "lwm_cli", "see", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout
    assert writer.stderr
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait() == failures.FAILED


@pytest.mark.parametrize(
    ("text", "length"),
    [("2048", 2048), ("8k", 8192), ("512K", 524288), ("1m", 1048576), ("1.5k", 1536)],
)
def test_lengths(text: str, length: int) -> None:
    assert options.parse_length(text) == length


@pytest.mark.parametrize("text", ["", "k", "0", "-2k", "8g", "nan", "infk", "0.3k", "1e3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="length"):
        options.parse_length(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.5", 12.5), ("1:30", 90), ("1:02:03", 3723), ("0", 0)]
)
def test_times(text: str, seconds: float) -> None:
    assert options.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:", "-3", "1:2:3:4", "nan", "inf"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="time"):
        options.parse_time(text)


def test_models_complete_by_their_short_names() -> None:
    assert "text-1m" in options.complete_model("text")
    assert options.complete_model("NA") == ["nano"]
    assert options.complete_model("x") == []


def test_the_package_is_laid_out_as_commands() -> None:
    modules = {path.stem for path in Path(app.__file__).parent.glob("*.py")}
    assert set(COMMANDS) < modules
