"""Recipes: what they may say, and what may change while a run goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from recipes import IMAGE, TEXT, changed

from lwm_core.errors import ConfigError
from lwm_core.train import read_recipe
from lwm_core.train.recipe import first_change, to_document


@pytest.mark.parametrize("recipe", [IMAGE, TEXT])
def test_the_recipe_of_a_run_can_be_read_again(recipe: dict[str, Any]) -> None:
    checked = read_recipe(recipe)
    assert read_recipe(json.loads(json.dumps(to_document(checked)))) == checked


def test_stages_and_habits_may_change_too() -> None:
    before = to_document(read_recipe(TEXT))
    for key, value in (("stages.1.length", 99), ("defaults.see.top_k", 3), ("save_every", 7)):
        assert first_change(before, to_document(read_recipe(changed(TEXT, key, value)))) is None
    other = {**TEXT, "start_from": "x"}
    del other["model"]
    assert first_change(before, to_document(read_recipe(other))) == "start_from"


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


def test_stages_without_any_step() -> None:
    for index in (0, 1):
        passed_over = changed(TEXT, f"stages.{index}.steps", 0)
        assert read_recipe(passed_over).steps == 3 - 2 * index
    with pytest.raises(ConfigError, match=r"^stages: at least one"):
        read_recipe(changed(passed_over, "stages.0.steps", 0))


def test_whole_numbers_serve_as_fractions() -> None:
    assert read_recipe(changed(IMAGE, "optimizer.rate", 1)).optimizer.rate == 1.0
