"""From media to tokens: the right codes and words, whatever stops a run."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import json
import os
import re
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lwm_core import checkpoint, vqgan
from lwm_core.errors import FormatError, MediaError, OutputError, UsageError
from lwm_core.frame_batches import frames_at_once, to_unit
from lwm_core.media import read_media
from lwm_core.source import open_image
from lwm_core.tokenize import Manifest, Tokenized, flow, read_manifest, tokenize
from lwm_core.tokenize import folder as data_folder
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import FrameLayout, Message, answer_ids, chat_prompt, make_prompt
from lwm_core.types import Progress

Make = Callable[..., Tokenized]

LENGTHS = {"a.png": 1, "b.gif": 5, "c.png": 1, "deep/d.gif": 21, "deep/e.gif": 3, "f.png": 1}
"""The media of the tests and how many frames each has."""


def draw(path: Path, frames: int, seed: int) -> None:
    """A clip, or a picture, of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 6, 8, 3), np.uint8)
    first, *others = (Image.fromarray(one).resize((64, 48), 0) for one in noise)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=frames > 1, append_images=others, duration=500)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder of pictures and clips."""
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        draw(tmp_path / "media" / name, frames, seed)
    return tmp_path / "media"


@pytest.fixture(scope="module")
def opened() -> Callable:
    """How a model's image tokenizer is opened: for all tests once."""
    return cache(open_image)


