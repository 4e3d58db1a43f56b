"""Records of all kinds of files: the same from every number on, and damage is named."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lwm_core.data import json_lines
from lwm_core.data.json_lines import JsonLines
from lwm_core.data.records import Records, open_records
from lwm_core.errors import FormatError, LwmError, UsageError

RECORDS = [{"text": f"Text {n}. " + "é" * (7 * n % 50), "codes": [n] * (n % 9)} for n in range(200)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks in a small file."""
    monkeypatch.setattr(json_lines, "BLOCK", 100)
    monkeypatch.setattr(json_lines, "PACKED", 100)


def lines(records: list[dict[str, Any]] = RECORDS) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, path, row_group_size=70)


def write_arrow(path: Path, records: list[dict[str, Any]], *, stream: bool) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.ipc

    table = pyarrow.Table.from_pylist(records)
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def write(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    """Records in a file of the kind that its name says; `stream.arrow` is a stream."""
    match path.suffix:
        case ".gz":
            whole = lines(records)
            path.write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]))
        case ".zst":
            whole = lines(records)
            path.write_bytes(zst(whole[:500]) + zst(whole[500:]))
        case ".parquet":
            write_parquet(path, records)
        case ".arrow":
            write_arrow(path, records, stream=path.stem == "stream")
        case _:
            path.write_bytes(lines(records))
    return path


KINDS = [
    *("some.jsonl", "some.ndjson", "some.json", "some.jsonl.gz", "some.json.zst"),
    *("some.parquet", "file.arrow", "stream.arrow"),
]


# Reading


def assert_all(records: Records, expected: list[dict[str, Any]] = RECORDS) -> None:
    """From all numbers on, in any order, twice."""
    numbered = list(enumerate(expected))
    for start in (150, 0, 71, len(expected) - 1, 1, 140, len(expected), len(expected) + 5):
        assert list(records.read(start)) == numbered[start:], start
        for step in (2, 7, 150):
            assert list(records.read(start, step)) == numbered[start::step], (start, step)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_read_from_any_record_on(tmp_path: Path, name: str) -> None:
    assert_all(open_records(write(tmp_path / name)))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_every_line_begins_where_it_does(tmp_path: Path, end: bytes) -> None:
    """From every single line, whether or not something ends the last, and in files that are as
    long as some blocks."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(lines()[:-1] + end)
    for start in range(len(RECORDS) + 2):
        read = list(open_records(path).read(start))
        assert read == list(enumerate(RECORDS))[start:]
    whole = b'{"a": 12}\n' * 20
    assert len(whole) == 2 * json_lines.BLOCK
    path.write_bytes(whole)
    for start in range(23):
        assert len(list(JsonLines(path).read(start))) == max(0, 20 - start)


def test_several_files_are_one_row_of_numbers(tmp_path: Path) -> None:
    parts = [("a.jsonl", 0, 50), ("b.jsonl.gz", 50, 51), ("c/d.jsonl", 51, 140)]
    (tmp_path / "c").mkdir()
    for name, begin, end in parts:
        write(tmp_path / name, RECORDS[begin:end])
    write(tmp_path / "c/e.ndjson", [])
    write(tmp_path / "f.json.gz", RECORDS[140:])
    (tmp_path / ".cache").mkdir()
    for other in (".hidden.jsonl", ".cache/x.jsonl", "errors.jsonl", "settings.json", "README.md"):
        (tmp_path / other).write_text('{"text": "none of it"}\n')
    assert_all(open_records(tmp_path))
    assert_all(open_records(f"{tmp_path}/**/[!sR]*"))
    assert_all(open_records(f"{tmp_path}/a*"), RECORDS[:50])


def test_a_later_file_is_reached_without_reading_on_first(tmp_path: Path) -> None:
    """What lies before is looked through for its lines only: it may even be damaged."""
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 10)
    write(tmp_path / "b.jsonl", RECORDS[:3])
    assert list(open_records(tmp_path).read(11)) == [(11, RECORDS[1]), (12, RECORDS[2])]


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_what_is_not_wanted_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each of several processes parses its share alone."""
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json_lines.json, "loads", lambda text: parsed.append(text) or loads(text))
    path = write(tmp_path / name)
    assert len(list(open_records(path).read(3, 8))) == len(parsed) == 25


# What is wrong in a file


BAD = [b"{", b'{"te', b"[1, 2]", b"3", b"null", b"\xff\xfe\x00", b"\0", b"[" * 100_000]
BAD += [b'{"a": ' + b"9" * 5000 + b"}", b"{} {}", b'"\xc3"']


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_malformed_lines_are_none(tmp_path: Path, name: str) -> None:
    good = b'{"text": "good"}'
    content = b"\n".join(line for bad in BAD for line in (good, bad, b"", b" \r"))
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    read = list(open_records(path).read(0))
    assert [number for number, record in read if record] == list(range(0, 4 * len(BAD), 4))
    assert [number for number, record in read if record is None] == list(range(1, 4 * len(BAD), 4))
    assert next(open_records(path).read(9)) == (9, None)


