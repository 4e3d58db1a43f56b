"""The needle test: the original's contexts word by word, and our own rules around them."""

from __future__ import annotations

import fcntl
import json
import math
import random
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lwm_core import needle
from lwm_core.axes import MeshSizes
from lwm_core.config import ModelConfig
from lwm_core.costs import Work
from lwm_core.data.prose import read_prose
from lwm_core.errors import ContextTooLong, FormatError, OutputError, UsageError
from lwm_core.memory import free_memory
from lwm_core.needle import (
    Answers,
    Haystack,
    Identity,
    Needle,
    NeedleCase,
    NeedleConfig,
    NeedleResult,
    Pairs,
    Rate,
)
from lwm_core.needle.chart import LEFT, RIGHT, TOP, _spread
from lwm_core.needle.memory import MOST_ROWS, rows_that_fit
from lwm_core.needle.questions import MOST_NEEDLES
from lwm_core.tokenizer import Tokenizer
from lwm_core.wording import CITIES


class ByteTokenizer(Tokenizer):
    """Counts with the model's ids and inserts between bytes, as the reference data were made."""

    def split(self, text: str) -> list[bytes]:
        return [bytes([byte]) for byte in text.encode()]


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "needle/contexts.json").read_text())


@pytest.fixture(scope="module")
def haystack(reference: Path) -> list[str]:
    return read_prose(reference / "needle/haystack.jsonl")


def asked_of(
    config: NeedleConfig, tokenizer: Tokenizer, haystack: list[str]
) -> list[tuple[NeedleCase, str]]:
    """All questions of a test with what the model reads."""
    cases = needle.cases(config)
    text = Haystack(config, tokenizer, haystack, repeat=True)
    return list(zip(cases, text.prompts(cases), strict=True))


def original_cases(
    reference: Path, haystack: list[str], test: dict[str, Any], **counts: int
) -> list[tuple[NeedleCase, str]]:
    config = NeedleConfig(
        lengths=tuple(test["context_lengths"]),
        depths=tuple(test["depths"]),
        seed=test["random_seed"],
        reserve=test["final_context_length_buffer"],
        **counts,
    )
    tokenizer = ByteTokenizer.load(reference / "tokenizer/tokenizer.model")
    return asked_of(config, tokenizer, haystack)


def test_one_needle_equals_the_original(
    reference: Path, golden: dict[str, Any], haystack: list[str]
) -> None:
    test = golden["eval_needle"]
    cases = original_cases(reference, haystack, test)
    for (case, prompt), expected in zip(cases, test["contexts"], strict=True):
        hidden = Needle(expected["city"], expected["needle_rnd_number"], expected["depth_percent"])
        assert case.needles == case.asked == (hidden,)
        assert hidden.text == expected["needle"]
        assert (case.length, case.round) == (expected["context_length"], expected["seed"])
        assert prompt == expected["prompt"]


def test_several_needles_equal_the_original(
    reference: Path, golden: dict[str, Any], haystack: list[str]
) -> None:
    test = golden["eval_needle_multi"]
    cases = original_cases(reference, haystack, test, needles=3, asked=2, rounds=2)
    for (case, prompt), expected in zip(cases, test["contexts"], strict=True):
        drawn = {hidden.city: [hidden.number, hidden.depth] for hidden in case.needles}
        assert drawn == expected["needles_info"]
        assert [hidden.city for hidden in case.asked] == expected["cities_to_retrieve"]
        assert (case.length, case.round) == (expected["context_length"], expected["seed"])
        assert prompt == expected["prompt"]
        present = {hidden.city: hidden.text in prompt for hidden in case.needles}
        assert present == expected["needles_present"]


def test_one_asked_of_several_is_asked_in_its_own_words(tokenizer: Tokenizer) -> None:
    config = NeedleConfig(lengths=(900,), needles=3, asked=1)
    ((case, prompt),) = asked_of(config, tokenizer, read_prose())
    assert f" What is the special magic number for {case.asked[0].city}? Don't" in prompt