@pytest.fixture
def make(
    media: Path,
    tmp_path: Path,
    tiny_model: Path,
    opened: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Make:
    """Tokenizes the media, with the tiny model, into `data`."""
    monkeypatch.setattr(flow, "open_image", opened)

    def make(*sources: Path, folder: str = "data", **options: Any) -> Tokenized:
        given = {"model": str(tiny_model), "frames": None, **options}
        return tokenize(sources or [media], tmp_path / folder, **given)

    return make


@pytest.fixture
def image(tiny_model: Path) -> vqgan.VQGAN:
    image = checkpoint.read_vqgan(tiny_model)
    assert image
    return image


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of a data set."""
    texts = [path.read_text() for path in sorted(folder.glob("data-*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def failures(folder: Path) -> dict[str, str]:
    """What could not be read, and why."""
    lines = (folder / "errors.jsonl").read_text().splitlines()
    return {failure["path"]: failure["reason"] for failure in map(json.loads, lines)}


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            table.writeheader()
            table.writerows(rows)
    return path


def original_ids(record: dict[str, Any], tokenizer: Tokenizer, layout: FrameLayout) -> list[int]:
    """What the original's vision-text processor makes of a record (reference/README, section 10),
    with vision codes as ids of one vocabulary."""
    ids = [tokenizer.bos_id]
    for field in (one.strip("[]") for one in record["fields"].split(",")):
        if "vision" not in field:
            ids += tokenizer.encode(record[field])
            continue
        codes = np.array(record[field]).reshape(-1, layout.frame_codes)
        ids += tokenizer.encode("<vision>")
        for number, frame in enumerate(codes, 1):
            mark = layout.end_of_vision if number == len(codes) else layout.end_of_frame
            ids += [*(frame + layout.offset).tolist(), mark]
        ids += tokenizer.encode("</vision>")
    return [*ids, tokenizer.eos_id]


# --- what is written --------------------------------------------------------------------------


def test_codes_are_those_of_each_medium_alone(make: Make, media: Path, image: vqgan.VQGAN) -> None:
    done = make()
    written = records(done.folder)
    assert [record["source"] for record in written] == sorted(LENGTHS)
    for record in written:
        pixels = read_media(media / record["source"], frames=None, size=64).frames
        codes = np.asarray(vqgan.encode(image, to_unit(pixels)))
        assert len(pixels) == LENGTHS[record["source"]]
        assert record["vision"] == codes.reshape(-1).tolist()
        assert record.keys() == {"source", "fingerprint", "vision", "fields"}
    assert len({tuple(record["vision"][:64]) for record in written}) == len(written)
    assert (done.media, done.frames, done.failed, done.before) == (6, sum(LENGTHS.values()), 0, 0)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"frames": 4}, [1, 4, 1, 4, 3, 1]),
        ({"fps": 1.0}, [1, 3, 1, 11, 2, 1]),  # every second frame of two a second
        ({"fps": 1.0, "frames": 4}, [1, 3, 1, 4, 2, 1]),
    ],
)
def test_how_many_frames(make: Make, options: dict[str, Any], lengths: list[int]) -> None:
    written = records(make(**options).folder)
    assert [len(record["vision"]) // 64 for record in written] == lengths


def test_a_question_is_told_as_see_asks_it(make: Make, media: Path, tiny_model: Path) -> None:
    rows = [
        {"file": "b.gif", "question": "Which way?", "answer": "To the left."},
        {"file": "a.png", "caption": "a red circle"},
        {"file": "b.gif", "caption": "a bird flies"},
    ]
    done = make(write_table(media / "t.csv", rows))
    tokenizer = Tokenizer.load(tiny_model / "tokenizer.model")
    layout = FrameLayout.of(checkpoint.read_config(tiny_model))
    asked = {
        ("b.gif", "To the left."): "Which way?",
        ("b.gif", "a bird flies"): "What happens?",
        ("a.png", "a red circle"): "What is in the picture?",
    }
    written = records(done.folder)
    assert [(record["source"], record["output"]) for record in written] == list(asked)
    for record in written:
        codes = np.array(record["vision"]).reshape(-1, 64)
        question = asked[record["source"], record["output"]]
        prompt = chat_prompt(tokenizer, layout, [Message("user", question, (codes,))])
        answer = [tokenizer.bos_id, *answer_ids(tokenizer, record["output"])]
        assert original_ids(record, tokenizer, layout) == prompt + answer
        assert record["fields"].endswith(",output")
    assert done.media == 2


def test_a_wish_is_told_as_draw_and_film_make_it(make: Make, media: Path, tiny_model: Path) -> None:
    (media / "a.txt").write_text(" a red\ncircle\n")
    (media / "b.txt").write_text("a bird flies")
    written = records(make(tasks=("draw", "see")).folder)
    tokenizer = Tokenizer.load(tiny_model / "tokenizer.model")
    layout = FrameLayout.of(checkpoint.read_config(tiny_model))
    drawn = {one["source"]: one for one in written if one["fields"] == "[instruction],vision"}
    wishes = {
        "a.png": ("an image of a red circle", make_prompt(tokenizer, "a red circle", "image")),
        "b.gif": ("a video of a bird flies", make_prompt(tokenizer, "a bird flies", "video")),
    }
    for name, (wish, prompt) in wishes.items():
        words = f"<s>You are a helpful assistant. USER: Generate {wish} ASSISTANT:"
        assert prompt == tokenizer.encode(f"{words} <vision>")
        codes = np.array(drawn[name]["vision"]).reshape(-1, 64)
        made = tokenizer.encode("<vision>") + layout.frames(codes) + tokenizer.encode("</vision>")
        expected = [*tokenizer.encode(words), *made, tokenizer.eos_id]
        assert original_ids(drawn[name], tokenizer, layout) == expected
    assert [one["source"] for one in written[:4]] == ["a.png", "a.png", "b.gif", "b.gif"]
    assert {one["fields"] for one in written[4:]} == {"vision"}


def test_tables_of_both_kinds_say_the_same(make: Make, media: Path) -> None:
    rows = [
        {"image": "deep/d.gif", "instruction": "What, then?", "output": 'Zwölf "Bälle".'},
        {"image": "a.png", "instruction": "", "output": ""},
    ]
    tables = [write_table(media / name, rows) for name in ("t.csv", "t.jsonl")]
    first, second = (records(make(table, folder=table.suffix[1:]).folder) for table in tables)
    assert first == second
    assert [record["fields"] for record in first] == [
        "[instruction],[vision],[call],output",
        "vision",
    ]
    assert "What, then?" in first[0]["instruction"]
    assert first[0]["output"] == 'Zwölf "Bälle".'


def test_what_is_bad_is_left_out_and_told(make: Make, media: Path) -> None:
    (media / "bad.mp4").write_bytes(b"no film")
    (media / ".hidden.png").write_bytes(b"")
    (media / "notes.md").write_text("no medium")
    (media / "empty.gif").touch()
    done = make()
    assert (done.media, done.failed) == (6, 2)
    told = failures(done.folder)
    assert told.keys() == {"bad.mp4", "empty.gif"}
    assert "no picture or clip" in told["bad.mp4"]


def test_rows_that_are_none_are_left_out_and_told(make: Make, media: Path) -> None:
    table = media / "t.jsonl"
    lines = ['{"file": "a.png"}', "", '{"file": ', "[1]", '{"caption": "x"}', '{"file": "no.png"}']
    table.write_text("\n".join([*lines, '{"file": "c.png", "caption": 3}', '{"file": "f.png"}']))
    done = make(table)
    assert [record["source"] for record in records(done.folder)] == ["a.png", "f.png"]
    told = failures(done.folder)
    assert list(told) == ["t.jsonl:3", "t.jsonl:4", "t.jsonl:5", "t.jsonl:7", "no.png"]
    assert "no file is named" in told["t.jsonl:5"]
    assert "caption is no text" in told["t.jsonl:7"]
    assert "No such file" in told["no.png"]


def test_a_text_with_a_comma_is_not_cut(make: Make, media: Path) -> None:
    table = media / "t.csv"
    table.write_text('file,caption\na.png,red, round\nb.gif,"red, round"\n')
    done = make(table)
    assert [record["output"] for record in records(done.folder)] == ["red, round"]
    assert "needs quotes" in failures(done.folder)["t.csv:2"]


def test_a_table_without_a_header_is_none(make: Make, media: Path) -> None:
    table = media / "t.csv"
    table.write_text("a.png,a red circle\nb.gif,a bird\n")
    with pytest.raises(FormatError, match=r"no column file or .*, but a\.png,a red circle"):
        make(table)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_columns_that_are_not_used_are_named(name: str, make: Make, media: Path) -> None:
    notes: list[str] = []
    rows = [{"file": "a.png", "capton": "a red circle", "text": "", "score": "7"}]
    done = make(write_table(media / name, rows), tasks=("see", "draw"), on_note=notes.append)
    assert len(notes) == 1
    assert f"{name}: not used: capton, score (columns are file," in notes[0]
    assert (done.examples, done.wordless) == ({"see": 0, "draw": 0}, 1)


def test_examples_are_counted_by_task(make: Make, media: Path) -> None:
    rows = [
        {"file": "a.png", "question": "How many?", "answer": "One.", "caption": "a circle"},
        {"file": "b.gif", "question": "Which way?", "answer": "Left.", "caption": ""},
        {"file": "c.png", "question": "", "answer": "", "caption": ""},
        {"file": "no.png", "question": "", "answer": "", "caption": "never seen"},
    ]
    table = write_table(media / "t.csv", rows)
    for tasks, counts, wordless in (
        (("see",), {"see": 3}, 1),
        (("draw",), {"draw": 1}, 2),
        (("see", "draw"), {"see": 3, "draw": 1}, 1),
    ):
        folder = "-".join(tasks)
        for done in (make(table, tasks=tasks, folder=folder) for _ in range(2)):
            assert (done.examples, done.wordless) == (counts, wordless)
            fields = [record["fields"] for record in records(done.folder)]
            assert fields.count("vision") == wordless
            assert fields.count("[instruction],vision") == counts.get("draw", 0)


# --- tables in folders, and patterns -------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["deep/d.gif", "./deep/d.gif", "{media}/deep/d.gif"])
def test_the_table_of_a_folder_is_read_with_it(spelling: str, make: Make, media: Path) -> None:
    """Once, even if it is also named; the other media are learned by themselves."""
    row = {"file": spelling.format(media=media), "caption": "a ball"}
    table = write_table(media / "captions.csv", [row])
    notes: list[str] = []
    done = make(on_note=notes.append)
    assert (done.media, done.examples, done.wordless) == (6, {"see": 1}, 5)
    told = {one["source"]: one.get("output") for one in records(done.folder)}
    assert told == {**dict.fromkeys(LENGTHS), "deep/d.gif": "a ball"}
    assert notes == []
    if not Path(row["file"]).is_absolute():
        assert make(media, table).reworded == 0


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"t.csv": "id,score\n1,2\n"}, "t.csv can't be read as a table: .* but id,score"),
        ({"t.csv": "file\nelsewhere.png\n"}, "t.csv: it names nothing .* lwm tokenize .*t.csv"),
        ({"t.csv": "file\na.png\n", "u.jsonl": ""}, "t.csv, .*u.jsonl: there are several"),
    ],
)
def test_tables_of_a_folder_that_are_not_read_are_told(
    tables: dict[str, str], words: str, make: Make, media: Path
) -> None:
    for name, content in tables.items():
        (media / name).write_text(content)
    notes: list[str] = []
    done = make(on_note=notes.append)
    assert (done.media, done.failed, done.wordless) == (6, 0, 6)
    assert len(notes) == 1
    assert re.match(f"not read: .*{words}", notes[0])


def test_of_several_tables_one_may_be_named(make: Make, media: Path) -> None:
    tables = [
        write_table(media / f"{word}.csv", [{"file": "a.png", "caption": word}])
        for word in ("one", "two")
    ]
    notes: list[str] = []
    done = make(media, tables[1], on_note=notes.append)
    assert [one.get("output") for one in records(done.folder)] == ["two", *5 * [None]]
    assert notes == []


def test_a_pattern_stands_for_what_is_called_so(make: Make, media: Path) -> None:
    """Where the shell has not looked at it, as in quotes."""
    assert [one["source"] for one in records(make(media / "[a-c]*").folder)] == [
        "a.png",
        "b.gif",
        "c.png",
    ]
    assert make(media / "**/*.gif", folder="deep").media == 3
    (media / "[a].png").write_bytes((media / "f.png").read_bytes())
    assert [one["source"] for one in records(make(media / "[a].png", folder="x").folder)] == [
        "[a].png"
    ]


def test_a_caption_beside_an_answer_is_learned_too(make: Make, media: Path) -> None:
    row = {"file": "a.png", "caption": "a red circle", "question": "How many?", "answer": "One."}
    made = records(make(write_table(media / "t.csv", [row]), tasks=("see", "draw")).folder)
    told = [(one["instruction"], one.get("output")) for one in made]
    assert ["What is in the picture?" in told[0][0], "How many?" in told[1][0]] == [True, True]
    assert [output for _, output in told] == ["a red circle", "One.", None]
    assert "a red circle" in told[2][0]
    assert [one.get("caption") for one in made] == ["a red circle", None, "a red circle"]


def test_a_question_without_an_answer_is_told(make: Make, media: Path) -> None:
    """It would else be learned as if nothing were said of the file."""
    rows = [
        {"file": "a.png", "question": "How many?", "answer": ""},
        {"file": "b.gif", "question": "Which way?", "answer": "Left.", "caption": ""},
        {"file": "b.gif", "question": "What?", "answer": "", "caption": "a bird flies"},
        {"file": "c.png", "question": "", "answer": "A circle.", "caption": ""},
    ]
    done = make(write_table(media / "t.csv", rows))
    made = records(done.folder)
    assert [(one["source"], one["output"]) for one in made] == [
        ("b.gif", "Left."),
        ("c.png", "A circle."),
    ]
    assert failures(done.folder) == {
        "t.csv:2": "a question without an answer",
        "t.csv:4": "a question without an answer",
    }


def test_progress_counts_what_is_done(make: Make, image: vqgan.VQGAN) -> None:
    seen: list[Progress] = []
    make(on_progress=seen.append)
    assert all(event.total == len(LENGTHS) and "frames/s" in event.unit for event in seen)
    done = [event.done for event in seen]
    assert len(done) == -(-sum(LENGTHS.values()) // frames_at_once(image.config))
    assert done == sorted(done)


# --- runs that are stopped --------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.65, 0.999, 1.0])
def test_a_killed_run_goes_on(
    share: float, make: Make, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the file there is, at the end it is as if nothing had happened."""
    rows = [{"file": name, "caption": word} for name in LENGTHS for word in ("one", "two")]
    table = write_table(media / "t.csv", rows)
    whole = make(table, folder="whole").folder
    shard = (whole / "data-00000.jsonl").read_bytes()
    broken = whole.with_name("data")
    broken.mkdir()
    (broken / "tokens.json").write_bytes((whole / "tokens.json").read_bytes())
    cut = shard[: int(share * len(shard))]
    (broken / ".data.part").write_bytes(cut)
    read: list[str] = []

    def reading(path: Path, **options: Any) -> Any:
        read.append(path.name)
        return read_media(path, **options)

    monkeypatch.setattr(flow, "read_media", reading)
    done = make(table)
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    # Of the last medium that stands there not all lines may, but its codes do.
    there = {
        json.loads(line)["source"] for line in cut.splitlines(keepends=True) if line[-1:] == b"\n"
    }
    assert (done.before, done.damaged) == (len(there), 0)
    assert len(read) == len(LENGTHS) - done.before


def test_shards_are_limited_and_what_they_hold_is_not_done_again(
    make: Make, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_folder, "SHARD_BYTES", 1500)
    first = make()
    names = sorted(path.name for path in first.folder.iterdir())
    assert first.shards > 2
    assert names == [*(f"data-{number:05}.jsonl" for number in range(first.shards)), "tokens.json"]
    sizes = [len((first.folder / name).read_bytes().splitlines()) for name in names[:-1]]
    small = (path for path in first.folder.glob("*.jsonl") if path.stat().st_size > 1500)
    assert all(len(path.read_bytes().splitlines()) == 1 for path in small)
    assert sum(sizes) == len(LENGTHS)
    draw(media / "new.png", 1, 99)
    second = make()
    assert (second.media, second.before, second.shards) == (1, 6, first.shards + 1)
    assert records(second.folder)[-1]["source"] == "new.png"
    assert (make().media, make().shards) == (0, second.shards)


def test_the_list_of_failures_is_that_of_the_last_run(make: Make, media: Path) -> None:
    (media / "late.gif").write_bytes(b"not yet")
    assert make().failed == 1
    draw(media / "late.gif", 2, 7)
    done = make()
    assert (done.media, done.failed) == (1, 0)
    assert not (done.folder / "errors.jsonl").exists()


# --- what has changed since -------------------------------------------------------------------


def test_other_words_are_learned_with_the_codes_that_are_there(make: Make, media: Path) -> None:
    rows = [{"file": name, "caption": f"the old {name}"} for name in LENGTHS]
    table = write_table(media / "t.csv", rows)
    tasks = ("see", "draw")
    make(table, tasks=tasks)
    rows[1]["caption"] = "the new one"
    rows.append({"file": "c.png", "caption": "one more"})
    write_table(table, rows)
    done = make(table, tasks=tasks)
    assert (done.media, done.frames, done.before, done.reworded) == (0, 0, 6, 2)
    assert records(done.folder) == records(make(table, tasks=tasks, folder="anew").folder)
    captions = [one["caption"] for one in records(done.folder) if one["source"] == "b.gif"]
    assert captions == ["the new one", "the new one"]
    shard = done.folder / "data-00000.jsonl"
    before = shard.stat()
    assert make(table, tasks=tasks).reworded == 0
    assert shard.stat() == before  # the same file, written once


def test_words_may_change_where_the_file_is_gone(make: Make, media: Path) -> None:
    """Clips take more room than their codes."""
    table = write_table(media / "t.csv", [{"file": "a.png", "caption": "old"}])
    make(table)
    (media / "a.png").unlink()
    write_table(table, [{"file": "a.png", "caption": "new"}])
    done = make(table)
    assert (done.before, done.reworded, done.failed) == (1, 1, 0)
    assert [record["output"] for record in records(done.folder)] == ["new"]


def test_another_file_of_the_same_name_is_made_again(make: Make, media: Path) -> None:
    first = {one["source"]: one["vision"] for one in records(make().folder)}
    draw(media / "b.gif", LENGTHS["b.gif"], 99)
    done = make()
    assert (done.media, done.before, done.reworded) == (1, 5, 0)
    second = {one["source"]: one["vision"] for one in records(done.folder)}
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"b.gif"}


