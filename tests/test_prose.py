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
    ],
)
def test_bad_prose_says_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        read_prose(tmp_path / name)


def test_missing_prose_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_prose(tmp_path / "missing.txt")