@pytest.mark.parametrize("counts", [{}, {"needles": 3, "asked": 3}])
@pytest.mark.parametrize("length", [400, 512, 1000, 3000])
def test_prompt_and_answer_fill_the_length(
    tokenizer: Tokenizer, length: int, counts: dict[str, int]
) -> None:
    config = NeedleConfig(lengths=(length,), rounds=3, **counts)
    for _, prompt in asked_of(config, tokenizer, read_prose()):
        used = len(tokenizer.encode(prompt)) + config.answer_tokens
        assert length - max(200, length // 10) <= used <= length


def test_needle_lies_at_its_depth(tokenizer: Tokenizer) -> None:
    config = NeedleConfig(lengths=(3000,), depths=(0, 20, 50, 80, 100), rounds=2)
    for case, prompt in asked_of(config, tokenizer, read_prose()):
        before, _, after = prompt.partition(case.needles[0].text)
        depth = 100 * len(before) / len(before + after)
        assert case.needles[0].depth - 12 < depth < case.needles[0].depth + 8


def test_rounds_take_different_stretches_and_a_short_haystack_starts_over(
    tokenizer: Tokenizer,
) -> None:
    config = NeedleConfig(lengths=(600,), depths=(100,), rounds=2)
    passages = ["The first. " * 200, "The second. " * 200, "The third. " * 200]
    for first, second in [(passages[:2], "second"), (passages[:1], "first")]:
        (_, one), (_, other) = asked_of(config, tokenizer, first)
        assert "The first. " * 5 in one
        assert f"The {second}. " * 5 in other
    ((_, prompt),) = asked_of(NeedleConfig((3000,), (100,)), tokenizer, ["A few words. "])
    assert prompt.count("A few words.") > 100


def test_haystack_that_may_not_repeat_fills_the_longest_length(tokenizer: Tokenizer) -> None:
    passages = ["A few words. "] * 300
    tokens = len(tokenizer.encode("".join(passages)))
    config = NeedleConfig(lengths=(500, tokens), rounds=3)
    assert not Haystack(config, tokenizer, passages).repeats  # between rounds it starts over
    longer = NeedleConfig(lengths=(500, tokens + 1))
    with pytest.raises(UsageError, match=f"has {tokens} tokens.* needs {tokens + 1}"):
        Haystack(longer, tokenizer, passages)
    assert Haystack(longer, tokenizer, passages, repeat=True).repeats


def test_same_seed_gives_the_same_cases(tokenizer: Tokenizer) -> None:
    def prompts(seed: int) -> list[str]:
        config = NeedleConfig(lengths=(600,), depths=(0, 50), seed=seed)
        return [prompt for _, prompt in asked_of(config, tokenizer, read_prose())]

    assert prompts(1) == prompts(1) != prompts(2)


def test_hide_goes_back_to_the_end_of_a_sentence() -> None:
    words = [b"One", b" two", b".", b" Three", b" four", b" five", b"."]
    assert needle.hide(words, [b"!"], 60, 99) == [*words[:3], b"!", *words[3:]]
    assert needle.hide(words, [b"!"], 20, 99) == [b"!", *words]
    assert needle.hide(words, [b"!"], 100, 5) == [*words[:4], b"!"]


def test_as_many_needles_as_can_be_are_soon_drawn() -> None:
    """All subsets of names are as likely; those of different cities are counted by a product."""
    ways = np.array([1.0])  # of choosing 0, 1, 2 ... names of different cities
    for listed in Counter(CITIES).values():
        ways = np.convolve(ways, [1, listed])
    assert math.comb(len(CITIES), MOST_NEEDLES) / ways[MOST_NEEDLES] < 50
    config = NeedleConfig((4000,), tuple(range(MOST_NEEDLES)), MOST_NEEDLES, MOST_NEEDLES)
    (case,) = needle.cases(config)
    assert len({hidden.city for hidden in case.asked}) == MOST_NEEDLES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lengths": ()}, "at least one length"),
        ({"lengths": (0, 5)}, "whole numbers"),
        ({"lengths": ("x",)}, "whole numbers"),
        ({"lengths": (500, 500)}, "fewer --lengths"),
        ({"depths": (0, 50, 50)}, "fewer --depths"),
        ({"depths": ()}, "at least one"),
        ({"rounds": 0}, "one round"),
        ({"depths": (0, 101)}, "percent"),
        ({"asked": 0}, "ask for 0 of 1"),
        ({"needles": 2, "asked": 3}, "ask for 3 of 2"),
        ({"needles": 6}, "6 needles need as many depths"),
        ({"needles": 80, "asked": 80, "depths": tuple(range(80))}, "80 needles.* 30 is the most"),
    ],
)
def test_what_cannot_be_tried_says_why(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        NeedleConfig(**{"lengths": (1000,)} | options)


def test_length_without_room_for_the_needle_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="90 tokens is too short for a needle"):
        asked_of(NeedleConfig(lengths=(90,)), tokenizer, read_prose())