def test_what_is_said_of_others_stays(make: Make, media: Path) -> None:
    make(media / "a.png")
    done = make(media / "c.png")
    assert (done.media, done.before) == (1, 0)
    assert [record["source"] for record in records(done.folder)] == ["a.png", "c.png"]


@pytest.mark.parametrize("kept", [0, 1, 0.2, 0.5, 0.97, -1])
def test_a_shard_that_was_cut_is_made_whole(kept: float, make: Make, media: Path) -> None:
    """Wherever: at a line's end too, or all but its line feed."""
    rows = [{"file": name, "caption": word} for name in LENGTHS for word in ("one", "two")]
    table = write_table(media / "t.csv", rows)
    shard = make(table).folder / "data-00000.jsonl"
    whole = shard.read_bytes()
    ends = {0: 0, 1: whole.index(b"\n") + 1, -1: len(whole) - 1}
    cut = whole[: ends.get(kept, int(kept * len(whole)))]
    shard.write_bytes(cut)
    done = make(table)
    assert done.damaged == (not cut.endswith(b"\n") and cut != b"")
    found = records(done.folder)
    assert sorted(map(json.dumps, found)) == sorted(
        json.dumps(json.loads(x)) for x in whole.splitlines()
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'{"source":"b', b'{"sour\0\0\0'), (b'"vision":[', b'"vision":{'), (b"}\n", b"}")],
)
def test_damaged_lines_are_made_again(old: bytes, new: bytes, make: Make) -> None:
    shard = make().folder / "data-00000.jsonl"
    whole = records(shard.parent)
    shard.write_bytes(shard.read_bytes().replace(old, new, 1))
    done = make()
    assert done.media >= done.damaged == 1
    by_name = sorted(records(done.folder), key=lambda one: one["source"])
    assert by_name == whole
    assert make().damaged == 0


