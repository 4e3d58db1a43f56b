"""Processes that don't mean the same run find it out at the start, and all stop together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from recipes import TEXT, changed
from test_distributed import together

from lwm_core import checkpoint, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.errors import ClusterError
from lwm_core.tokenizer import Tokenizer
from lwm_core.train import agreement
from lwm_core.train.checkpoints import last_step
from lwm_core.weights import Held

SHARED = {"the recipe's seed": "0", "the prose": "abc"}

TRAIN = """
import importlib.metadata, json, os, signal, sys
from pathlib import Path
from lwm_core import distributed
_, recipes, folder, address, number = sys.argv
recipes, folder = json.loads(recipes), Path(folder)
distributed.join(address, 2, int(number), wait=100)
from lwm_core.errors import ClusterError, TrainingInterrupted
from lwm_core.train import agreement, train

assert agreement.everyone({"number": number * 9}) == [{"number": "0" * 9}, {"number": "1" * 9}]
said = {}

def refused(name, recipe):
    try:
        next(train(recipe, output=folder / name, mesh="dp=2,sp=2"))
    except ClusterError as error:
        said[name] = str(error)

refused("seed", recipes["other seed"] if number == "1" else recipes["right"])
os.chdir(folder / number)
refused("data", recipes["data of its own"])
agreement.version = lambda name: number if name == "jax" else importlib.metadata.version(name)
refused("version", recipes["right"])
agreement.version = importlib.metadata.version
try:
    for event in train(recipes["right"], output=folder / "run", mesh="dp=2,sp=2"):
        if (event.kind, event.step, number) == ("step", 2, "1"):
            os.kill(os.getpid(), signal.SIGTERM)
except TrainingInterrupted as error:
    said["stopped"] = str(error)
(folder / f"said-{number}.json").write_text(json.dumps(said))
"""


def test_facts_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [SHARED, {**SHARED, "the prose": "abd"}, {**SHARED, "the recipe's seed": "1"}]
    monkeypatch.setattr(agreement, "everyone", lambda facts: [facts, *others])
    with pytest.raises(ClusterError, match="the prose is abd in process 2, but abc in the first"):
        agreement.check(SHARED)


def test_facts_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "everyone", lambda facts: [facts, {"the prose": "abc"}])
    with pytest.raises(ClusterError, match="seed is missing in process 1, but 0 in the first"):
        agreement.check(SHARED)


def test_alone_there_is_nobody_to_ask() -> None:
    assert agreement.everyone({"any": "thing"}) == [{"any": "thing"}]
    assert agreement.largest((3, 0)) == [3, 0]
    agreement.check(SHARED)


def test_facts_of_a_recipe() -> None:
    """One that is changed anywhere is another fact, under the name of its key."""
    before = agreement.facts_of(TEXT, "the recipe's")
    assert before["the recipe's save_every"] == "2"
    after = agreement.facts_of(changed(TEXT, "stages.1.mix.prose", 0.3), "the recipe's")
    assert {name for name in before if before[name] != after[name]} == {"the recipe's stages"}
    assert all(len(value) <= agreement.LONGEST for value in (*before.values(), *after.values()))


def test_versions_are_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("1")
    monkeypatch.setattr(agreement, "PACKAGE", tmp_path)
    before = agreement.versions()
    (tmp_path / "one.py").write_text("2")
    after = agreement.versions()
    assert {name for name in before if before[name] != after[name]} == {"the code of lwm"}
    assert before["the version of jax"] == jax.__version__


def test_two_processes_that_differ(tmp_path: Path, reference: Path) -> None:
    """In the seed, in the data, in a version; and one that is preempted."""
    config = ModelConfig(
        text_vocab=512, hidden=16, intermediate=24, layers=1, heads=2, kv_heads=2, head_dim=8,
        max_length=256,
    )  # fmt: skip
    fresh = weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0)))
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    checkpoint.write_model(tmp_path / "start", config, Held(fresh), tokenizer=tokenizer)
    for folder, words in ((".", "same"), ("0", "hill"), ("1", "lake")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "prose.txt").write_text(f"The house stood at the {words}. " * 60)
    right: dict[str, Any] = {
        **{key: value for key, value in TEXT.items() if key != "model"},
        "start_from": str(tmp_path / "start"),
        "prose": [str(tmp_path / "prose.txt")],
        "stages": [{**TEXT["stages"][0], "steps": 9}],
        "save_every": 9,
    }
    recipes = {
        "right": right,
        "other seed": {**right, "seed": 1},
        "data of its own": {**right, "prose": ["prose.txt"]},
    }
    both = together(tmp_path, "-c", TRAIN, json.dumps(recipes), str(tmp_path))
    for code, _, errors in both:
        assert code == 0, errors
    first, other = (json.loads((tmp_path / f"said-{number}.json").read_text()) for number in (0, 1))
    assert first == other
    different = "the processes don't mean the same run: "
    assert first["seed"].startswith(f"{different}the recipe's seed is 1 in process 1, but 0 in")
    assert first["data"].startswith(f"{different}the prose is ")
    assert first["version"].startswith(f"{different}the version of jax is 1 in process 1, but 0 in")
    assert first["stopped"] == "stopped by SIGTERM; step 2 is saved: go on with --resume"
    assert last_step(tmp_path / "run/checkpoints") == 2
    places = json.loads((tmp_path / "run/checkpoints/2/cursors/metadata").read_text())
    assert places == [{}, {}]  # of both processes: lessons need no other than their number