def test_one_malformed_line_in_a_million(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 1 << 18)
    path = tmp_path / "million.jsonl"
    path.write_bytes(b"{}\n" * 765_432 + b"{\n" + b"{}\n" * 234_567)
    read = [record for _, record in open_records(path).read(0)]
    assert len(read) == 1_000_000
    assert read.index(None) == 765_432
    assert read.count(None) == 1
    assert next(open_records(path).read(765_432)) == (765_432, None)


def test_a_mark_of_byte_order_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "windows.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "A"}\r\n{"text": "B"}\r\n')
    assert list(open_records(path).read(0)) == [(0, {"text": "A"}), (1, {"text": "B"})]


def test_a_line_that_is_too_long_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST", 1000)
    path = tmp_path / "long.jsonl"
    text = [json.dumps({"text": "x" * size}) for size in (988, 989, 50_000)]
    assert len(text[0]) == 1000
    path.write_text("\n".join([*text, "{}", text[2]]))
    read = list(open_records(path).read(0))
    assert [record and len(json.dumps(record)) for _, record in read] == [
        1000,
        None,
        None,
        {},
        None,
    ]
    assert list(open_records(path).read(2)) == [(2, None), (3, {}), (4, None)]


@pytest.mark.parametrize("name", ["some.jsonl.gz", "some.jsonl.zst"])
def test_a_small_file_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Few bytes that stand for a line of 256 MiB, of which no more is held than of any other."""
    monkeypatch.undo()
    monkeypatch.setattr(json_lines, "LONGEST", 1 << 20)
    path, zeros = tmp_path / name, bytes(1 << 28)
    path.write_bytes(zst(zeros) if path.suffix == ".zst" else gzip.compress(zeros, 1))
    assert path.stat().st_size < 2 << 20
    del zeros
    tracemalloc.start()
    try:
        assert list(open_records(path).read(0)) == [(0, None)]
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["some.jsonl.gz", "some.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_file_says_where(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / name)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-30]
    else:
        data[300:400] = bytes(100)
    path.write_bytes(data)
    before = []

    def read(start: int) -> None:
        for record in open_records(path).read(start):
            before.append(record)

    with pytest.raises(
        FormatError, match=rf"{name}: (cut short|damaged .*) at record \d+;"
    ) as error:
        read(0)
    number = int(str(error.value).rpartition("record ")[2].partition(";")[0])
    numbered = list(enumerate(RECORDS))
    assert before == numbered[:number]
    with pytest.raises(FormatError, match=rf"at record {number};"):
        read(190)
    assert before == numbered[:number] + numbered[190:number]


class FailingDisk(io.BytesIO):
    """A file of which nothing behind its first thousand bytes comes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 1000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_a_disk_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path / name)
    records = open_records(path)
    monkeypatch.setattr(JsonLines, "_opened", lambda _: FailingDisk(path.read_bytes()))
    with pytest.raises(FormatError, match=rf"{name}: can't be read at record \d+: Input/output"):
        list(records.read(0))


@pytest.mark.parametrize("name", ["some.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("size", [0, 3, 400, -20])
def test_a_damaged_table_is_named(tmp_path: Path, name: str, size: int) -> None:
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match=rf"{name}: can't be read: "):
        list(open_records(path).read(0))


def test_an_array_is_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text(" [\n" + json.dumps(RECORDS[0]) + "]")
    with pytest.raises(FormatError, match=r"one JSON array.* jq -c '\.\[\]' array\.json"):
        open_records(path)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("missing.jsonl", "there are no records"),
        ("*.parquet", "there are no records"),
        ("empty", "there are no records"),
        ("a" * 5000, "can't be looked at|there are no records"),
        ("zero\0.jsonl", "there are no records"),
        ("notes.txt", "no file of records: known are .jsonl"),
        ("notes.txt.gz", "no file of records"),
        ("hf:some/thing?splits=train", "splits is no option; known are split"),
    ],
)
def test_what_holds_no_records_says_why(tmp_path: Path, spec: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "notes.txt.gz"):
        (tmp_path / name).write_text("text")
    spec = spec if spec.startswith("hf:") else str(tmp_path / spec)
    with pytest.raises(UsageError, match=reason):
        open_records(spec)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl")
    records = open_records(path)
    path.unlink()
    with pytest.raises(UsageError, match=r"some\.jsonl: can't be read: No such file"):
        list(records.read(0))
    with pytest.raises(UsageError, match=r"some\.jsonl: can't be read: No such file"):
        records.fingerprint()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("some.jsonl.zst", "zstandard"),
        ("some.parquet", "pyarrow"),
        ("some.arrow", "pyarrow"),
        ("hf:owner/name", "datasets"),
    ],
)
def test_a_missing_package_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    if not name.startswith("hf:"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"{package} .* install lwm with \[data\]"):
        list(open_records(name).read(0))


