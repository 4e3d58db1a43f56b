"""Training on data of one's own: what the recipe names; stopped and resumed, adapted, refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from cases import slow
from originals import stacked, stored
from PIL import Image
from recipes import TEXT, changed

from lwm_core import checkpoint, lora, vqgan, weight_tree
from lwm_core.errors import ConfigError, FormatError, UsageError
from lwm_core.execution import Execution
from lwm_core.load import load_model
from lwm_core.mesh import make_mesh
from lwm_core.tokenize import tokenize
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import SYSTEM, FrameLayout
from lwm_core.train import agreement, shard, sources, train
from lwm_core.train.language_job import LanguageJob
from lwm_core.train.recipe import DataSource
from lwm_core.train.shard import Shard, shard_of
from lwm_core.types import Batch

UNTIMED = ("seconds", "tokens_per_second", "memory")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of all lengths, of which some lines are damaged, and chats."""
    rng = np.random.default_rng(0)
    words = ["sea", "house", "number", "lamp", "river", "stone", "window", "garden"]
    lines = [
        json.dumps({"text": " ".join(rng.choice(words, rng.integers(3, 40)))}) for _ in range(60)
    ]
    lines[7] = '{"text": "torn'
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    turn = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The sea."}
    chats = json.dumps({"messages": turn}) + "\n"
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress(20 * chats.encode()))
    return tmp_path


@pytest.fixture
def recipe(tiny_model: Path, data: Path) -> dict[str, Any]:
    """A model goes on with texts and chats, in rows that grow."""
    sources = {
        "texts": {"path": str(data / "texts.jsonl"), "shuffle": 16},
        "chats": {"path": str(data / "chats.jsonl.gz"), "format": "chat", "weigh": "example"},
    }
    stages = [
        {"steps": 3, "length": 128, "rows": 4, "mix": {"texts": 0.8, "chats": 0.2}},
        {"steps": 3, "length": 256, "rows": 2},
    ]
    return {
        "kind": "language",
        "start_from": str(tiny_model),
        "save_every": 2,
        "data": sources,
        "optimizer": {"rate": 1e-3, "warmup": 1},
        "stages": stages,
    }


def metrics(output: Path) -> list[dict[str, float]]:
    """All lines of a run, without what time and the machine decide."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{name: one for name, one in line.items() if name not in UNTIMED} for line in lines]


def test_resumed_equals_uninterrupted(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, through the change of stages; what is damaged is counted."""
    list(train(recipe, output=tmp_path / "whole"))
    for stop in (2, 4):
        events = train(recipe, output=tmp_path / "killed", resume=stop > 2)
        next(event for event in events if event.kind == "checkpoint" and event.step == stop)
        events.close()
    list(train(recipe, output=tmp_path / "killed", resume=True))
    whole, killed = metrics(tmp_path / "whole"), metrics(tmp_path / "killed")
    assert whole == killed
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    assert whole[-1]["malformed"] > 0
    assert min(line["packed"] for line in whole) > 0.9
    for name, weight in stored(tmp_path / "whole/model").items():
        assert np.array_equal(weight, stored(tmp_path / "killed/model")[name])


def test_what_is_left_out_is_told(recipe: dict[str, Any], tmp_path: Path) -> None:
    """And in which epoch each source is."""
    recipe |= {"too_long": "skip", "stages": [{"steps": 2, "length": 64, "rows": 4}]}
    list(train(recipe, output=tmp_path / "run"))
    line = metrics(tmp_path / "run")[-1]
    assert line["left_out"] == line["too_long"] > 0
    assert line["epoch/chats"] >= 1
    assert line["epoch/texts"] >= 0
    assert line["skipped"] == 0  # that is of steps


