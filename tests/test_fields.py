"""Records become the tokens, masks and rows that the original made of them, one by one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm_core.data.concatenated import Concatenated
from lwm_core.data.cursors import join_cursors
from lwm_core.data.entry import Encoder
from lwm_core.data.fields import FieldOptions, fields_encoder, text_encoder
from lwm_core.data.packing import Weighted
from lwm_core.data.records import open_records
from lwm_core.errors import ConfigError, FormatError, RecordError, UsageError
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import FrameLayout

LAYOUT = FrameLayout(offset=512, codes=8192, frame_codes=256)
SMALL = FrameLayout(offset=512, codes=8192, frame_codes=16)
DATA = Path(__file__).parent / "reference/data"

TEXT_CASES = json.loads((DATA / "text_cases.json").read_text())
VISION_CASES = json.loads((DATA / "vision_cases.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


def options(processor: dict[str, Any], **more: Any) -> tuple[FrameLayout, FieldOptions]:
    """What the original was told, as ours."""
    said = {**processor, **more}
    layout = FrameLayout(512, 8192, said.pop("n_tokens_per_frame", 256))
    return layout, FieldOptions(**said)


# One record


def test_texts_become_the_original_s_tokens(tokenizer: Tokenizer) -> None:
    records = open_records(DATA / "text.jsonl")
    by_text = {record["text"]: (index, record) for index, record in records.read(0) if record}
    cases = json.loads((DATA / "text_processor.json").read_text())
    assert len(cases) == 42
    for case in cases:
        encode = fields_encoder(tokenizer, *options(case["processor"]))
        (example,) = encode(*by_text[case["text"]])
        assert example == Weighted(case["tokens"], case["loss_mask"]), case["text"]


def test_clips_become_the_original_s_tokens(tokenizer: Tokenizer) -> None:
    """Vision ids lie behind the text ids here; what is one of them says the vision mask."""
    encode = fields_encoder(
        tokenizer, SMALL, FieldOptions(fields_from_example="fields", format="vision")
    )
    records = dict(open_records(DATA / "vision_small.jsonl").read(0))
    cases = json.loads((DATA / "vision_processor.json").read_text())
    assert len(cases) == 9
    for case in cases:
        record = records[case["line"]]
        assert record is not None
        (example,) = encode(case["line"], record)
        vision = np.array(case["vision_mask"])
        np.testing.assert_array_equal(example.ids, np.array(case["tokens"]) + 512 * vision)
        assert example.weights == case["loss_mask"]


def test_text_and_vision_can_be_joined(tokenizer: Tokenizer) -> None:
    """Beyond the original: `+` between a text and a clip; the prefix goes to the text."""
    record = {"q": "What is it?", "vision": list(range(32)), "a": "A cat."}
    said = FieldOptions(fields="[q+vision],a", prepend_text="Look: ", format="vision")
    (example,) = fields_encoder(tokenizer, SMALL, said)(0, record)
    codes = np.arange(32).reshape(2, 16)
    read = [tokenizer.bos_id, *tokenizer.encode("Look: What is it?")]
    read += [*tokenizer.encode("<vision>"), *SMALL.frames(codes), *tokenizer.encode("</vision>")]
    said_ids = [*tokenizer.encode("A cat."), tokenizer.eos_id]
    assert example.ids == read + said_ids
    assert example.weights == [0.0] * len(read) + [1.0] * len(said_ids)


def test_a_text_is_learned_between_its_marks(tokenizer: Tokenizer) -> None:
    record = {"text": "Read it.", "other": "x"}
    by_fields = fields_encoder(tokenizer, LAYOUT, FieldOptions(fields="text"))
    assert text_encoder(tokenizer)(0, record) == by_fields(0, record)
    assert text_encoder(tokenizer, "other")(0, record) != by_fields(0, record)


@pytest.mark.parametrize(
    ("fields", "record", "reason"),
    [
        ("[q],a", {"q": "Why?"}, "record 7: a is missing"),
        ("[a\nb]", {}, "record 7: a b is missing"),
        ("[q],a", {"q": "Why?", "a": None}, "record 7: a is missing"),
        ("q", {"q": 3}, "record 7: q is int, where text is needed"),
        ("vision", {"vision": "abc"}, "no flat list"),
        ("vision", {"vision": [1.5] * 16}, "no flat list"),
        ("vision", {"vision": [[1] * 16, [2] * 16]}, "no flat list"),
        ("vision", {"vision": [[1], [2, 3]]}, "no flat list"),
        ("vision", {"vision": [True] * 16}, "no flat list"),
        ("vision", {"vision": [1 << 80] * 16}, "no flat list"),
        ("vision", {"vision": [8192] * 16}, "other codes than the 8192"),
        ("vision", {"vision": [-1] * 16}, "other codes than the 8192"),
        ("vision", {"vision": [1] * 15}, "has 15 codes; a frame is 16"),
        ("vision", {"vision": []}, "no flat list|has 0 codes"),
    ],
)
def test_a_record_that_lacks_something_is_named(
    tokenizer: Tokenizer, fields: str, record: dict[str, Any], reason: str
) -> None:
    encode = fields_encoder(tokenizer, SMALL, FieldOptions(fields=fields, format="vision"))
    with pytest.raises(RecordError, match=reason):
        encode(7, record)


@pytest.mark.parametrize("said", [[], [3], ["text", 3], 5, {"a": 1}])
def test_a_notation_that_is_none_is_named(tokenizer: Tokenizer, said: Any) -> None:
    encode = fields_encoder(tokenizer, SMALL, FieldOptions(fields_from_example="how"))
    with pytest.raises(RecordError, match="record 7: how is"):
        encode(7, {"how": said, "text": "x"})


def test_a_choice_beyond_the_list_is_named(tokenizer: Tokenizer) -> None:
    encode = fields_encoder(tokenizer, SMALL, FieldOptions(fields_from_example="f", fields_index=1))
    with pytest.raises(RecordError, match="f has 1 choices"):
        encode(0, {"f": ["text"], "text": "x"})


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match="fields_from_example"):
        FieldOptions()
    with pytest.raises(ConfigError, match="fields_from_example"):
        FieldOptions(fields="a", fields_from_example="b")
    with pytest.raises(ConfigError, match="format"):
        FieldOptions(fields="a", format="sound")  # type: ignore[arg-type]


# Rows


def batches_of(
    case: dict[str, Any],
    encode: Encoder,
    file: str,
    pad: str,
    cursor: dict[str, Any] | None = None,
) -> Concatenated:
    told, node = case["dataset"], case.get("node", {"dp_node_size": 1, "dp_node_rank": 0})
    return Concatenated(
        open_records(DATA / file),
        encode,
        told["batch_size"] // node["dp_node_size"],
        told["seq_length"],
        bos_id=1,
        pad=pad,
        begin_with_bos=told.get("always_start_with_bos", False),
        shard=(node["dp_node_rank"], node["dp_node_size"]),
        cursor=cursor,
    )


def text_batches(
    tokenizer: Tokenizer, name: str, cursor: dict[str, Any] | None = None
) -> Concatenated:
    case = TEXT_CASES[name]
    encode = fields_encoder(tokenizer, *options(case["processor"]))
    pad = "text" if case["dataset"].get("pad") else "none"
    return batches_of(case, encode, "text.jsonl", pad, cursor)


def vision_batches(tokenizer: Tokenizer, name: str, cursor: dict | None = None) -> Concatenated:
    case = VISION_CASES[name]
    encode = fields_encoder(tokenizer, *options(case["processor"], format="vision"))
    pad = {"pad": "vision", "no_pad": "none"}[case["dataset"]["mode"]]
    return batches_of(case, encode, case["file"], pad, cursor)


def line_ends(file: str) -> list[int]:
    """Where each line of a file ends, in bytes."""
    lines = (DATA / file).read_bytes().splitlines(keepends=True)
    return np.cumsum([len(line) for line in lines]).tolist()


def assert_original(
    batches: Concatenated, case: dict[str, Any], name: str, *, behind: int = 0
) -> None:
    """All arrays of all batches, and the position in the file at each."""
    kind = "text" if case["kind"] == "JsonDataset" else "vision"
    ends = line_ends(case.get("file", "text.jsonl"))
    with np.load(DATA / f"{kind}_batches.npz") as stored:
        expected = {key: stored[key] for key in stored.files if key.startswith(f"{name}.")}
    assert len(expected) == 5 * len(case["metrics"])
    for number, metrics in enumerate(case["metrics"]):
        batch = next(batches)
        wanted = {
            key: expected[f"{name}.batch{number}.{key}"]
            for key in ("input_tokens", "target_tokens", "loss_masks")
        }
        for ids, side in ((batch.inputs, "input"), (batch.targets, "target")):
            vision = expected[f"{name}.batch{number}.{side}_vision_masks"]
            np.testing.assert_array_equal(ids, wanted[f"{side}_tokens"] + 512 * vision)
            np.testing.assert_array_equal(ids >= 512, vision)
        np.testing.assert_array_equal(batch.weights, wanted["loss_masks"])
        np.testing.assert_array_equal(batch.positions, np.indices(batch.inputs.shape)[1])
        assert (batch.segments == 1).all()
        for array in (batch.inputs, batch.targets, batch.positions, batch.segments):
            assert array.dtype == np.int32
        assert batch.weights.dtype == np.float32
        record = batches.counts["record"]
        assert record - behind == metrics["dataset_example_index"]
        assert ends[record] == metrics["dataset_file_loc"]
    assert metrics["dataset_example_index"] == case["state_after"]["index"]


@pytest.mark.parametrize("name", sorted({*TEXT_CASES} - {"nopad_resumed_after_batch1"}))
def test_rows_of_texts_are_the_original_s(tokenizer: Tokenizer, name: str) -> None:
    assert_original(text_batches(tokenizer, name), TEXT_CASES[name], name)


@pytest.mark.parametrize("name", VISION_CASES)
def test_rows_of_clips_are_the_original_s(tokenizer: Tokenizer, name: str) -> None:
    assert_original(vision_batches(tokenizer, name), VISION_CASES[name], name)


def test_rows_as_the_original_resumes(tokenizer: Tokenizer) -> None:
    """It drops what was left of the record, and then counts all records one too few."""
    name = "nopad_resumed_after_batch1"
    line = line_ends("text.jsonl").index(TEXT_CASES[name]["resumed_from"]["dataset_file_loc"]) + 1
    state = {"shard": 0, "of": 1, "epoch": 0, "record": line}
    batches = text_batches(tokenizer, name, {"shards": [state]})
    assert_original(batches, TEXT_CASES[name], name, behind=1)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((text_batches, name) for name in TEXT_CASES if name != "nopad_resumed_after_batch1"),
        *((vision_batches, name) for name in VISION_CASES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cursor_continues_exactly(tokenizer: Tokenizer, make: Any, name: str) -> None:
    """At every batch of more than two passes over the file."""
    batches = make(tokenizer, name)
    taken, cursors = [], [batches.cursor]
    while batches.counts["epoch"] < 2:
        taken.append(next(batches))
        cursors.append(json.loads(json.dumps(batches.cursor)))
    assert len(taken) > 5
    for number in range(0, len(taken) - 1, 3):
        for batch, again in zip(
            taken[number : number + 2], make(tokenizer, name, cursors[number]), strict=False
        ):
            for one, other in zip(batch, again, strict=True):
                np.testing.assert_array_equal(one, other)


def test_another_shape_goes_on_in_the_same_text(tokenizer: Tokenizer) -> None:
    """One run of tokens, whatever the rows that it is cut into."""
    whole = text_batches(tokenizer, "nopad_question_answer")
    run = np.concatenate([batch.inputs.reshape(-1) for batch in islice(whole, 8)])
    batches = text_batches(tokenizer, "nopad_question_answer")
    first = next(batches).inputs
    records, encode = batches._records, batches._encode
    second = next(Concatenated(records, encode, 1, 100, bos_id=1, cursor=batches.cursor)).inputs
    assert second.shape == (1, 100)
    np.testing.assert_array_equal(np.concatenate([first.reshape(-1), second[0]]), run[:164])


def test_bad_records_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "One."}\n{"te\n\n{"words": "x"}\n{"text": 4}\n{"text": "Two."}\n')
    batches = Concatenated(open_records(path), text_encoder(tokenizer), 1, 4, bos_id=1, pad="text")
    next(batches)
    assert batches.counts == {"malformed": 3, "epoch": 0, "record": 5}
    while batches.counts["epoch"] < 20:
        next(batches)
    assert batches.counts["malformed"] == 3


def lines(path: Path, *texts: str | None) -> Path:
    """A file of texts; None is a line that is damaged."""
    damaged = '{"te'
    entries = (damaged if text is None else json.dumps({"text": text}) for text in texts)
    path.write_text("\n".join(entries))
    return path


def test_too_many_bad_records_end_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As in a stream: ten may be bad, or a hundredth; also where it went on from a cursor."""
    encode = text_encoder(tokenizer)
    bad = [*["One."] * 30, *[None] * 10, *["Two."] * 30, None]
    records = open_records(lines(tmp_path / "bad.jsonl", *bad))
    batches = Concatenated(records, encode, 1, 4, bos_id=1)
    while batches.counts["record"] < 40:
        next(batches)
    again = Concatenated(records, encode, 1, 4, bos_id=1, cursor=batches.cursor)
    for one in (batches, again):
        with pytest.raises(FormatError, match=r"bad\.jsonl: 11 of 71 records are bad, more than 1"):
            all(one)
    records = open_records(lines(tmp_path / "most.jsonl", *bad[:-1]))
    batches = Concatenated(records, encode, 1, 4, bos_id=1)
    while batches.counts["epoch"] < 3:
        next(batches)
    assert batches.counts["malformed"] == 10
    with pytest.raises(FormatError, match=r"1 of 31 records are bad"):
        all(Concatenated(records, encode, 1, 4, bos_id=1, most_bad=0))


