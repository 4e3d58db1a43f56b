"""Text to ids and back: equal to Hugging Face's and llama.cpp's LLaMA tokenizers, id by id."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from lwm_core.errors import FormatError, OutputError, TrainingError, UsageError
from lwm_core.tokenizer import Tokenizer, train_tokenizer

PROSE = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. The special magic Paris number is: 1234567\n    Indented text.\n",
    "A red circle moves left. Is there a blue square? No, there are 12 stars.\r\n",
]
STRINGS = [
    "",
    " ",
    "A red circle moves left.",
    "  two  spaces \n\tand\ttabs ",
    "naïve 你好 😀\u200d👧 \x00 end",
]


@pytest.fixture(scope="module")
def published(reference: Path) -> Tokenizer:
    """A vocabulary of the published models' kind, without pieces of the user's."""
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Any]:
    """What Hugging Face's fast tokenizer does with `published`."""
    return json.loads((reference / "tokenizer/tokenizer_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small vocabulary that we trained, with `<vision>` and `</vision>`."""
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    train_tokenizer(PROSE, path, vocab_size=400)
    return Tokenizer.load(path)


def test_ids_and_texts_equal_hugging_face(published: Tokenizer, golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        text, expected = case["text"], case["auto"]
        assert published.encode(text) == expected["ids"], text
        assert published.encode(text, bos=False) == expected["ids_no_special"], text
        assert published.decode(expected["ids"], skip_special=False) == expected["decode"]
        assert published.decode(expected["ids"]) == expected["decode_skip_special"]


def test_random_ids_decode_as_hugging_face_does(
    published: Tokenizer, golden: dict[str, Any]
) -> None:
    for case in golden["decode_random_ids"]:
        assert published.decode(case["ids"], skip_special=False) == case["auto"]
        assert published.decode(case["ids"]) == case["auto_skip"]


def test_sizes_and_special_ids(published: Tokenizer, golden: dict[str, Any]) -> None:
    assert published.vocab_size == golden["vocab_size"]
    assert (published.bos_id, published.eos_id) == (golden["bos"], golden["eos"])


def test_ids_equal_llama_cpp(shared: Path) -> None:
    folder = shared / "tokenizers"
    tokenizer = Tokenizer.load(folder / "llama2_rebuilt.model")
    texts = (folder / "llama2_vectors.inp").read_bytes().decode()
    lines = (folder / "llama2_vectors.out").read_text(encoding="utf-8").split("\n")
    for text, line in zip(texts.split("\n__ggml_vocab_test__\n"), lines, strict=True):
        assert tokenizer.encode(text, bos=False) == [int(index) for index in line.split()], text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_opens_another_llama_vocabulary(shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "tokenizers/mistral_v1.model")
    assert tokenizer.vocab_size == 32000
    assert tokenizer.decode(tokenizer.encode(PROSE[0])) == PROSE[0]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("skip_special", [True, False])
def test_stream_gives_the_whole_text(
    published: Tokenizer, golden: dict[str, Any], chunk: int, skip_special: bool
) -> None:
    sequences = [case["auto"]["ids"] for case in golden["cases"]]
    sequences += [case["ids"] for case in golden["decode_random_ids"]]
    for ids in sequences:
        stream = published.stream(skip_special)
        pieces = [stream.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
        assert "".join([*pieces, stream.flush()]) == published.decode(ids, skip_special)


def test_stream_returns_only_text_that_stays(published: Tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.randrange(published.vocab_size) for _ in range(30)]
        stream, so_far = published.stream(), ""
        for i, index in enumerate(ids):
            so_far += stream.feed([index])
            assert published.decode(ids[: i + 1]).startswith(so_far)


def test_stream_joins_the_bytes_of_a_character(published: Tokenizer) -> None:
    stream = published.stream()
    smile = published.encode("😀", bos=False)
    assert [stream.feed([index]) for index in smile] == [""] * len(smile)
    assert stream.feed(published.encode("a", bos=False)) == "😀 a"


def test_ids_outside_the_vocabulary_have_no_text(published: Tokenizer) -> None:
    ids = published.encode("text")
    assert published.decode([-1, *ids, published.vocab_size + 8192]) == "text"


def test_vision_is_one_id_only_where_the_vocabulary_has_it(
    published: Tokenizer, own: Tokenizer
) -> None:
    begin, end = own.encode("<vision>", bos=False), own.encode("</vision>", bos=False)
    assert (begin, end) == ([3], [4])
    assert own.encode("a<vision>b</vision>") == own.encode("a") + begin + own.encode("b")[1:] + end
    assert own.decode([*begin, *end]) == "<vision></vision>"
    assert len(published.encode("<vision>", bos=False)) > 1


@pytest.mark.parametrize("text", [*PROSE, *STRINGS])
def test_trained_vocabulary_gives_the_text_back(own: Tokenizer, text: str) -> None:
    assert own.decode(own.encode(text)) == text


@pytest.mark.parametrize("text", [*STRINGS, "<s>USER: <vision></vision> ASSISTANT:</s> "])
def test_split_parts_join_to_the_text(own: Tokenizer, text: str) -> None:
    parts = own.split(text)
    assert b"".join(parts) == text.encode()
    assert len(parts) == len(own.encode(text, bos=False))


def test_lone_surrogate_counts_as_replacement_character(own: Tokenizer) -> None:
    assert own.decode(own.encode("a\udcffb")) == "a\ufffdb"
    assert own.encode("\ud83d\ude00") == own.encode("😀")


def test_trained_vocabulary_is_llamas_kind(own: Tokenizer) -> None:
    assert own.vocab_size == 400
    assert (own.bos_id, own.eos_id) == (1, 2)
    assert [piece.text for piece in own.pieces[:3]] == ["<unk>", "<s>", "</s>"]
    assert len(own.encode("0123456789", bos=False)) == 11  # a prefix, then one id a digit


def test_training_is_deterministic_silent_and_leaves_one_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.model", tmp_path / "second.model"
    train_tokenizer(PROSE, first, vocab_size=380, user_symbols=())
    train_tokenizer(iter(PROSE), second, vocab_size=380, user_symbols=())
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "size", "reason"),
    [(PROSE, 100, "smaller"), (PROSE, 10**6, "too high"), ([], 400, "no text")],
)
def test_impossible_training_says_why(
    tmp_path: Path, texts: list[str], size: int, reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        train_tokenizer(texts, tmp_path / "tokenizer.model", size)
    assert not list(tmp_path.iterdir())


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        train_tokenizer(PROSE, tmp_path / "missing/tokenizer.model", 400)


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "tokenizer.model", tmp_path):
        with pytest.raises(UsageError, match="can't read"):
            Tokenizer.load(path)


def test_refuses_a_vocabulary_of_another_kind(shared: Path) -> None:
    with pytest.raises(FormatError, match="not of the kind BPE"):
        Tokenizer.load(shared / "tokenizers/not_a_llama.model")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"byte_fallback": False}, "byte fallback"),
        ({"add_dummy_prefix": False}, "changes the text"),
        ({"remove_extra_whitespaces": True}, "changes the text"),
        ({"normalization_rule_name": "nfkc"}, "changes the text"),
        ({"eos_id": -1}, "no </s>"),
    ],
)
def test_refuses_bpe_that_llama_would_encode_otherwise(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    llama = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    with (tmp_path / "other.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(PROSE[1:]), model_writer=file, vocab_size=320, **llama | options
        )
    with pytest.raises(FormatError, match=reason):
        Tokenizer.load(tmp_path / "other.model")


def test_every_damaged_file_is_refused_silently(
    tmp_path: Path, reference: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (reference / "tokenizer/tokenizer.model").read_bytes()
    noise = random.Random(0)
    damaged = [whole[:size] for size in range(0, len(whole), 97)]
    damaged += [noise.randbytes(size) for size in range(1, 200)]
    damaged += [
        b"\xff" * 5000,
        b"\x89PNG\r\n\x1a\n" * 9,
        b"{}\n",
        whole[:2000] + noise.randbytes(5000),
    ]
    path = tmp_path / "tokenizer.model"
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(FormatError) as caught:
            Tokenizer.load(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
