"""Long text as passages: the package's novel, text files, JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwm_core.data.prose import read_prose
from lwm_core.errors import UsageError


def test_own_prose_is_the_novel() -> None:
    passages = read_prose()
    assert passages[0] == "Persuasion\n\n"
    assert 450_000 < sum(map(len, passages)) < 470_000


def test_prose_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One\nparagraph.\n\n \n\nTwo.\n", encoding="utf-8")
    assert "".join(read_prose(path)) == "One\nparagraph.\n\nTwo.\n\n\n"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.txt", b" \n\n", "no text"),
        ("binary.txt", b"\xff\xfe\x00", "not prose"),
        ("broken.jsonl", b"{", "not prose"),
        ("other.jsonl", b'{"words": "text"}\n3\n', "not prose"),
        ("number.jsonl", b'{"text": 3}\n', "not prose"),
        ("none.jsonl", b"\n", "no text"),
        ("blank.jsonl", b'{"text": " "}\n', "no text"),
        ("deep.jsonl", b"[" * 100_000, "not prose"),
        ("zeros.txt", b"a\0b\0", "not prose"),
    ],
)
def test_bad_prose_says_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        read_prose(tmp_path / name)


def test_missing_prose_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_prose(tmp_path / "missing.txt")


def test_json_lines_end_with_a_line_feed_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "One\u2028line. "}\n\n{"text": "Two."}', encoding="utf-8")
    assert read_prose(path) == ["One\u2028line. ", "Two."]


def test_a_directory_is_its_texts_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, content in {
        "c.md": b"Three.",
        "b/lines.jsonl": b'{"text": "Two."}\n',
        "a.txt": b"One.",
        "picture.png": b"\x89PNG\0",
        "numbers.jsonl": b'{"loss": 3}\n',
        ".hidden": b"No.",
        ".git/config": b"No.",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert read_prose(tmp_path) == ["One.\n\n", "Two.", "Three.\n\n"]


def test_a_directory_without_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden").write_text("No.")
    with pytest.raises(UsageError, match="there is no text in it"):
        read_prose(tmp_path)