def numbers(path: Path, shard: tuple[int, int], cursor: Any = None) -> Concatenated:
    """Rows `[1, 4]` of records of one token each, which is the record's text."""

    def encode(index: int, record: Any) -> list[Weighted]:
        return [Weighted([int(record["text"])], [1.0])]

    return Concatenated(open_records(path), encode, 1, 4, bos_id=0, shard=shard, cursor=cursor)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_another_number_of_shards_loses_no_record(tmp_path: Path, after: int) -> None:
    """They begin where the shard was that had come least far; as many shards go on exactly."""
    path = lines(tmp_path / "numbers.jsonl", *map(str, range(48)))
    old = [numbers(path, (shard, 3)) for shard in range(3)]
    seen = {
        token
        for shard, one in enumerate(old)
        for batch in islice(one, 2 + shard)
        for token in batch.inputs[0].tolist()
    }
    assert seen == {*range(0, 24, 3), *range(1, 37, 3), *range(2, 48, 3)}
    joined = json.loads(json.dumps(join_cursors([one.cursor for one in old])))
    first = []
    for shard in range(after):
        new = numbers(path, (shard, after), joined)
        state = new.cursor["shards"][0]
        assert (state["epoch"], state["record"], state["used"]) == (0, 24, 0)
        while new.cursor["shards"][0]["epoch"] == 0:
            first.append(next(new).inputs[0].tolist())
    again = {token for row in first for token in row}
    assert seen | again == set(range(48))
    assert min(first)[0] == 24
    for shard, one in enumerate(old):
        same = numbers(path, (shard, 3), joined)
        assert same.cursor == one.cursor
        for _ in range(9):
            np.testing.assert_array_equal(next(same).inputs, next(one).inputs)
        assert same.cursor == one.cursor