def test_a_shard_that_nothing_is_left_of_goes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "SHARD_BYTES", 1500)
    first = make()
    last = first.folder / f"data-{first.shards - 1:05}.jsonl"
    last.write_bytes(b"damaged\n")
    done = make()
    assert (done.shards, done.media, done.damaged) == (first.shards, 2, 1)
    assert [one["source"] for one in records(done.folder)] == sorted(LENGTHS)


def test_an_error_of_the_disk_is_one_line_and_costs_nothing(make: Make, media: Path) -> None:
    whole = make(folder="whole").folder
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"can't write .*\.part: File too large"):
            make()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    done = make()
    assert 0 < done.before < 6
    assert records(done.folder) == records(whole)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 8}, "data was made with no --frames: give the same"),
        ({"fps": 2.0}, "with no --fps: "),
        ({"tasks": ("see", "draw"), "frames": 2}, "with no --frames, --tasks see: "),
        ({"model": "nano"}, "with --model .*/tiny: "),
    ],
)
def test_other_options_are_refused_by_name(
    options: dict[str, Any], words: str, make: Make, tmp_path: Path
) -> None:
    make()
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(UsageError, match=words):
        make(**options)
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_folders_of_others_are_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/data-00000.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match=r"holds data-00000\.jsonl"):
        make()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["data-00000.jsonl"]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        make(folder="file")


