"""A SentencePiece vocabulary as Hugging Face's `tokenizer.json`, the vision ids among its tokens.

With it a model directory is all that transformers, vLLM and others need: a code of an image
tokenizer is the token `<|vision_17|>`, and text has the same ids as here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from lwm_core.config import ModelConfig
from lwm_core.tensor_files import write_json
from lwm_core.tokenizer import SPACE, Kind, Tokenizer
from lwm_core.tokenizer_json import FILE, SETTINGS

END_OF_FRAME = "<|end_of_frame|>"
END_OF_VISION = "<|end_of_vision|>"


def write_fast_tokenizer(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into a model directory."""
    fast = fast_tokenizer(tokenizer, config)
    fast.save(str(folder / FILE))
    begin, end = (tokenizer.pieces[one].text for one in (tokenizer.bos_id, tokenizer.eos_id))
    unknown = next(piece.text for piece in tokenizer.pieces if piece.kind is Kind.UNKNOWN)
    write_json(
        folder / SETTINGS,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": begin,
            "eos_token": end,
            "unk_token": unknown,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_length,
        },
    )


def fast_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> FastTokenizer:
    """The same vocabulary for the package `tokenizers`, with all `config.vocab` ids."""
    texts = [piece.text.replace(" ", SPACE) for piece in tokenizer.pieces]
    vocabulary = {text: index for index, text in enumerate(texts)}
    unknown = next(piece.text for piece in tokenizer.pieces if piece.kind is Kind.UNKNOWN)
    model = models.BPE(
        vocabulary,
        _merges(tokenizer, vocabulary),
        unk_token=unknown,
        byte_fallback=True,
        fuse_unk=True,
    )
    fast = FastTokenizer(model)
    # Each stretch of text between special tokens begins with a space of its own.
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    for piece in tokenizer.pieces:
        if piece.verbatim:
            token = AddedToken(piece.text, normalized=False, special=piece.special)
            (fast.add_special_tokens if piece.special else fast.add_tokens)([token])
    fast.add_tokens(
        [AddedToken(name, normalized=False) for name in _further_ids(tokenizer, config)]
    )
    begin = tokenizer.pieces[tokenizer.bos_id].text
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.bos_id)],
    )
    return fast


def _further_ids(tokenizer: Tokenizer, config: ModelConfig) -> Iterator[str]:
    """Names of the ids after the tokenizer's own: rows without text, then the vision ids."""
    yield from (f"<|unused_{index}|>" for index in range(tokenizer.vocab_size, config.text_vocab))
    ends = {config.vision_codes: END_OF_FRAME, config.vision_codes + 1: END_OF_VISION}
    yield from (ends.get(code, f"<|vision_{code}|>") for code in range(config.vision_vocab))


def _merges(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, the best scored third first.

    SentencePiece joins whatever has the best score; the package `tokenizers` follows a list.
    """
    joined = [
        (text, index)
        for text, index in vocabulary.items()
        if tokenizer.pieces[index].kind is Kind.NORMAL
    ]
    joined.sort(key=lambda item: -tokenizer.score(item[1]))
    return [
        (text[:cut], text[cut:])
        for text, _ in joined
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
