"""What we write, opened by transformers: PyTorch computes the same logits, ids are the same.

Skipped where transformers and torch are absent.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import slow

from lwm_core import convert
from lwm_core.generate import Message, reply
from lwm_core.load import load_model
from lwm_core.sampling import Sampling
from lwm_core.source import open_source
from lwm_core.tokens import chat_prompt

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many legs does a spider have?",
    "Write one sentence about the sea.",
    "What is two plus three?",
    "Who wrote Hamlet?",
    "Explain what a prime number is.",
    "How do I say good morning in Spanish?",
    "What do bees make?",
    "Give me a short poem about rain.",
)


def their_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.numpy()


@pytest.mark.parametrize("model", ["text_a", "text_b", "vision_small", "vision_full"])
def test_logits_of_transformers(model: str, reference: Path, shared: Path, tmp_path: Path) -> None:
    """Text models and vision-language models of the original."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("streaming_params", "config.json"):
        shutil.copy(shared / "reference" / model / name, source)
    shutil.copy(reference / "tokenizer/tokenizer.model", source)
    shutil.copy(reference / "vqgan/vqgan_params.pkl", source / "vqgan")
    opened = open_source(str(source))
    convert.convert(opened, tmp_path / "out", to="hf")
    rng = np.random.default_rng(0)
    ids = rng.integers(opened.config.vocab, size=(2, 40), dtype=np.int32)
    ours = convert.logits(opened, ids)
    np.testing.assert_allclose(ours, their_logits(tmp_path / "out", ids), atol=1e-4)


def test_tokenizer_of_transformers(reference: Path, tiny_model: Path, tmp_path: Path) -> None:
    opened = open_source(str(tiny_model))
    convert.convert(opened, tmp_path / "out", to="hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    cases = json.loads((reference / "tokenizer/tokenizer_golden.json").read_text())["cases"]
    for case in cases:
        assert theirs(case["text"]).input_ids == case["auto"]["ids"], case["text"]
    assert len(theirs) == opened.config.vocab
    frame = "<|vision_3|><|end_of_frame|><|vision_31|><|end_of_vision|>"
    ids = theirs(frame, add_special_tokens=False).input_ids
    assert ids == [512 + 3, 512 + 32, 512 + 31, 512 + 33]
    assert theirs.decode(ids, skip_special_tokens=False).replace(" ", "") == frame


@pytest.fixture(scope="module")
def smollm2(smollm: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """SmolLM2 opened by us where it lies, and its model and tokenizer opened by transformers."""
    folder = tmp_path_factory.mktemp("smollm2") / "out"
    convert.convert(open_source("smollm2"), folder, to="hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return load_model("smollm2", dtype="float32"), theirs, tokenizer


@pytest.mark.parametrize("question", [QUESTIONS[0], *map(slow, QUESTIONS[1:])])
def test_smollm2_answers_as_in_transformers(question: str, smollm2: tuple[Any, Any, Any]) -> None:
    """Greedy answers of 64 tokens, from a four-bit source with grouped and tied heads."""
    ours, theirs, tokenizer = smollm2
    message = Message("user", question)
    ids = chat_prompt(ours.tokenizer, ours.layout, [message], ours.style)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer(prompt, add_special_tokens=False).input_ids == ids
    made = theirs.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
    expected = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
    answer = "".join(reply(ours, [message], sampling=Sampling(temperature=0.0), max_tokens=64))
    assert answer == expected
    assert "Paris" in answer or "France" not in question