def test_a_cursor_of_one_shard_is_not_enough_for_others(tmp_path: Path) -> None:
    path = lines(tmp_path / "numbers.jsonl", *map(str, range(8)))
    cursor = numbers(path, (0, 2)).cursor
    for shard in ((1, 2), (0, 1), (2, 3)):
        with pytest.raises(UsageError, match=r"cursor holds shards 0 of 2; join"):
            numbers(path, shard, cursor)


@pytest.mark.parametrize("content", ["", "\n\n", "nothing\n", '{"words": "x"}\n'])
def test_nothing_to_learn_from_ends(tokenizer: Tokenizer, tmp_path: Path, content: str) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(content)
    batches = Concatenated(open_records(path), text_encoder(tokenizer), 1, 4, bos_id=1)
    with pytest.raises(FormatError, match=r"none\.jsonl: there is nothing to learn from") as raised:
        next(batches)
    assert ("text is missing" in str(raised.value)) == ("words" in content)


def test_a_way_to_pad_that_is_none(tokenizer: Tokenizer) -> None:
    records = open_records(DATA / "text.jsonl")
    with pytest.raises(ConfigError, match="pad is 'left'; it may be none, text, vision"):
        Concatenated(records, text_encoder(tokenizer), 1, 4, bos_id=1, pad="left")  # type: ignore[arg-type]
