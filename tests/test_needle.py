"""The needle test: the original's contexts word by word, and our own rules around them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lwm_core import needle
from lwm_core.data.prose import read_prose
from lwm_core.errors import ContextTooLong, UsageError
from lwm_core.needle import Needle, NeedleCase, NeedleConfig, NeedleResult
from lwm_core.needle.questions import MOST_NEEDLES
from lwm_core.needle.report import CELL_WIDTH, MARGIN
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


def original_cases(
    reference: Path, haystack: list[str], test: dict[str, Any], **counts: int
) -> list[NeedleCase]:
    config = NeedleConfig(
        lengths=tuple(test["context_lengths"]),
        depths=tuple(test["depths"]),
        seed=test["random_seed"],
        reserve=test["final_context_length_buffer"],
        **counts,
    )
    tokenizer = ByteTokenizer.load(reference / "tokenizer/tokenizer.model")
    return list(needle.cases(config, tokenizer, haystack))


def test_one_needle_equals_the_original(
    reference: Path, golden: dict[str, Any], haystack: list[str]
) -> None:
    test = golden["eval_needle"]
    cases = original_cases(reference, haystack, test)
    for case, expected in zip(cases, test["contexts"], strict=True):
        hidden = Needle(expected["city"], expected["needle_rnd_number"], expected["depth_percent"])
        assert case.needles == case.asked == (hidden,)
        assert hidden.text == expected["needle"]
        assert (case.length, case.round) == (expected["context_length"], expected["seed"])
        assert case.prompt == expected["prompt"]


def test_several_needles_equal_the_original(
    reference: Path, golden: dict[str, Any], haystack: list[str]
) -> None:
    test = golden["eval_needle_multi"]
    cases = original_cases(reference, haystack, test, needles=3, asked=2, rounds=2)
    for case, expected in zip(cases, test["contexts"], strict=True):
        drawn = {hidden.city: [hidden.number, hidden.depth] for hidden in case.needles}
        assert drawn == expected["needles_info"]
        assert [hidden.city for hidden in case.asked] == expected["cities_to_retrieve"]
        assert (case.length, case.round) == (expected["context_length"], expected["seed"])
        assert case.prompt == expected["prompt"]
        present = {hidden.city: hidden.text in case.prompt for hidden in case.needles}
        assert present == expected["needles_present"]


def test_one_asked_of_several_is_asked_in_its_own_words(tokenizer: Tokenizer) -> None:
    config = NeedleConfig(lengths=(900,), needles=3, asked=1)
    (case,) = needle.cases(config, tokenizer, read_prose())
    assert f" What is the special magic number for {case.asked[0].city}? Don't" in case.prompt


@pytest.mark.parametrize("counts", [{}, {"needles": 3, "asked": 3}])
@pytest.mark.parametrize("length", [400, 512, 1000, 3000])
def test_prompt_and_answer_fill_the_length(
    tokenizer: Tokenizer, length: int, counts: dict[str, int]
) -> None:
    config = NeedleConfig(lengths=(length,), rounds=3, **counts)
    for case in needle.cases(config, tokenizer, read_prose()):
        used = len(tokenizer.encode(case.prompt)) + config.answer_tokens
        assert length - max(200, length // 10) <= used <= length


def test_needle_lies_at_its_depth(tokenizer: Tokenizer) -> None:
    config = NeedleConfig(lengths=(3000,), depths=(0, 20, 50, 80, 100), rounds=2)
    for case in needle.cases(config, tokenizer, read_prose()):
        before, _, after = case.prompt.partition(case.needles[0].text)
        depth = 100 * len(before) / len(before + after)
        assert case.needles[0].depth - 12 < depth < case.needles[0].depth + 8


def test_rounds_take_different_stretches_and_a_short_haystack_starts_over(
    tokenizer: Tokenizer,
) -> None:
    config = NeedleConfig(lengths=(600,), depths=(100,), rounds=2)
    passages = ["The first. " * 200, "The second. " * 200, "The third. " * 200]
    for first, second in [(passages[:2], "second"), (passages[:1], "first")]:
        cases = list(needle.cases(config, tokenizer, first))
        assert "The first. " * 5 in cases[0].prompt
        assert f"The {second}. " * 5 in cases[1].prompt
    (case,) = needle.cases(NeedleConfig((3000,), (100,)), tokenizer, ["A few words. "])
    assert case.prompt.count("A few words.") > 100


def test_same_seed_gives_the_same_cases(tokenizer: Tokenizer) -> None:
    def prompts(seed: int) -> list[str]:
        config = NeedleConfig(lengths=(600,), depths=(0, 50), seed=seed)
        return [case.prompt for case in needle.cases(config, tokenizer, read_prose())]

    assert prompts(1) == prompts(1) != prompts(2)


def test_hide_goes_back_to_the_end_of_a_sentence() -> None:
    words = [b"One", b" two", b".", b" Three", b" four", b" five", b"."]
    assert needle.hide(words, [b"!"], 60, 99) == [*words[:3], b"!", *words[3:]]
    assert needle.hide(words, [b"!"], 20, 99) == [b"!", *words]
    assert needle.hide(words, [b"!"], 100, 5) == [*words[:4], b"!"]


def test_as_many_needles_as_can_be_are_soon_drawn(tokenizer: Tokenizer) -> None:
    """All subsets of names are as likely; those of different cities are counted by a product."""
    ways = np.array([1.0])  # of choosing 0, 1, 2 ... names of different cities
    for listed in Counter(CITIES).values():
        ways = np.convolve(ways, [1, listed])
    assert math.comb(len(CITIES), MOST_NEEDLES) / ways[MOST_NEEDLES] < 50
    config = NeedleConfig((4000,), tuple(range(MOST_NEEDLES)), MOST_NEEDLES, MOST_NEEDLES)
    (case,) = needle.cases(config, tokenizer, read_prose())
    assert len({hidden.city for hidden in case.asked}) == MOST_NEEDLES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lengths": ()}, "at least one length"),
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
    with pytest.raises(UsageError, match="100 tokens is too short for a needle"):
        list(needle.cases(NeedleConfig(lengths=(100,)), tokenizer, read_prose()))


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
    """What the test needs to know of a model."""
    config = SimpleNamespace(max_length=1000)
    return SimpleNamespace(name="tiny", tokenizer=tokenizer, config=config)


def test_run_asks_rows_of_one_length_together(model: Any, asked: list[dict[str, Any]]) -> None:
    config = NeedleConfig(lengths=(500, 1000), rounds=1, batch_tokens=2000)
    results = list(needle.run(model, config))
    assert [len(call["prompts"]) for call in asked] == [4, 1, 2, 2, 1]
    assert {call["max_tokens"] for call in asked} == {config.answer_tokens}
    assert {call["sampling"].temperature for call in asked} == {0.0}
    assert len(results) == config.count == 10
    assert [result.case.length for result in results] == [500] * 5 + [1000] * 5
    found = [(result.case.needles[0].depth, result.found) for result in results]
    assert found.count((0, (True,))) == found.count((100, (False,))) == 2


def test_run_refuses_lengths_over_the_context(model: Any) -> None:
    with pytest.raises(ContextTooLong, match="context of tiny: try lengths up to 1000"):
        next(needle.run(model, NeedleConfig(lengths=(500, 1001))))


def results_of(cells: dict[tuple[int, float], Sequence[bool]]) -> list[NeedleResult]:
    """Results with the given truth values at (length, depth)."""
    results = []
    for (length, depth), found in cells.items():
        for number, right in enumerate(found):
            hidden = Needle("Paris", "1234567", depth)
            case = NeedleCase(length, number, (hidden,), (hidden,), f"... {hidden.text} ...")
            results.append(NeedleResult(case, "1234567" if right else "no", (right,)))
    return results


def test_tabulate_means_over_rounds_by_length_and_depth() -> None:
    grid = needle.tabulate(
        results_of({(2048, 50.0): [True, False], (1024, 0.0): [True], (2048, 0.0): [False]})
    )
    assert (grid.lengths, grid.depths) == ((1024, 2048), (0.0, 50.0))
    np.testing.assert_array_equal(grid.share, [[1, 0], [np.nan, 0.5]])


def test_tabulate_puts_each_of_several_needles_at_its_depth() -> None:
    shallow, deep = Needle("Paris", "1111111", 20), Needle("Oslo", "2222222", 80)
    case = NeedleCase(1024, 0, (shallow, deep), (deep, shallow), "...")
    grid = needle.tabulate([NeedleResult(case, "2222222", (True, False))])
    np.testing.assert_array_equal(grid.share, [[0], [1]])


def test_to_json_holds_everything_but_the_contexts() -> None:
    results = results_of({(1024, 0.0): [True, False]})
    data = json.loads(json.dumps(needle.to_json(results)))
    assert data["found"] == 0.5
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
    cells = {(1024 * (i + 1), 50.0): found for i, found in enumerate(shares)}
    picture = needle.heat_map(results_of(cells))
    assert picture.dtype == np.uint8
    corners = MARGIN + 4 + CELL_WIDTH * np.arange(4)
    brightness = picture[MARGIN + 4, corners].mean(axis=-1)
    assert list(brightness) == sorted(set(brightness))


def test_heat_map_holds_any_grid() -> None:
    generator = random.Random(0)
    sizes = []
    for lengths, depths in [(1, 1), (4, 5), (20, 11)]:
        cells = {
            (1000 * (i + 1), 100.0 * j / 11): [generator.random() < 0.8]
            for i in range(lengths)
            for j in range(depths)
        }
        sizes.append(needle.heat_map(results_of(cells)).shape)
    assert sizes == sorted(sizes)
