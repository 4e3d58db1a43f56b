"""`lwm plan`: the table, the JSON, and clear words where something does not fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lwm_cli import app, failures
from lwm_cli.plan import _gib, _scaled, _time
from lwm_core import backend, weight_tree
from lwm_core.config import SIZES, ModelConfig
from lwm_core.hardware import cores

if TYPE_CHECKING:
    from lwm_core.formats.gguf_llama import GGUFModel

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LWM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LWM_MODEL", raising=False)


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert app.main(["plan", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


@pytest.mark.parametrize(
    ("options", "devices"),
    [((), cores()), (("--mesh", "sp=8"), None), (("--job", "prefill"), None)],
)
def test_this_machine_is_what_the_job_would_take(
    options: tuple[str, ...], devices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training takes each core of a CPU for a device, unless a mesh is asked for."""
    asked = []
    monkeypatch.setattr(backend, "prepare", lambda **how: asked.append(how))
    assert app.main(["plan", *options]) == 0
    assert asked == [{"cpu_devices": devices}]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["plan", "-m", "text-1m", "--on", "v4:4x4x4"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    title, hardware, blank, heading, *rows = said.out.splitlines()
    assert title == "text-1m (6.74 billion parameters): train on 1 × 1,048,576 tokens"
    assert (hardware, blank) == ("v4:4x4x4 (64 × 30.75 GiB, 16 hosts)", "")
    assert heading.split() == ["per", "device", "estimate"]
    values = {name.strip(): value for name, _, value in (row.rpartition("  ") for row in rows)}
    assert values["mesh"] == "dp=1,fsdp=1,tp=1,sp=64"
    assert values["parameters"] == "0.39 GiB"
    assert values["optimizer"] == "0.79 GiB"
    assert values["bound by"] == "compute"
    assert "KV cache" not in values
    assert values.keys() >= {
        "rematerialisation",
        "total",
        "step",
        "longest context",
        "smallest v6e",
    }


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "chat-1m", "--on", "8xh200", "--job", "decode", "--cache", "int8"]
    found = facts(capsys, *arguments, "--ctx", "512k", "--batch", "2")
    assert (found["context"], found["batch"], found["cache"]) == (524288, 2, "int8")
    assert sum(found["mesh"].values()) - 3 == found["devices"] == 8
    parts = dict(found["memory"])
    assert parts.pop("total") == sum(parts.values()) <= found["available"]
    assert found["seconds"] == max(found["times"].values())
    assert found["longest_context"] >= 524288
    assert set(found["smallest_slices"]) == {"v4", "v5e", "v5p", "v6e"}


def test_mesh_and_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["-m", "7b", "--on", "8xh100", "--batch", "8", "--ctx", "4k"]
    found = facts(capsys, *common, "--mesh", "1,-1,4,1")
    assert found["mesh"] == {"dp": 1, "fsdp": 2, "tp": 4, "sp": 1}
    slower = facts(capsys, *common, "--mesh", "1,-1,4,1", "--dtype", "float32")
    assert slower["seconds"] > found["seconds"]
    assert facts(capsys, *common, "--mesh", "8x24gb")["mesh"]["fsdp"] > 1