def test_score_looks_for_the_number_anywhere() -> None:
    answer = "It is 1234567, and 7654321."
    assert needle.score(answer, ["7654321", "1111111", "1234567"]) == (True, False, True)


def test_evenly_spread_lengths_and_depths() -> None:
    assert needle.evenly(1000, 32000, 3) == (1000, 16500, 32000)
    assert needle.evenly(0, 100, 4) == (0, 33, 67, 100)
    assert needle.evenly(512, 2048, 1) == (2048,)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a model was asked that finds the number whenever it lies in the first half."""
    calls: list[dict[str, Any]] = []

    def complete(model: Any, prompts: Sequence[str], **options: Any) -> list[str]:
        calls.append({"prompts": prompts, **options})
        answers = []
        for prompt in prompts:
            _, _, numbers = prompt[: len(prompt) // 2].rpartition(" number is: ")
            answers.append(f"The number is {numbers[:7]}.")
        return answers

    monkeypatch.setattr("lwm_core.generate.complete", complete)
    return calls


@pytest.fixture
def model(tokenizer: Tokenizer) -> Any:
    """What the test needs to know of a model; a row of 500 tokens takes 1.004 MB of memory."""
    config = ModelConfig(
        text_vocab=512, hidden=100, intermediate=100, layers=5, heads=10, kv_heads=10, head_dim=10,
        max_length=1000,
    )  # fmt: skip
    devices = np.array([Device(10_100_000, 6_000_000)])
    return SimpleNamespace(
        name="tiny",
        tokenizer=tokenizer,
        config=config,
        context=1000,
        params={"norm": np.ones(4, np.float32), "layers": {}},
        how=SimpleNamespace(
            dtype=np.dtype(np.float16),
            mesh=SimpleNamespace(local_devices=devices, shape=MeshSizes()._asdict()),
        ),
        cache_dtype=np.dtype(np.float16),
        reading=lambda tokens: Work(config, "prefill", tokens),
    )


@dataclass(frozen=True)
class Device:
    """Memory in bytes."""

    limit: int
    used: int

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.limit, "bytes_in_use": self.used}


def test_run_asks_as_many_rows_of_one_length_as_half_the_memory_holds(
    model: Any, asked: list[dict[str, Any]]
) -> None:
    config = NeedleConfig(lengths=(500, 1000), rounds=1)
    results = list(needle.run(model, config))
    assert [len(call["prompts"]) for call in asked] == [2, 2, 1, 1, 1, 1, 1, 1]
    assert {call["max_tokens"] for call in asked} == {config.answer_tokens}
    assert {call["sampling"].temperature for call in asked} == {0.0}
    assert len(results) == config.count == 10
    assert [result.case for result in results] == needle.cases(config)
    found = [(result.case.needles[0].depth, result.found) for result in results]
    assert found.count((0, (True,))) == found.count((100, (False,))) == 2
    assert all(result.present == (True,) for result in results)


def test_run_asks_only_what_is_not_answered(model: Any, asked: list[dict[str, Any]]) -> None:
    config = NeedleConfig(lengths=(500, 1000), rounds=2)
    whole = list(needle.run(model, config))
    answered = [result.case for result in whole[::3]]
    asked.clear()
    rest = list(needle.run(model, config, answered=answered))
    assert rest == [result for result in whole if result.case not in answered]
    assert sum(len(call["prompts"]) for call in asked) == len(rest)


def test_rows_that_fit() -> None:
    assert rows_that_fit(800, 100) == 4
    assert rows_that_fit(799, 100) == 3
    assert rows_that_fit(10, 100) == rows_that_fit(-10, 100) == 1
    assert rows_that_fit(10**12, 100) == MOST_ROWS


def test_free_memory_is_that_of_the_fullest_device_or_of_the_machine() -> None:
    assert free_memory([Device(100, 30), Device(100, 60), Device(100, 10)]) == 40
    own = free_memory([SimpleNamespace(memory_stats=lambda: None)])
    assert 1 << 20 < own < 1 << 50


def test_run_refuses_lengths_over_the_context(model: Any) -> None:
    with pytest.raises(ContextTooLong, match="context of tiny: try lengths up to 1000"):
        next(needle.run(model, NeedleConfig(lengths=(500, 1001))))


def results_of(cells: dict[tuple[int, float], Sequence[bool]]) -> list[NeedleResult]:
    """Results with the given truth values at (length, depth)."""
    results = []
    for (length, depth), found in cells.items():
        for number, right in enumerate(found):
            hidden = Needle("Paris", "1234567", depth)
            case = NeedleCase(length, number, (hidden,), (hidden,))
            results.append(NeedleResult(case, "1234567" if right else "no", (right,), (True,)))
    return results


def test_tabulate_means_over_rounds_by_length_and_depth() -> None:
    grid = needle.tabulate(
        results_of({(2048, 50.0): [True, False], (1024, 0.0): [True], (2048, 0.0): [False]})
    )
    assert (grid.lengths, grid.depths) == ((1024, 2048), (0.0, 50.0))
    np.testing.assert_array_equal(grid.share, [[1, 0], [np.nan, 0.5]])


def test_tabulate_puts_each_of_several_needles_at_its_depth() -> None:
    shallow, deep = Needle("Paris", "1111111", 20), Needle("Oslo", "2222222", 80)
    case = NeedleCase(1024, 0, (shallow, deep), (deep, shallow))
    grid = needle.tabulate([NeedleResult(case, "2222222", (True, False), (True, True))])
    np.testing.assert_array_equal(grid.share, [[0], [1]])


def test_tabulate_has_room_for_what_is_still_to_come() -> None:
    config = NeedleConfig(lengths=(512, 1024), depths=(0, 100))
    grid = needle.tabulate(results_of({(1024, 0.0): [True, False]}), config)
    assert (grid.lengths, grid.depths) == ((512, 1024), (0, 100))
    assert grid.by_length == [None, Rate(1, 2)]
    assert grid.total == Rate(1, 2)


RATE = ("found", "asked", "interval")


def test_to_json_holds_everything_but_the_contexts() -> None:
    results = results_of({(1024, 0.0): [True, False]})
    data = json.loads(json.dumps(needle.to_json(results)))
    assert data["found"] == 0.5
    assert data["interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert data["lengths"] == [{"length": 1024} | {key: data[key] for key in RATE}]
    assert data["results"][0] == {
        "length": 1024,
        "round": 0,
        "needles": [{"city": "Paris", "number": "1234567", "depth": 0.0, "present": True}],
        "asked": ["Paris"],
        "answer": "1234567",
        "found": [True],
    }


def test_heat_map_is_lighter_where_more_was_found() -> None:
    shares = [[False] * 4, [True] + [False] * 3, [True] * 2 + [False] * 2, [True] * 4]
    for columns in (4, 40):
        cells = {(1024 * (i + 1), 50.0): shares[i * 4 // columns] for i in range(columns)}
        picture = needle.heat_map(results_of(cells))
        assert picture.dtype == np.uint8
        corners = LEFT + 4 + np.arange(4) * (picture.shape[1] - LEFT - RIGHT) // 4
        brightness = picture[TOP + 4, corners].mean(axis=-1)
        assert list(brightness) == sorted(set(brightness))


def test_heat_map_holds_any_grid() -> None:
    generator = random.Random(0)
    sizes = []
    for lengths, depths in [(1, 1), (4, 5), (20, 11), (200, 101)]:
        cells = {
            (34_953 * (i + 1), 100.0 * j / 101): [generator.random() < 0.8]
            for i in range(lengths)
            for j in range(depths)
        }
        sizes.append(needle.heat_map(results_of(cells), "a/model" * 99).shape)
    assert sizes == sorted(sizes)
    assert sizes[-1][0] < 1100
    assert sizes[-1][1] < 1800


@pytest.mark.parametrize(("count", "step", "last"), [(4, 72, 7), (30, 48, 30), (300, 4, 300)])
def test_labels_of_a_heat_map_do_not_touch(count: int, step: int, last: int) -> None:
    edges = [LEFT + step * i for i in range(count + 1)]
    places = list(_spread(edges, 70))
    assert places[0][0] == count - 1  # the greatest length has its label
    middles = [middle for _, middle in places]
    assert all(one - other >= 70 for one, other in pairwise(middles))
    assert len(places) >= count * step // (70 + step)


@pytest.mark.parametrize(
    ("length", "text"), [(1536, "1536"), (8192, "8k"), (1 << 20, "1m"), (1_000_000, "1000000")]
)
def test_short_length_is_what_the_command_line_takes(length: int, text: str) -> None:
    assert needle.short_length(length) == text


@pytest.mark.parametrize(
    ("found", "asked", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0000),
    ],
)
def test_wilson_interval(found: int, asked: int, low: float, high: float) -> None:
    assert Rate(found, asked).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("chance", [0.3, 0.95])
def test_wilson_interval_holds_the_truth_as_often_as_it_says(chance: float) -> None:
    """Summed exactly over all outcomes of 40 questions."""
    covered = sum(
        math.comb(40, found) * chance**found * (1 - chance) ** (40 - found)
        for found in range(41)
        if Rate(found, 40).interval[0] <= chance <= Rate(found, 40).interval[1]
    )
    assert 0.92 < covered < 0.98


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1),
        (3, 3, 1),
        (0, 5, 2 / 32),
        (1, 7, 2 * (1 + 8) / 256),
        (7, 1, 2 * (1 + 8) / 256),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    pairs = Pairs(both=9, only_first=first, only_second=second, neither=4)
    assert pairs.p_value == pytest.approx(p, rel=1e-12)
    assert pairs.difference == pytest.approx((second - first) / (13 + first + second))


CONFIG = NeedleConfig(lengths=(500, 1000), depths=(0, 100), rounds=2)


def identity_of(model: Any, config: NeedleConfig = CONFIG, text: str = "some text") -> Identity:
    return Identity.of(model, config, [text])


def answer(path: Path, identity: Identity, count: int | None = None, **options: bool) -> list:
    """Answer the first questions that are not yet answered; every third is not found."""
    with Answers(path, identity, **options) as answers:
        there = {result.case for result in answers.results}
        for number, case in enumerate(needle.cases(identity.config)[:count]):
            if case not in there:
                found = tuple(number % 3 > 0 for _ in case.asked)
                present = tuple(True for _ in case.needles)
                answers.add(NeedleResult(case, "is: \u2028 é\n", found, present))
        return answers.results


def test_answers_are_on_the_disk_at_once_and_come_back(model: Any, tmp_path: Path) -> None:
    path, identity = tmp_path / "a.jsonl", identity_of(model)
    first = answer(path, identity, 3)
    assert path.read_bytes().count(b"\n") == 1 + 3
    with Answers(path, identity) as answers:
        assert answers.results == first
        answers.add(NeedleResult(needle.cases(CONFIG)[3], "x", (True,), (True,)))
        assert path.read_bytes().count(b"\n") == 1 + 4  # before the file is closed
    assert [one.case for one in answer(path, identity)] == needle.cases(CONFIG)
    assert path.read_bytes().count(b"\n") == 1 + CONFIG.count


def test_several_needles_come_back(model: Any, tmp_path: Path) -> None:
    config = NeedleConfig(lengths=(900, 1000), needles=3, asked=2)
    identity = identity_of(model, config)
    results = answer(tmp_path / "a", identity)
    assert answer(tmp_path / "a", identity) == results
    assert [one.case for one in results] == needle.cases(config)


def test_a_write_that_was_cut_off_anywhere_is_mended(model: Any, tmp_path: Path) -> None:
    path, identity = tmp_path / "a.jsonl", identity_of(model)
    answer(path, identity)
    whole = path.read_bytes()
    for size in [*range(0, whole.index(b"\n") + 9, 7), *range(len(whole) - 300, len(whole), 13)]:
        path.write_bytes(whole[:size])
        with Answers(path, identity) as answers:
            assert len(answers.results) == max(0, whole[:size].count(b"\n") - 1)
        answer(path, identity)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "seed: 0 != 1"),
        ({"rounds": 3}, "rounds: 2 != 3"),
        ({"lengths": (500, 900)}, r"lengths: \[500, 1000\] != \[500, 900\]"),
        ({"needles": 2}, "needles: 1 != 2"),
    ],
)
def test_answers_of_another_test_are_left_alone(
    model: Any, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, identity_of(model))
    before = path.read_bytes()
    other = identity_of(model, replace(CONFIG, **change))
    with pytest.raises(UsageError, match=rf"another test \({reason}\).*--fresh"):
        answer(path, other)
    assert path.read_bytes() == before
    assert len(answer(path, other, fresh=True)) == other.config.count
    assert answer(path, other) == answer(path, other)


def test_answers_of_another_model_or_haystack_are_left_alone(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, identity_of(model), 2)
    changes = {
        "model's name": {"name": "large"},
        "model's cache": {"cache_dtype": np.dtype(np.int8)},
        "model's dtype": {"how": SimpleNamespace(dtype=np.dtype(np.float32))},
        "model's weights": {"params": {"norm": np.float32([1, 1, 1, 1.0001]), "layers": {}}},
    }
    for what, change in changes.items():
        with pytest.raises(UsageError, match=f"another test .{what}: "):
            answer(path, identity_of(SimpleNamespace(**vars(model) | change)))
    with pytest.raises(UsageError, match="haystack"):
        answer(path, identity_of(model, text="some other text"))
    assert len(answer(path, identity_of(model), 2)) == 2


def test_digest_names_the_test_and_the_weights(model: Any) -> None:
    trained = SimpleNamespace(
        **vars(model) | {"params": {"norm": np.full(4, 2, np.float32), "layers": {}}}
    )
    seeded = replace(CONFIG, seed=3)
    identities = [identity_of(model), identity_of(trained), identity_of(model, seeded)]
    assert len({identity.digest for identity in identities}) == 3
    assert identity_of(model).digest == identities[0].digest


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\n",
        b"{}\n",
        b"[3]\n",
        b"null\n",
        b"\0" * 99 + b"\n",
        b'{"file": "answers of lwm needle"}\n',
        b'{"file": "answers of lwm needle", "model": {}, "test": {"lengths": 3}}\n',
        b'{"file": "answers of lwm needle", "model": {}, "test": {"eval": "x"}}\n',
        b'{"file": "answers of lwm needle", "model": {}, "test": {"lengths": ["x"]}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_no_file_of_answers_is_left_alone(
    model: Any, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for fresh in (False, True):
        with pytest.raises(FormatError, match="holds no answers"):
            answer(path, identity_of(model), fresh=fresh)
    with pytest.raises(FormatError, match="holds no answers"):
        needle.compare(path, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"\n",
        lambda line: b"\0\0\0\n",
        lambda line: b"{}\n",
        lambda line: b"[[[\n",
        lambda line: line * 2,
        lambda line: line.replace(b"500", b"501"),
        lambda line: line.replace(b'"round": 0', b'"round": []'),
        lambda line: line.replace(b'"found": [false]', b'"found": []'),
        lambda line: line.replace(b'"found": [false]', b'"found": [0.5]'),
        lambda line: line.replace(b'"present": true', b'"present": "x"'),
        lambda line: b'{"needles": 1' + b"0" * 5000 + b"}\n",
    ],
)
def test_a_damaged_line_is_named(model: Any, tmp_path: Path, damage: Any) -> None:
    path, identity = tmp_path / "a.jsonl", identity_of(model)
    answer(path, identity)
    header, first, *rest = path.read_bytes().splitlines(keepends=True)
    assert damage(first) != first
    path.write_bytes(b"".join([header, damage(first), *rest]))
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"line [23]: .*--fresh"):
        answer(path, identity)
    with pytest.raises(FormatError, match=r"line [23]: "):
        needle.compare(path, path)
    assert path.read_bytes() == before
    assert len(answer(path, identity, fresh=True)) == CONFIG.count


def test_only_one_run_writes_a_file(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Answers(path, identity_of(model)), pytest.raises(UsageError, match="another run"):
        answer(path, identity_of(model), fresh=True)
    assert len(answer(path, identity_of(model))) == CONFIG.count


def test_a_file_system_without_locks_is_good_enough(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert len(answer(tmp_path / "a", identity_of(model))) == CONFIG.count


def test_what_the_system_refuses_is_said(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="is no file"):
            answer(place, identity_of(model))
        with pytest.raises(UsageError, match="is no file"):
            needle.compare(place, place)
    with pytest.raises(OutputError, match=r"can't keep answers in .*: No such file"):
        answer(tmp_path / "missing" / "a", identity_of(model))
    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OutputError, match="No space left"):
        answer(tmp_path / "a", identity_of(model))


def test_a_full_disk_is_said_and_what_was_kept_goes_on(model: Any, tmp_path: Path) -> None:
    path, identity = tmp_path / "a", identity_of(model)
    answer(path, identity)
    whole = path.read_bytes()
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"can't keep answers in .*: File too large"):
            answer(path, identity)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(answer(path, identity)) == CONFIG.count
    assert path.read_bytes() == whole


def test_compare_pairs_number_by_number(model: Any, tmp_path: Path) -> None:
    identities = {
        name: identity_of(SimpleNamespace(**vars(model) | {"name": name})) for name in ("a", "b")
    }
    truths = {"a": [1, 1, 1, 0, 0, 0, 1, 0], "b": [1, 0, 1, 1, 0, 1, 1, 1]}
    for name, identity in identities.items():
        with Answers(tmp_path / name, identity) as answers:
            for case, found in zip(needle.cases(CONFIG), truths[name], strict=True):
                answers.add(NeedleResult(case, "", (bool(found),), (True,)))
    compared = needle.compare(tmp_path / "a", tmp_path / "b")
    assert compared.names == ("a", "b")
    assert compared.by_length == {500: Pairs(2, 1, 1, 0), 1000: Pairs(1, 0, 2, 1)}
    assert compared.total == Pairs(3, 1, 3, 1)
    data = json.loads(json.dumps(compared.to_json()))
    assert (data["found"], data["difference"], data["found_by_one"]) == ([0.5, 0.75], 0.25, [1, 3])
    assert data["p"] == pytest.approx(2 * (1 + 4) / 16)


def test_compare_refuses_what_can_not_be_compared(model: Any, tmp_path: Path) -> None:
    whole, part, other = (tmp_path / name for name in ("whole", "part", "other"))
    answer(whole, identity_of(model))
    answer(part, identity_of(model), 3)
    answer(other, identity_of(model, replace(CONFIG, seed=9)))
    with pytest.raises(UsageError, match="part has 3 of 8 answers"):
        needle.compare(whole, part)
    part.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(UsageError, match="part has 7 of 8 answers"):
        needle.compare(part, whole)
    with pytest.raises(UsageError, match=r"two tests \(seed: 0 != 9\)"):
        needle.compare(whole, other)
    with pytest.raises(UsageError, match=r"can't open .*missing: No such file"):
        needle.compare(tmp_path / "missing", whole)
