"""Byte-level tokenizers: equal to the tokenizers package id by id, and to SmolLM2's known ids."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from lwm_core.chat_templates import LWM, ChatStyle, read_template, recognise
from lwm_core.errors import FormatError, UsageError
from lwm_core.formats.gguf_llama import GGUFModel
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokenizer_json import JsonTokenizer
from lwm_core.tokens import FrameLayout, Message, chat_prompt
from lwm_core.vocabulary import load_tokenizer

PROSE = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. The special magic Paris number is: 1234567\n    Indented text.\n",
    "A red circle moves left. Is there a blue square? No, there are 12 stars.\r\n",
]
STRINGS = [
    "",
    " ",
    *PROSE,
    "  two  spaces \n\tand\ttabs ",
    "naïve 你好 😀\u200d👧 \x00 end",
    "<|im_start|>user\nHi<|im_end|><tool> x<|im_start|",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SETTINGS = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
LAYOUT = FrameLayout(offset=512, codes=8192, frame_codes=256)


@pytest.fixture(scope="module")
def package() -> tokenizers.Tokenizer:
    """A small vocabulary that the package trained itself, with one token that is no special."""
    made = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(PROSE, trainer)
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


@pytest.fixture(scope="module")
def ours(package: tokenizers.Tokenizer) -> JsonTokenizer:
    return JsonTokenizer.parse(package.to_str(), SETTINGS, source="here")


def write(folder: Path, package: tokenizers.Tokenizer, settings: Any = SETTINGS) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(package.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("text", STRINGS)
def test_ids_and_texts_equal_the_package(
    package: tokenizers.Tokenizer, ours: JsonTokenizer, text: str
) -> None:
    ids = package.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ours.encode(text, bos=False) == ids
    assert ours.decode(ids, skip_special=False) == text
    assert ours.decode(ids) == package.decode(ids, skip_special_tokens=True)


def random_ids(ours: JsonTokenizer, count: int) -> list[list[int]]:
    noise = random.Random(0)
    return [[noise.randrange(ours.vocab_size) for _ in range(40)] for _ in range(count)]


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_ids_decode_as_the_package_does(
    package: tokenizers.Tokenizer, ours: JsonTokenizer, skip_special: bool
) -> None:
    for ids in random_ids(ours, 300):
        expected = package.decode(ids, skip_special_tokens=skip_special)
        assert ours.decode(ids, skip_special) == expected


def test_sizes_and_special_ids(package: tokenizers.Tokenizer, ours: JsonTokenizer) -> None:
    assert ours.vocab_size == package.get_vocab_size()
    assert (ours.bos_id, ours.eos_id) == (1, 2)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_stream_gives_the_whole_text(ours: JsonTokenizer, chunk: int) -> None:
    for ids in [*map(ours.encode, STRINGS), *random_ids(ours, 50)]:
        stream = ours.stream()
        pieces = [stream.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
        assert "".join([*pieces, stream.flush()]) == ours.decode(ids)


def test_stream_joins_the_bytes_of_a_character(ours: JsonTokenizer) -> None:
    stream = ours.stream()
    assert [stream.feed([index]) for index in ours.encode("😀")] == ["", "", "", "😀"]
    assert stream.flush() == ""
    assert stream.feed(ours.encode("😀")[:3]) == ""
    assert stream.flush() == "\ufffd"


def test_ids_outside_the_vocabulary_have_no_text(ours: JsonTokenizer) -> None:
    assert ours.decode([-1, *ours.encode("text"), ours.vocab_size + 8192]) == "text"


@pytest.mark.parametrize("text", STRINGS)
def test_split_parts_join_to_the_text(ours: JsonTokenizer, text: str) -> None:
    parts = ours.split(text)
    assert b"".join(parts) == text.encode()
    assert len(parts) == len(ours.encode(text, bos=False))


def test_lone_surrogate_counts_as_replacement_character(ours: JsonTokenizer) -> None:
    assert ours.decode(ours.encode("a\udcffb")) == "a\ufffdb"
    assert ours.encode("\ud83d\ude00") == ours.encode("😀")


def test_what_stands_in_front(package: tokenizers.Tokenizer) -> None:
    """The post-processor of the file says it, and the settings may say otherwise."""
    marked = tokenizers.Tokenizer.from_str(package.to_str())
    marked.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )

    def first(made: tokenizers.Tokenizer, **settings: Any) -> list[int]:
        return JsonTokenizer.parse(made.to_str(), SETTINGS | settings, source="here").encode("")

    assert first(marked) == [1]
    assert first(marked, add_bos_token=False) == []
    assert first(package, add_bos_token=True) == [1]
    assert first(package, add_bos_token=True, bos_token=None) == []


def test_truncation_and_padding_are_not_for_us(package: tokenizers.Tokenizer) -> None:
    short = tokenizers.Tokenizer.from_str(package.to_str())
    short.enable_truncation(3)
    short.enable_padding(length=3)
    ours = JsonTokenizer.parse(short.to_str(), SETTINGS, source="here")
    assert ours.decode(ours.encode(PROSE[0])) == PROSE[0]


# Files


def test_saved_and_loaded_is_the_same(tmp_path: Path, package: tokenizers.Tokenizer) -> None:
    settings = SETTINGS | {"add_bos_token": True}
    first = JsonTokenizer.load(write(tmp_path, package, settings))
    folder = tmp_path / "saved"
    folder.mkdir()
    first.save(folder)
    second = load_tokenizer(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (second.bos_id, second.eos_id) == (1, 2)
    for text in STRINGS:
        assert first.encode(text) == second.encode(text)


def test_a_directory_has_either(
    tmp_path: Path, reference: Path, package: tokenizers.Tokenizer
) -> None:
    with pytest.raises(FormatError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)
    write(tmp_path, package)
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)
    original = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    original.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, Tokenizer)
    assert loaded.encode(PROSE[0]) == original.encode(PROSE[0])
    written = (tmp_path / "tokenizer.model").read_bytes()
    assert written == (reference / "tokenizer/tokenizer.model").read_bytes()


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(UsageError, match="can't read"):
            JsonTokenizer.load(path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "names no eos_token"),
        ({"eos_token": "<nowhere>"}, "'<nowhere>' is not in the vocabulary"),
        ({"eos_token": 7}, "not a byte-level"),
        ([], "no JSON object"),
    ],
)
def test_refuses_settings_without_an_end(
    tmp_path: Path, package: tokenizers.Tokenizer, settings: Any, reason: str
) -> None:
    path = write(tmp_path, package, settings)
    with pytest.raises(FormatError, match=reason):
        JsonTokenizer.load(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v["model"].update(type="WordPiece"), "not of the kind BPE"),
        (lambda v: v["model"].update(byte_fallback=True), "not of the kind BPE"),
        (lambda v: v["model"].update(dropout=0.1), "not of the kind BPE"),
        (lambda v: v["model"].update(end_of_word_suffix="</w>"), "changes the text"),
        (lambda v: v.update(normalizer={"type": "NFC"}), "changes the text"),
        (lambda v: v["added_tokens"][0].update(lstrip=True), "changes the text"),
        (lambda v: v.update(decoder=None), "does not spell bytes"),
        (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "does not spell bytes"),
        (lambda v: v.update(pre_tokenizer=None), "does not spell bytes"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"].reverse(), "does not spell bytes"),
        (lambda v: v["pre_tokenizer"].update(pretokenizers=[]), "not a byte-level"),
        (lambda v: v["model"]["merges"].append(["no", "where"]), "not a byte-level"),
        (lambda v: v.pop("model"), "not a byte-level"),
        (lambda v: v.update(model=3), "not a byte-level"),
    ],
)
def test_refuses_other_kinds(
    package: tokenizers.Tokenizer, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    values = json.loads(package.to_str())
    change(values)
    with pytest.raises(FormatError, match=reason) as caught:
        JsonTokenizer.parse(json.dumps(values), SETTINGS, source="here")
    assert "\n" not in str(caught.value)


def test_every_damaged_file_is_refused_silently(
    tmp_path: Path, package: tokenizers.Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, package)
    whole = path.read_bytes()
    noise = random.Random(0)
    damaged = [whole[:size] for size in range(0, len(whole) - 2, 997)]
    damaged += [noise.randbytes(500), b"null", b"[]", b"{}", b"[" * 100_000]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(FormatError) as caught:
            JsonTokenizer.load(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# Chat templates

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (None, LWM),
        (SMOLLM, ChatStyle("chatml", SMOLLM_SYSTEM)),
        (SMOLLM.replace("\n", "\\n"), ChatStyle("chatml", SMOLLM_SYSTEM)),
        ("{{'<|im_start|>system\n' + m + '<|im_end|>\n'}}", ChatStyle("chatml")),
        ("{{'<|im_start|>' + message['role']}}", ChatStyle("chatml")),
        ("[INST] {{ messages[0]['content'] }} [/INST]", None),
        ("", None),
    ],
)
def test_templates_are_recognised(template: str | None, style: ChatStyle | None) -> None:
    assert recognise(template) == style


def test_where_a_directory_has_its_template(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": SMOLLM}))
    assert read_template(tmp_path) == SMOLLM
    settings.write_text(json.dumps({"chat_template": [{"name": "tool", "template": SMOLLM}]}))
    assert read_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text("another")
    assert read_template(tmp_path) == "another"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="not readable"):
        read_template(tmp_path)


def test_chatml(ours: JsonTokenizer) -> None:
    def text(messages: list[Message], system: str | None) -> str:
        ids = chat_prompt(ours, LAYOUT, messages, ChatStyle("chatml", system))
        return ours.decode(ids, skip_special=False)

    asked = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "1+1?")]
    turns = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(asked, None) == turns
    assert text(asked, "Be kind.") == "<|im_start|>system\nBe kind.<|im_end|>\n" + turns
    brief = [Message("system", "Be brief."), *asked]
    assert text(brief, "Be kind.") == "<|im_start|>system\nBe brief.<|im_end|>\n" + turns
    assert text([], None) == "<|im_start|>assistant\n"


def test_chatml_is_text_only(ours: JsonTokenizer) -> None:
    seen = Message("user", "What is this?", (np.zeros((1, 256), np.int32),))
    with pytest.raises(UsageError, match="text only"):
        chat_prompt(ours, LAYOUT, [seen], ChatStyle("chatml"))


# SmolLM2


# The ids of transformers 5.23: AutoTokenizer.from_pretrained(folder, gguf_file=...) of that file.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", "19556 905"),
        (
            "It is 12345 o'clock\n\n  in  naïve 你好 😀👧",
            "1589 314 216 33 34 35 36 37 263 23 17466 8866 281 216 15486 46494 216 "
            "18645 250 48392 138 40303 218 10813 235 117",
        ),
        ("<|im_start|>user", "1 4093"),
        (
            "def f(x):\n    return x[1:] != 2024",
            "1604 275 24 104 727 472 1003 1792 75 33 13372 6541 216 34 32 34 36",
        ),
    ],
)
def test_ids_of_a_published_model(smollm: GGUFModel, text: str, ids: str) -> None:
    expected = [int(index) for index in ids.split()]
    assert smollm.tokenizer.encode(text) == expected
    assert smollm.tokenizer.decode(expected, skip_special=False) == text


# The ids of `apply_chat_template` of the same, with add_generation_prompt.
@pytest.mark.parametrize(
    ("messages", "ids"),
    [
        (
            [Message("user", "Hello, who are you?")],
            "1 9690 198 2683 359 253 5356 5646 11173 3365 3511 308 34519 28 7018 411 "
            "407 19712 8182 2 198 1 4093 198 19556 28 617 359 346 47 2 198 1 520 9531 "
            "198",
        ),
        (
            [
                Message("system", "Be brief."),
                Message("user", "Hi"),
                Message("assistant", "Hello!"),
                Message("user", "1+1?"),
            ],
            "1 9690 198 6077 5453 30 2 198 1 4093 198 26843 2 198 1 520 9531 198 "
            "19556 17 2 198 1 4093 198 33 27 33 47 2 198 1 520 9531 198",
        ),
    ],
)
def test_chat_prompt_of_a_published_model(
    smollm: GGUFModel, messages: list[Message], ids: str
) -> None:
    style = recognise(smollm.chat_template)
    assert style == ChatStyle("chatml", SMOLLM_SYSTEM)
    expected = [int(index) for index in ids.split()]
    assert chat_prompt(smollm.tokenizer, LAYOUT, messages, style) == expected