def test_two_runs_do_not_mix(make: Make, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lock = os.open(tmp_path / "data", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another run"):
        make()
    os.close(lock)
    make()


def test_a_damaged_manifest_is_named(make: Make) -> None:
    (make().folder / "tokens.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokens.json"):
        make()


def test_sources_that_can_not_be(make: Make, media: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        make(media / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture or clip in"):
        make(tmp_path / "empty")
    draw(tmp_path / "other/a.png", 1, 3)
    with pytest.raises(UsageError, match=r"would both be called a\.png"):
        make(media, tmp_path / "other")
    (tmp_path / "t.csv").write_bytes(b"file\n\xff\xfe\n")
    with pytest.raises(FormatError, match="as a table"):
        make(tmp_path / "t.csv")
    with pytest.raises(UsageError, match="'look'"):
        make(tasks=("look",))
    with pytest.raises(UsageError, match="frames"):
        make(frames=0)
    (tmp_path / "bad.mp4").write_bytes(b"x")
    assert not (tmp_path / "data").exists()
    with pytest.raises(MediaError, match=r"bad\.mp4: it is no picture .*errors\.jsonl"):
        make(tmp_path / "bad.mp4")


def test_training_can_tell_other_codes(make: Make, image: vqgan.VQGAN) -> None:
    manifest = read_manifest(make().folder)
    assert manifest
    assert manifest.misfit(image) is None
    other = vqgan.create(image.config, seed=1)
    assert "another" in (manifest.misfit(other) or "")
    assert "64 of 32 codes" in (manifest.misfit(_sized(image, codes=33)) or "")


def test_only_what_decides_the_codes_counts(image: vqgan.VQGAN) -> None:
    tensors = vqgan.to_tensors(image)
    for name, is_same in [("decoder.conv_in.bias", True), ("encoder.conv_in.bias", False)]:
        changed = {**tensors, name: tensors[name] + 1}
        other = vqgan.from_tensors(image.config, changed)
        assert (vqgan.fingerprint(other) == vqgan.fingerprint(image)) is is_same


def _sized(image: vqgan.VQGAN, codes: int) -> vqgan.VQGAN:
    return vqgan.create(dataclasses.replace(image.config, codes=codes))


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    Manifest("m", "x", 1, 1, None, 0.5, ("see",)).write(tmp_path)
    assert read_manifest(tmp_path) == Manifest("m", "x", 1, 1, None, 0.5, ("see",))
