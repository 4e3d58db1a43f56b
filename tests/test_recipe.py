"""Recipes: what they may say, and what may change while a run goes on."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from recipes import IMAGE, TEXT, changed

import lwm_core
from lwm_core.errors import ConfigError
from lwm_core.train import read_recipe
from lwm_core.train.recipe import changes, to_document

RECIPES = Path(lwm_core.__file__).parent / "recipes"


@pytest.mark.parametrize("recipe", [IMAGE, TEXT])
def test_the_recipe_of_a_run_can_be_read_again(recipe: dict[str, Any]) -> None:
    checked = read_recipe(recipe)
    assert read_recipe(json.loads(json.dumps(to_document(checked)))) == checked


def test_stages_and_habits_may_change_too() -> None:
    def refused(recipe: dict[str, Any]) -> list[str]:
        after = to_document(read_recipe(recipe))
        return [change.key for change in changes(before, after) if not change.is_adjustable]

    before = to_document(read_recipe(TEXT))
    for key, value in (("stages.1.length", 99), ("defaults.see.top_k", 3), ("save_every", 7)):
        assert refused(changed(TEXT, key, value)) == []
    other = {**TEXT, "start_from": "x"}
    del other["model"]
    assert "start_from" in refused(other)


@pytest.mark.parametrize(
    ("recipe", "key", "value", "words"),
    [
        (IMAGE, "kind", "music", "kind is 'music'"),
        (IMAGE, "kind", None, "kind is None"),
        (IMAGE, "stpes", 3, "stpes: no such key"),
        (IMAGE, "batch", None, "batch: missing"),
        (IMAGE, "batch", "many", "batch: int is needed"),
        (IMAGE, "batch", True, "batch: int is needed"),
        (IMAGE, "model", 3, "model: a table is needed"),
        (IMAGE, "model.codes", 1.5, "model.codes: int is needed"),
        (IMAGE, "model.channel_mult", [1, "x"], r"model.channel_mult\[1\]: int is needed"),
        (IMAGE, "optimizer.name", "sgd", "optimizer.name is 'sgd'"),
        (TEXT, "stages", [], "stages: at least one"),
        (TEXT, "stages.0.mix", {"see": "much"}, r"stages\[0\].mix.see: float is needed"),
        (TEXT, "stages.1.frames", [1], r"stages\[1\].frames: 2 values are needed"),
        (TEXT, "model", None, "model, start_from: give exactly one"),
        (TEXT, "start_from", "x", "model, start_from: give exactly one"),
        (IMAGE, "kind", ["image"], r"kind is \['image'\]"),
        (IMAGE, "steps", 0, "^steps is 0"),
        (IMAGE, "batch", 0, "^batch is 0"),
        (IMAGE, "save_every", 0, "^save_every is 0"),
        (IMAGE, "free_steps", -1, "^free_steps is -1"),
        (IMAGE, "drawing_steps", -1, "^drawing_steps is -1"),
        (IMAGE, "drawing_steps", 2, "^drawing_steps is 2; it must be below steps, 2"),
        (IMAGE, "seed", -1, "^seed is -1"),
        (IMAGE, "seed", 1 << 63, "^seed is 9"),
        (IMAGE, "model.resolution", 0, "^model.resolution is 0"),
        (IMAGE, "model.resolution", 15, "^model.resolution: 15 can't be halved 1 times"),
        (IMAGE, "model.channel_mult", [], "^model.channel_mult: a list"),
        (IMAGE, "model.channel_mult", [1, 0], "^model.channel_mult is 0"),
        (IMAGE, "model.res_blocks", -1, "^model.res_blocks is -1"),
        (IMAGE, "model.groups", 0, "^model.groups is 0"),
        (IMAGE, "model.groups", 3, "^model.groups: 3 do not share 4 channels"),
        (IMAGE, "optimizer.rate", 0, "^optimizer.rate is 0"),
        (IMAGE, "optimizer.rate", float("nan"), "^optimizer.rate is nan"),
        (IMAGE, "optimizer.end_rate", -1.0, "^optimizer.end_rate is -1"),
        (IMAGE, "optimizer.warmup", -1, "^optimizer.warmup is -1"),
        (IMAGE, "optimizer.weight_decay", float("inf"), "^optimizer.weight_decay is inf"),
        (IMAGE, "optimizer.b2", 1, "^optimizer.b2 is 1"),
        (IMAGE, "optimizer.clip", 0, "^optimizer.clip is 0"),
        (IMAGE, "optimizer.matrix_rate", -0.1, "^optimizer.matrix_rate is -0.1"),
        (TEXT, "stages.0.steps", -1, r"^stages\[0\].steps is -1"),
        (TEXT, "stages.0.length", 0, r"^stages\[0\].length is 0"),
        (TEXT, "stages.0.rows", 0, r"^stages\[0\].rows is 0"),
        (TEXT, "stages.0.frames", [5, 2], r"^stages\[0\].frames: 5 to 2"),
        (TEXT, "stages.0.frames", [0, 2], r"^stages\[0\].frames: 0 to 2"),
        (TEXT, "stages.1.characters", [0, 9], r"^stages\[1\].characters: 0 to 9"),
        (
            TEXT,
            "stages.1.mix.dialogue",
            float("nan"),
            r"^stages\[1\].mix.dialogue: nan is no",
        ),
        (TEXT, "stages.0.mix", {"sing": 1.0}, r"^stages\[0\].mix.sing: no such kind; known are"),
        (TEXT, "stages.0.mix", None, r"^stages\[0\].mix: missing"),
        (TEXT, "data", {"a": {"path": "x"}}, r"^stages\[0\].mix.dialogue: .*known are a$"),
        (TEXT, "data", {"a": {}}, "^data.a.path: missing"),
        (TEXT, "data", {"a": {"path": ""}}, "^data.a.path: name a file"),
        (TEXT, "data", {"a": {"path": "x", "format": "csv"}}, "^data.a.format is 'csv'"),
        (TEXT, "data", {"a": {"path": "x", "shuffle": 0}}, "^data.a.shuffle is 0"),
        (TEXT, "data", {"a": {"path": "x", "format": "vision"}}, "^data.a.fields, fields_from"),
        (TEXT, "data", {"a": {"path": "x", "max_frames": 3}}, "^data.a.max_frames: records of"),
        (TEXT, "data", {"a": {"path": "x", "fields": "a"}}, "^data.a.fields: records of"),
        (
            TEXT,
            "data",
            {"a": {"path": "x", "format": "chat", "key": "t"}},
            "^data.a.key: records of",
        ),
        (TEXT, "evaluate_every", 5, "^evaluate_every: name what to evaluate on"),
        (TEXT, "sample_every", 5, "^sample_every: give prompts"),
        (TEXT, "samples", [{"task": "sing", "text": "x"}], r"^samples\[0\].task is 'sing'"),
        (TEXT, "samples", [{"task": "see", "text": "x"}], r"^samples\[0\].media: the task 'see'"),
        (TEXT, "packing", "loose", "^packing is 'loose'"),
        (TEXT, "too_long", "weep", "^too_long is 'weep'"),
        (TEXT, "keep", 0, "^keep is 0"),
        (TEXT, "max_skipped", 0, "^max_skipped is 0"),
        (TEXT, "export_every", -1, "^export_every is -1"),
        (TEXT, "lora", {"rank": 4}, "^lora: only a model to start_from"),
        (TEXT, "lora", {"rank": 0}, "^lora.rank"),
        (TEXT, "lora", {"matrices": ["wz"]}, "^lora.matrices: 'wz'"),
        (TEXT, "extend", {"max_length": 9, "rope_theta": 1.0}, "^extend: only a model"),
        (TEXT, "extend", {"max_length": 9, "rope_theta": 0.0}, "^extend.rope_theta is 0"),
        (TEXT, "optimizer.accumulate", 0, "^optimizer.accumulate is 0"),
        (TEXT, "optimizer.learns", [], "^optimizer.learns"),
        (TEXT, "optimizer.average", "mode", "^optimizer.average is 'mode'"),
        (IMAGE, "optimizer.z_loss", 0.1, "^optimizer.z_loss: no such key"),
        (TEXT, "seed", -1, "^seed is -1"),
        (TEXT, "dtype", "flaot", "^dtype is 'flaot'"),
        (TEXT, "dtype", "float16", "^dtype is 'float16'"),
        (TEXT, "tokenizer", 0, "^tokenizer is 0"),
        (TEXT, "save_every", 0, "^save_every is 0"),
        (TEXT, "model.layers", 0, "^model.layers is 0"),
        (TEXT, "model.heads", 0, "^model.heads is 0"),
        (TEXT, "model.heads", 3, "^model.heads: 3 do not share 16"),
        (TEXT, "model.kv_heads", -1, "^model.kv_heads is -1"),
        (TEXT, "model.kv_heads", 3, "^model.kv_heads: 3 do not share 2 heads"),
        (TEXT, "stages.1.length", 257, r"^stages\[1\].length is 257, more than model.max_length"),
        (TEXT, "defaults.film.guidance", float("nan"), "^defaults.film: guidance must be at least"),
        (TEXT, "model.rope_theta", 0.0, "^model.rope_theta is 0"),
        (TEXT, "defaults.dream.top_k", 3, "^defaults.dream: no such task"),
        (TEXT, "defaults.draw.topk", 3, "^defaults.draw: topk: no such key"),
        (TEXT, "defaults.draw.top_k", "all", "^defaults.draw: top_k: int is needed"),
        (TEXT, "defaults.chat.temperature", -1.0, "^defaults.chat: temperature must be at least"),
    ],
)
def test_wrong_recipes(recipe: dict[str, Any], key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_recipe(changed(recipe, key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("extend", {"max_length": 512, "rope_theta": 1e6}, "^extend: an adapter leaves"),
        ("image_tokenizer", "nano", "^image_tokenizer: an adapter leaves"),
        ("defaults", {"chat": {"temperature": 0.5}}, "^defaults: an adapter leaves"),
        ("optimizer.learns", ["head"], "^optimizer.learns: an adapter leaves"),
        ("tokenizer", 100, "^tokenizer: a model to start_from has its own"),
        ("packing", "concatenated", "^packing: concatenated rows are of one source"),
    ],
)
def test_what_does_not_go_together(key: str, value: Any, words: str) -> None:
    recipe = changed(changed(TEXT, "model", None), "defaults", None)
    recipe = changed(changed(recipe, "start_from", "nano"), "lora.rank", 2)
    read_recipe(recipe)
    with pytest.raises(ConfigError, match=words):
        read_recipe(changed(recipe, key, value))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("too_long", "cut", "^too_long: concatenated rows hold everything"),
        ("data.a.weigh", "example", "^data.a.weigh: concatenated rows take all"),
        ("data.a.shuffle", 7, "^data.a.shuffle: concatenated rows take all"),
        ("evaluation.a", {"path": "y", "shuffle": 7}, "^evaluation.a.shuffle: concatenated rows"),
    ],
)
def test_concatenated_rows_take_all_as_it_comes(key: str, value: Any, words: str) -> None:
    stages = [{"steps": 1, "length": 8, "rows": 2}]
    recipe = {**TEXT, "packing": "concatenated", "data": {"a": {"path": "x"}}, "stages": stages}
    read_recipe(recipe)
    with pytest.raises(ConfigError, match=words):
        read_recipe(changed(recipe, key, value))


def test_stages_without_any_step() -> None:
    for index in (0, 1):
        passed_over = changed(TEXT, f"stages.{index}.steps", 0)
        assert read_recipe(passed_over).steps == 3 - 2 * index
    with pytest.raises(ConfigError, match=r"^stages: at least one"):
        read_recipe(changed(passed_over, "stages.0.steps", 0))


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.stem)
def test_recipes_of_the_package(path: Path) -> None:
    """Each can be meant; of the ladder, each step starts from what the one before made."""
    recipe = read_recipe(tomllib.loads(path.read_text()))
    start = getattr(recipe, "start_from", None) or ""
    if start.startswith("runs/"):
        before = tomllib.loads((RECIPES / f"{start.split('/')[1]}.toml").read_text())
        assert before["extend"]["rope_theta"] <= recipe.extend.rope_theta
        tokens = [stage["length"] * stage["rows"] for stage in before["stages"]]
        if path.stem != "vision-1k":
            assert before["extend"]["max_length"] < recipe.extend.max_length
            assert tokens == [stage.length * stage.rows for stage in recipe.stages]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("vision-*")), ids=lambda path: path.stem)
def test_a_block_of_clips_has_room(path: Path) -> None:
    """A code takes up to 40 bytes as Python holds it, so that a block stays below 1.3 GiB."""
    recipe = read_recipe(tomllib.loads(path.read_text()))
    for name, source in recipe.data.items():
        if "clips" in name:
            assert source.shuffle * recipe.stages[-1].length <= 1 << 25


def test_whole_numbers_serve_as_fractions() -> None:
    assert read_recipe(changed(IMAGE, "optimizer.rate", 1)).optimizer.rate == 1.0