# Fingerprints


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz", "some.parquet"])
def test_a_fingerprint_is_of_what_is_in_the_file(tmp_path: Path, name: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert (
        open_records(write(one / name)).fingerprint()
        == open_records(write(other / name)).fingerprint()
        == open_records(one).fingerprint()
    )
    seen = {open_records(one).fingerprint()}
    for changed in (
        RECORDS[1:],
        RECORDS[:-1],
        [{**RECORDS[0], "text": "Text 1. "}, *RECORDS[1:]],
        [*RECORDS[:-1], {**RECORDS[-1], "codes": [5]}],
    ):
        seen.add(open_records(write(one / name, changed)).fingerprint())
    assert len(seen) == 5
    write(one / name)
    write(one / "another.jsonl", RECORDS[:1])
    assert open_records(one).fingerprint() not in seen


def test_a_fingerprint_stays_where_data_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is another when the files of the folder are called or lie otherwise in it."""
    parts = "a/x.jsonl", "b/x.jsonl", "b/c/y.jsonl"
    for part in parts:
        (tmp_path / "here" / part).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "here" / part)
    told = open_records(tmp_path / "here").fingerprint()
    moved = tmp_path / "far/away"
    moved.parent.mkdir()
    (tmp_path / "here").rename(moved)
    monkeypatch.chdir(moved)
    for name in (moved, ".", "../away", "**/*.jsonl"):
        assert open_records(name).fingerprint() == told
    assert (
        open_records("a/x.jsonl").fingerprint() == open_records(moved / "b/x.jsonl").fingerprint()
    )
    (moved / "b").rename(moved / "bb")
    assert open_records(moved).fingerprint() != told


# Hugging Face


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the package opens as it opens one of the Hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl")
    write(folder / "test.jsonl", RECORDS[:3])
    return folder


@pytest.mark.parametrize("streaming", ["", "&streaming=true"])
def test_a_dataset_of_hugging_face(dataset: Path, streaming: str) -> None:
    records = open_records(f"hf:{dataset}?split=train{streaming}")
    assert_all(records)
    assert_all(open_records(f"hf:{dataset}?split=test{streaming}"), RECORDS[:3])
    same = open_records(f"hf:{dataset}?split=train{streaming}")
    assert records.fingerprint() == same.fingerprint()
    test = open_records(f"hf:{dataset}?split=test{streaming}")
    assert records.fingerprint() != test.fingerprint()


@pytest.mark.parametrize("word", ["true", "1", "yes", "True"])
def test_streaming_may_be_said_in_several_ways(dataset: Path, word: str) -> None:
    import datasets

    opened = open_records(f"hf:{dataset}?streaming={word}")
    assert isinstance(opened._dataset, datasets.IterableDataset)
    whole = open_records(f"hf:{dataset}?streaming=no")
    assert isinstance(whole._dataset, datasets.Dataset)


@pytest.mark.parametrize("word", ["", "ture", "on"])
def test_another_word_for_streaming_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"streaming is '{word}'; it may be true or false"):
        open_records(f"hf:owner/name?streaming={word}")


@pytest.mark.parametrize("streaming", ["", "?streaming=true"])
def test_the_fingerprint_of_pictures_is_always_the_same(
    dataset: Path, tmp_path: Path, streaming: str
) -> None:
    """Opened again, and where the folder was moved to; not of other pictures."""
    import datasets

    def told(folder: Path) -> str:
        return open_records(f"hf:{folder}{streaming}").fingerprint()

    files, packed, other = (tmp_path / name for name in ("files", "packed", "other"))
    for seed, folder in ((0, files), (1, other)):
        folder.mkdir()
        noise = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), np.uint8)
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).save(folder / f"{number}.png")
    for folder in (files, other):
        pictures = [{"bytes": path.read_bytes(), "path": None} for path in folder.iterdir()]
        held = datasets.Dataset.from_dict(
            {"image": pictures}, features=datasets.Features({"image": datasets.Image()})
        )
        held.to_parquet(tmp_path / f"packed/{folder.name}/train.parquet")
    assert told(packed / "files") == told(packed / "files") != told(packed / "other")
    before = told(files)
    assert told(files) == before
    assert "PIL" in str(next(open_records(f"hf:{files}{streaming}").read(0)))
    files.rename(tmp_path / "moved")
    assert told(tmp_path / "moved") == before


@pytest.mark.parametrize("query", ["split=other", "config=other", "split="])
def test_a_dataset_that_is_not_there_says_why(dataset: Path, query: str) -> None:
    with pytest.raises(LwmError, match=rf"^hf:{dataset}\?{query}: .+"):
        open_records(f"hf:{dataset}?{query}")
    with pytest.raises(UsageError, match="hf:/nowhere/at/all: "):
        open_records("hf:/nowhere/at/all")