def test_models_by_size_card_and_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A directory needs no weights: `config.json` says all."""
    small = ModelConfig(500, 64, 128, 3, 8, 4, 8, 2048)
    (tmp_path / "config.json").write_text(json.dumps(small.to_json()))
    vision = weight_tree.count_parameters(SIZES["7b"]) + 2 * 8448 * 4096
    for name, numbers, context in [
        ("13b", weight_tree.count_parameters(SIZES["13b"]), 2048),
        ("LargeWorldModel/LWM-Chat-32K-Jax", vision, 32768),
        ("nano", 6_393_600, 4096),
        (str(tmp_path), weight_tree.count_parameters(small), 2048),
    ]:
        found = facts(capsys, "-m", name, "--on", "v5p-128", "--job", "decode")
        assert (found["parameters"], found["context"]) == (numbers, context)


def test_a_model_that_must_be_opened(capsys: pytest.CaptureFixture[str], smollm: GGUFModel) -> None:
    found = facts(capsys, "-m", "smollm2", "--on", "l4")
    assert found["parameters"] == weight_tree.count_parameters(smollm.config)
    assert found["context"] == smollm.config.max_length


def test_what_a_cpu_rounds_is_planned_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Though not where it learns."""

    def parameters(*words: str) -> int:
        return facts(capsys, "-m", "nano", "--on", "cpu", *words)["memory"]["parameters"]

    decode = ("--job", "decode")
    plain = parameters(*decode, "--dtype", "float32")
    assert parameters(*decode) == parameters(*decode, "--quantize", "int8") < 0.3 * plain
    assert parameters("--job", "train") == plain


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "--job", "prefill", "--batch", "8")
    assert (found["topology"], found["model"]) == ("8xcpu", "nano")  # as the tests see it


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["plan", "-m", "7b", "--on", "4x24gb", "--ctx", "1m"]) == failures.FAILED
    said = capsys.readouterr()
    needed = re.search(r"^total +([\d.]+) GiB$", said.out, re.MULTILINE)[1]
    note, error = said.err.splitlines()
    assert note == (
        "7b was made for 4,096 tokens and a rotary base of 10000; models of 1,048,576 are "
        "trained with 5e+07"
    )
    assert float(needed) > 4 * 22  # a 24 GB card has 22
    assert error.startswith(f"lwm: error: it does not fit: {needed} GiB are needed")
    assert error.endswith("this context fits on v4:2x2x4 or v5e:4x8 or v5p:2x2x2 or v6e:4x4")
    assert app.main(["plan", "-m", "7b", "--on", "4x24gb", "--ctx", "1m", "-q"]) == failures.FAILED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert app.main(["plan", "-m", "7b", "--on", "8xh100", "--ctx", "2m"]) == failures.FAILED
    assert "a context of 1,310,720 fits here" in capsys.readouterr().err
    assert app.main(["plan", "-m", "7b", "--on", "h100", "--ctx", "4096m"]) == failures.FAILED
    assert "fits on no slice of TPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "v7-8"], "no hardware is called 'v7-8'"),
        (["--on", "v5p-100"], "v5p slices have"),
        (["--on", "v4-8", "--mesh", "tp=5"], "= 5, but there are 4 devices; tp=4 would fit"),
        (["--on", "8xh100", "--mesh", "tp=8"], "tp = 8 does not divide the heads of the model: 4"),
        (["--on", "8xh100", "--mesh", "fsdp=8"], "does not divide the batch of 1; 1 would"),
        (["--on", "3x24gb", "--ctx", "4"], "no mesh of 3 devices"),
        (["--ctx", "8q"], "8q"),
        (["--batch", "0"], "--batch"),
        (["--job", "draw"], "--job"),
        (["-m", "nanno", "--on", "cpu"], "did you mean nano"),
        (["-m", "x" * 300, "--on", "cpu"], "x"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["plan", *arguments]) == failures.WRONG_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


def test_hardware_that_is_named_needs_no_jax() -> None:
    program = (
        "import sys; from lwm_cli.app import main; main(sys.argv[1:]); "
        "sys.exit('jax' in sys.modules)"
    )
    for model in ("text-1m", "nano"):
        words = ["plan", "-m", model, "--on", "v5p-128", "--job", "decode"]
        subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)


def test_figures_for_people() -> None:
    assert [_gib(0), _gib(3 << 19), _gib(5 << 29)] == ["0.00 MiB", "1.50 MiB", "2.50 GiB"]
    assert [_scaled(0, "B"), _scaled(999, "B"), _scaled(1000, "B")] == ["0 B", "999 B", "1 kB"]
    assert _scaled(1.2345e18, "FLOP") == "1.23 EFLOP"
    assert _scaled(4e21, "FLOP") == "4e+03 EFLOP"
    assert [_time(0.0123), _time(59.4), _time(7200)] == ["12.3 ms", "59.4 s", "120 min"]


def test_fewer_bits_take_less(capsys: pytest.CaptureFixture[str]) -> None:
    """7B in 8 bits is half of what it is in bfloat16; what is rounded does not learn."""
    arguments = ["-m", "7b", "--on", "1xa100-80gb", "--job", "decode"]
    whole, rounded = (facts(capsys, *arguments, *more) for more in ([], ["--quantize", "int8"]))
    assert whole["memory"]["parameters"] == 2 * rounded["memory"]["parameters"]
    assert rounded["times"]["memory"] < 0.6 * whole["times"]["memory"]
    assert app.main(["plan", "-m", "7b", "--quantize", "int8"]) == failures.WRONG_USAGE
    assert "quantized weights don't learn" in capsys.readouterr().err