def test_evaluation_and_samples(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The same data give the same loss, so long as nothing is learned."""
    recipe |= {
        "evaluation": {"held_out": recipe["data"]["texts"]},
        "evaluate_every": 2,
        "evaluate_batches": 2,
        "samples": [{"task": "text", "text": "The sea", "max_tokens": 4}],
        "sample_every": 3,
        "optimizer": {"rate": 1e-12, "end_rate": 0.0, "warmup": 0},
    }
    kinds = [event.kind for event in train(recipe, output=tmp_path / "run")]
    assert [kinds.count(kind) for kind in ("evaluation", "sample")] == [3, 2]
    measured = [line for line in metrics(tmp_path / "run") if "evaluation_loss" in line]
    assert np.ptp([line["evaluation_loss"] for line in measured]) < 1e-5
    assert not [name for line in measured for name in line if "vision" in name]
    assert len(list((tmp_path / "run/samples").glob("*/samples.json"))) == 2


def test_metrics_are_of_what_all_processes_have(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vision too, where the rows of this one have none of it."""
    placed = LanguageJob._placed

    def with_others(job: LanguageJob, batch: Batch) -> Batch:
        seen = np.where(np.arange(batch.targets.shape[1]) < 4, 520, batch.targets)
        return placed(job, batch._replace(targets=seen))

    monkeypatch.setattr(LanguageJob, "_placed", with_others)
    recipe["stages"] = [{"steps": 1, "length": 128, "rows": 2}]
    list(train(recipe, output=tmp_path / "run"))
    (line,) = metrics(tmp_path / "run")
    assert min(line["text_loss"], line["vision_loss"]) > 0


def test_adapters(recipe: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    """The model stays as it is; with the adapter it is the one that was trained."""
    recipe |= {"lora": {"rank": 2, "matrices": ["wq", "w_down"]}}
    list(train(recipe, output=tmp_path / "run"))
    assert lora.is_adapter(tmp_path / "run/model")
    base = weight_tree.flatten(stacked(load_model(str(tiny_model))))
    made = weight_tree.flatten(stacked(load_model(str(tmp_path / "run/model"))))
    moved = {name for name, weight in base.items() if not np.array_equal(weight, made[name])}
    assert moved == {"layers.wq", "layers.w_down"}
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"rank": 2, "matrices": ["wq", "w_down"]}},
        slow({"optimizer": {"rate": 1e-3, "learns": ["layers.wq", "layers.w_down"]}}),
    ],
)
def test_checkpoints_hold_what_learns(
    recipe: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    """The rest is found again where it came from: a run resumed is one that was not stopped."""
    recipe |= settings
    list(train(recipe, output=tmp_path / "whole"))
    events = train(recipe, output=tmp_path / "killed")
    next(event for event in events if event.kind == "checkpoint")
    events.close()
    kept = (tmp_path / "killed/checkpoints/2/state/_METADATA").read_text()
    assert "'w_down" in kept
    assert "embed" not in kept
    list(train(recipe, output=tmp_path / "killed", resume=True))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    (whole, killed) = (load_model(str(tmp_path / name / "model")) for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, killed.params)


def test_concatenated_rows_resume_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    del recipe["data"]["chats"], recipe["data"]["texts"]["shuffle"], recipe["stages"][0]["mix"]
    recipe["packing"] = "concatenated"
    list(train(recipe, output=tmp_path / "whole"))
    events = train(recipe, output=tmp_path / "killed")
    next(event for event in events if event.kind == "checkpoint")
    events.close()
    list(train(recipe, output=tmp_path / "killed", resume=True))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert all(line["packed"] == 1 for line in metrics(tmp_path / "whole"))


def test_what_was_tokenized(recipe: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    """Codes of the model's own image tokenizer train it; those of another are refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    (tmp_path / "noise.txt").write_text("Just noise.")
    source = {"path": str(tmp_path / "codes"), "format": "vision", "fields_from": "fields"}
    recipe |= {"data": {"mine": source}, "stages": [{"steps": 1, "length": 256, "rows": 2}]}
    tokenize([tmp_path / "noise.png"], tmp_path / "codes", model=str(tiny_model))
    list(train(recipe, output=tmp_path / "run"))
    assert metrics(tmp_path / "run")[0]["text_loss"] > 0
    other = vqgan.create(checkpoint.read_vqgan(tiny_model).config, seed=7)
    with checkpoint.new_directory(tmp_path / "other", force=False) as folder:
        checkpoint.write_vqgan(folder / checkpoint.VQGAN, other)
    recipe["image_tokenizer"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="whose image tokenizer is another"):
        next(train(recipe, output=tmp_path / "refused"))


def test_a_run_goes_on_with_the_data_that_it_began_with(
    recipe: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Wherever they lie now."""
    events = train(recipe, output=tmp_path / "run")
    next(event for event in events if event.kind == "checkpoint")
    events.close()
    (data / "texts.jsonl").rename(tmp_path / "moved.jsonl")
    recipe = changed(recipe, "data.texts.path", str(tmp_path / "moved.jsonl"))
    with (tmp_path / "moved.jsonl").open("a") as lines:
        lines.write('{"text": "more"}\n')
    with pytest.raises(ConfigError, match=r"the data 'texts' is not what this run began with"):
        list(train(recipe, output=tmp_path / "run", resume=True))


def test_a_run_may_go_on_with_another_evaluation(
    recipe: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes must have the same one, whatever it is called."""
    check, asked = agreement.check, {}
    monkeypatch.setattr(agreement, "check", lambda facts: (asked.update(facts), check(facts)))
    held_out = {"path": str(data / "chats.jsonl.gz"), "format": "chat"}
    recipe |= {"evaluation": {"texts": held_out}, "evaluate_every": 6, "evaluate_batches": 1}
    events = train(recipe, output=tmp_path / "run")
    next(event for event in events if event.kind == "checkpoint")
    events.close()
    assert asked["the evaluation's data 'texts'"] == asked["the data 'chats'"]
    assert asked["the data 'texts'"] != asked["the data 'chats'"]
    recipe["evaluation"] = {"texts": recipe["data"]["texts"]}
    kinds = [event.kind for event in train(recipe, output=tmp_path / "run", resume=True)]
    assert kinds.count("evaluation") == 1


def test_a_vocabulary_of_the_data(recipe: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """A fresh model spells what it learns from, not the package's world; bad lines apart."""
    recipe |= {"model": TEXT["model"], "tokenizer": 420}
    del recipe["start_from"]
    recipe["stages"] = [{"steps": 1, "length": 128, "rows": 2}]
    list(train(recipe, output=tmp_path / "run"))
    tokenizer = Tokenizer.load(tmp_path / "run/tokenizer.model")
    words = {piece.text for piece in tokenizer.pieces}
    assert {" window", " garden"} <= words
    assert not {word for word in words if "circle" in word or "Anne" in word}
    list(train(recipe, output=tmp_path / "again"))
    assert (tmp_path / "again/tokenizer.model").read_bytes() == (
        tmp_path / "run/tokenizer.model"
    ).read_bytes()


@pytest.mark.parametrize(("room", "first"), [(27, 3), (10_000, 40)])
def test_a_sample_of_the_texts(
    room: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each source as much, from its beginning; of the format that it has."""
    (tmp_path / "texts.jsonl").write_text(
        "".join(f'{{"said": "number {n:02}", "text": "other"}}\n' for n in range(40))
    )
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\nbad\n")
    monkeypatch.setattr(sources, "CHARACTERS", 2 * room)
    named = {
        "texts": DataSource(str(tmp_path / "texts.jsonl"), key="said"),
        "chats": DataSource(str(tmp_path / "chats.jsonl"), format="chat"),
    }
    texts = [text for text in sources.spelled_in(named, FrameLayout(512, 0, 1)) if text]
    assert texts == [
        *(f"number {n:02}" for n in range(first)),
        f"{SYSTEM} USER: Who? ASSISTANT:",
        "Me.",
    ]


def test_rows_longer_than_the_model_knows(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["stages"][1]["length"] = 2048
    with pytest.raises(
        ConfigError, match=r"^stages\[1\]\.length is 2048, .* 1024 tokens; .*extend"
    ):
        next(train(recipe, output=tmp_path / "run"))


def test_data_that_can_not_be_read(recipe: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """Nothing is begun without it; a file that ends too soon ends the run."""
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: there are no records"):
        next(train(changed(recipe, "data.texts.path", "nowhere.jsonl"), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    torn = (data / "chats.jsonl.gz").read_bytes()[:-12]
    (data / "chats.jsonl.gz").write_bytes(torn)
    with pytest.raises(FormatError, match=r"chats\.jsonl\.gz"):
        list(train(recipe, output=tmp_path / "run"))


@pytest.mark.parametrize(
    ("mesh", "processes", "shards"),
    [
        ("dp=8", [0, 0, 0, 0, 1, 1, 1, 1], [Shard(0, 2), Shard(1, 2)]),
        ("dp=2,fsdp=2,sp=2", [0, 0, 1, 1, 2, 2, 3, 3], [Shard(n, 4) for n in range(4)]),
        ("dp=2,sp=4", [0, 0, 1, 1, 2, 2, 3, 3], [Shard(n // 2, 2) for n in range(4)]),
        ("sp=8", [0, 0, 0, 0, 1, 1, 1, 1], [Shard(), Shard()]),
        ("dp=4,sp=2", [0, 0, 0, 0, 0, 1, 1, 1], [Shard(), Shard()]),
    ],
)
def test_rows_of_a_process(
    mesh: str, processes: list[int], shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes those of its devices, unless they can't be told apart evenly: then all."""
    devices = make_mesh(mesh, jax.devices()).devices
    numbers = np.array(processes).reshape(devices.shape)
    owned = np.vectorize(lambda number: SimpleNamespace(process_index=number))(numbers)
    shape = dict(zip(("dp", "fsdp", "tp", "sp"), devices.shape, strict=True))
    how = SimpleNamespace(mesh=SimpleNamespace(devices=owned, shape=shape))
    for number, expected in enumerate(shards):
        monkeypatch.setattr(shard.jax, "process_index", lambda number=number: number)
        assert shard_of(how) == expected


def test_parts_of_all_processes_are_one_array() -> None:
    how = Execution(make_mesh("dp=4,sp=2", jax.devices()))
    whole = np.arange(8 * 6).reshape(8, 6)
    place = how.sharding(how.spec("rows", "sequence"))
    assert np.array_equal(Shard().put(whole, place), whole)


def test_one_bad_line_in_very_many(recipe: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """It is passed over; a file of which much is bad is refused, naming the last reason."""
    lines = [json.dumps({"text": "the sea " * 9})] * 20_000
    lines[9_999] = "\x00\xff no JSON"
    (data / "texts.jsonl").write_text("\n".join(lines))
    recipe["stages"] = [{"steps": 1, "length": 256, "rows": 2, "mix": {"texts": 1.0}}]
    list(train(recipe, output=tmp_path / "run"))
    (data / "texts.jsonl").write_text("\n".join(["no JSON"] * 20_000))
    with pytest.raises(FormatError, match="records are bad"):
        list(train(recipe, output=tmp_path / "bad"))
