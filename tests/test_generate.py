"""Generation: token by token what the original writes, draws and films; and in any chunks."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from originals import open_original

from lwm_core import decode, frame_batches, registry, vqgan
from lwm_core.config import VQConfig
from lwm_core.errors import ContextTooLong, FormatError, ModelNotFound, UsageError
from lwm_core.execution import Execution
from lwm_core.generate import Message, complete, draw, encode_media, film, reply
from lwm_core.load import LoadedModel, load_model
from lwm_core.mesh import make_mesh
from lwm_core.sampling import Sampling
from lwm_core.source import find_model
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import make_prompt, unconditional_prompt
from lwm_core.types import Frame, Progress

GREEDY = Sampling(temperature=0.0)
ROUNDING = 1e-3
"""Where the two best logits are nearer than this, either is right."""


def load_original(folder: Path, image: vqgan.VQGAN | None = None) -> LoadedModel:
    """A model of the original with the reference's tokenizer."""
    config, params = open_original(folder)
    return LoadedModel(
        name=folder.name,
        config=config,
        params=params,
        tokenizer=Tokenizer.load(folder.parent / "tokenizer/tokenizer.model"),
        vqgan=image,
        how=Execution(make_mesh()),
        context=config.max_length,
        cache_dtype=jnp.dtype(jnp.float32),
        defaults={},
    )


@pytest.fixture(scope="module")
def text(reference: Path) -> LoadedModel:
    return load_original(reference / "text_a")


@pytest.fixture(scope="module")
def vision(reference: Path) -> LoadedModel:
    """With an image tokenizer that shows its 16 x 16 codes as so many pixels."""
    image = VQConfig(
        resolution=16, base_channels=4, channel_mult=(1,), res_blocks=1, latent_channels=4,
        code_dim=4, groups=2,
    )  # fmt: skip
    return load_original(reference / "vision_full", vqgan.create(image))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


def golden(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def unpadded(ids: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    return [row[keep > 0].tolist() for row, keep in zip(ids, mask, strict=True)]


def generate(model: LoadedModel, prompts: Sequence[Sequence[int]], **options: Any) -> np.ndarray:
    options = {"modality": "text", "sampling": GREEDY} | options
    return np.concatenate(list(decode.generate(model, prompts, **options)), axis=1)


def whole_frames(events: Any) -> list[Frame]:
    return [event for event in events if isinstance(event, Frame) and event.complete]


def assert_same_codes(frames: Sequence[Frame], tokens: np.ndarray, margins: np.ndarray) -> None:
    """Codes of frames are the original's tokens without the markers, but where all is rounding."""
    ours = np.concatenate([frame.codes for frame in frames])
    theirs = np.concatenate([row[:256] for row in tokens.reshape(-1, 257)])
    doubtful = np.concatenate([row[:256] for row in margins])
    for first in np.flatnonzero(ours != theirs)[:1]:
        assert doubtful[first] < ROUNDING


# The original's tokens


def test_text_without_an_end(text: LoadedModel, reference: Path) -> None:
    numbers = golden(reference / "text_a/golden.npz")
    assert numbers["generate.margins"].min() > ROUNDING
    prompts = unpadded(numbers["generate.prompt_ids"], numbers["generate.attention_mask"])
    written = generate(text, prompts, max_tokens=24, stops=False)
    assert np.array_equal(written, numbers["generate.sequences_no_eos"][:, 40:])


def test_text_with_an_end(text: LoadedModel, reference: Path) -> None:
    numbers = golden(reference / "text_a/golden.npz")
    prompts = unpadded(numbers["generate.prompt_ids"], numbers["generate.attention_mask"])
    end = int(numbers["generate.eos_token_id_used"])
    ending = dataclasses.replace(text, config=dataclasses.replace(text.config, eos_id=end))
    written = generate(ending, prompts, max_tokens=24)
    padded = np.pad(written, ((0, 0), (0, 24 - written.shape[1])))
    assert np.array_equal(padded, numbers["generate.sequences_with_eos"][:, 40:])


def test_text_from_words(text: LoadedModel, reference: Path) -> None:
    words = json.loads((reference / "text_a/generate_text.json").read_text())
    # The first prompt was cut to 40 ids there.
    prompt, decoded = words["prompts"][1], words["decoded"][1]
    assert complete(text, [prompt], sampling=GREEDY, max_tokens=24) == [decoded]


@pytest.mark.parametrize("guidance", [1, 5])
def test_pictures(guidance: int, vision: LoadedModel, reference: Path) -> None:
    numbers = golden(reference / "vision_full/generate.npz")
    captions = ["Fireworks over the city", "a red boat"]
    sampling = Sampling(top_k=1, guidance=guidance)
    frames = whole_frames(draw(vision, captions, sampling=sampling))
    assert [frame.row for frame in frames] == [0, 1]
    for row, frame in enumerate(frames):
        tokens = numbers[f"image.cfg{guidance}.tokens"][row]
        margins = numbers[f"image.cfg{guidance}.margins"][row]
        assert_same_codes([frame], tokens, margins[None])


@pytest.mark.parametrize("guidance", [1, 3])
def test_film_from_a_frame(guidance: int, vision: LoadedModel, reference: Path) -> None:
    numbers = golden(reference / "vision_full/generate.npz")
    ids = numbers["video.input_ids"] + 512 * numbers["video.vision_masks"]
    prompts = unpadded(ids, numbers["video.attention_mask"])
    drawn = generate(
        vision,
        prompts if guidance != 1 else prompts[:1],
        modality="vision",
        sampling=Sampling(top_k=1, guidance=guidance),
        max_tokens=514,
        stops=False,
    )
    tokens = numbers[f"video.cfg{guidance}.tokens"]
    margins = np.append(numbers[f"video.cfg{guidance}.margins"][0], 1.0)[:514]
    assert (drawn[0, 256::257] == vision.layout.end_of_frame).all()
    for first in np.flatnonzero(drawn[0] - 512 != tokens[0])[:1]:
        assert margins[first] < ROUNDING


def test_chat_about_a_picture(vision: LoadedModel, reference: Path) -> None:
    numbers = golden(reference / "vision_full/generate.npz")
    words = json.loads((reference / "vision_full/generate_meta.json").read_text())
    shown = numbers["chat.input_ids"][numbers["chat.vision_masks"]]
    codes = shown.reshape(-1, 257)[:, :256].astype(np.int32)
    message = Message("user", words["chat_question"], (codes,))
    pieces = list(reply(vision, [message], sampling=GREEDY, max_tokens=24))
    assert "".join(pieces) == words["chat_text"][0]


# Films and pictures as events


def test_a_film_goes_on_from_its_first_picture(tiny: LoadedModel) -> None:
    events = list(film(tiny, "x", frames=3, sampling=GREEDY, image_sampling=GREEDY, preview=True))
    frames = whole_frames(events)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].pixels.shape == (64, 64, 3)
    (picture,) = whole_frames(draw(tiny, ["x"], sampling=GREEDY))
    assert np.array_equal(picture.codes, frames[0].codes)
    unfinished = [event for event in events if isinstance(event, Frame) and not event.complete]
    assert {frame.index for frame in unfinished} == {0, 1, 2}
    phases = [event.phase for event in events if isinstance(event, Progress)]
    assert sorted(set(phases), key=phases.index) == ["drawing", "filming"]
    last = next(event for event in reversed(events) if isinstance(event, Progress))
    assert last.done == last.total == 2 * 65


def test_a_guided_film_leads_away_from_no_wish(tiny: LoadedModel) -> None:
    """What goes on without a wish has seen the same first picture."""
    guided = Sampling(top_k=1, guidance=3)
    events = film(tiny, "x", frames=3, sampling=guided, image_sampling=GREEDY)
    first, *others = whole_frames(events)
    past = tiny.layout.frames(first.codes[None], closed=False)
    wishes = [make_prompt(tiny.tokenizer, "x", "video"), unconditional_prompt(tiny.tokenizer)]
    drawn = generate(
        tiny,
        [[*wish, *past] for wish in wishes],
        modality="vision",
        sampling=guided,
        max_tokens=130,
        stops=False,
    )
    codes = drawn.reshape(2, 65)[:, :64] - tiny.layout.offset
    assert np.array_equal([frame.codes for frame in others], codes)


def test_prompts_that_leave_no_room(tiny: LoadedModel) -> None:
    long = "a red circle " * 400
    for what in (
        film(tiny, long, frames=1, sampling=GREEDY, image_sampling=GREEDY),
        reply(tiny, [Message("user", long)], sampling=GREEDY, max_tokens=9),
        reply(
            tiny,
            [Message("user", long, (np.zeros((1, 64), np.int32),))],
            sampling=GREEDY,
            max_tokens=9,
        ),
    ):
        with pytest.raises(ContextTooLong, match=r"shorten the (prompt|text)"):
            next(iter(what))
    with pytest.raises(ContextTooLong, match=r"show at most 15 \(--frames\)"):
        encode_media(tiny, np.zeros((16, 8, 8, 3), np.uint8))


def test_guidance_is_for_pictures(tiny: LoadedModel) -> None:
    guided = Sampling(temperature=0, guidance=2.0)
    said = [
        "".join(reply(tiny, [Message("user", "x")], sampling=s, max_tokens=9))
        for s in (GREEDY, guided)
    ]
    assert said[0] == said[1]


def test_frames_fill_up_as_they_come(tiny: LoadedModel) -> None:
    events = draw(tiny, ["x"], sampling=GREEDY, preview=True)
    *unfinished, whole = [event for event in events if isinstance(event, Frame)]
    for frame in unfinished:
        known = np.flatnonzero(frame.codes != frame.codes[-1]).max(initial=-1) + 1
        assert np.array_equal(frame.codes[:known], whole.codes[:known])


def test_text_models_make_no_pictures(text: LoadedModel) -> None:
    with pytest.raises(UsageError, match="text only"):
        next(draw(text, ["x"], sampling=GREEDY))
    with pytest.raises(UsageError, match="text only"):
        encode_media(text, np.zeros((1, 8, 8, 3), np.uint8))


def test_encoded_in_any_batch(tiny: LoadedModel) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (10, 50, 70, 3)).astype(np.uint8)
    codes = encode_media(tiny, frames)
    assert codes.shape == (10, 64)
    assert np.array_equal(codes[3:4], encode_media(tiny, frames[3:4]))


def test_codes_only_draws_no_markers_inside_a_frame(tiny: LoadedModel) -> None:
    flat = Sampling(temperature=50.0, codes_only=True)
    codes = [frame.codes for frame in whole_frames(draw(tiny, ["x"] * 8, sampling=flat))]
    assert np.max(codes) == tiny.config.vision_codes - 1
    free = [frame.codes for frame in whole_frames(draw(tiny, ["x"] * 8, sampling=Sampling(50.0)))]
    assert np.max(free) > tiny.config.vision_codes - 1


# Chunks, batches, seeds, ends


@pytest.mark.parametrize("chunk", [8, 64])
def test_read_in_chunks(chunk: int, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [list(range(3, 80)), [5, 6, 7]]
    whole = generate(tiny, prompts, max_tokens=20, stops=False)
    monkeypatch.setattr(decode, "PREFILL_CHUNKS", (chunk,))
    assert np.array_equal(whole, generate(tiny, prompts, max_tokens=20, stops=False))


@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [(1, 1), (5, 8), (300, 512), (600, 1024), (1025, 512), (1600, 2048), (2048, 2048), (2049, 512),
     (5000, 2048), (7000, 2048)],
)  # fmt: skip
def test_long_prompts_are_read_in_large_chunks(tokens: int, chunk: int) -> None:
    """The largest that pad no more than a quarter, or no more than chunks of 512 do."""
    assert decode.chunk_for(tokens) == chunk


@pytest.mark.parametrize("ways", [1, 3, 8, 64])
@pytest.mark.parametrize("tokens", [1, 100, 5000, 1_000_000])
def test_chunks_are_by_device(tokens: int, ways: int) -> None:
    """Each device of a ring reads as large a part as one alone would of its share."""
    chunk = decode.chunk_for(tokens, ways)
    assert chunk == ways * decode.chunk_for(-(-tokens // ways))
    slots = decode.cache_slots(tokens, tokens + chunk, ways)
    assert tokens <= slots <= max(tokens + chunk + 256 * ways, 256)
    assert slots % ways == 0


def test_rows_do_not_disturb_each_other(tiny: LoadedModel) -> None:
    prompts = [[1, 40, 41], [1, 300, 301, 302, 303], [1, 9]]
    options = {"max_tokens": 40, "stops": False, "sampling": Sampling(seed=3)}
    together = generate(tiny, prompts, **options)
    again = generate(tiny, prompts, **options)
    assert np.array_equal(together, again)
    assert np.array_equal(together[:1], generate(tiny, prompts[:1], **options))
    other = generate(tiny, prompts, **{**options, "sampling": Sampling(seed=4)})
    assert not np.array_equal(together, other)


def test_the_same_wish_twice_gives_two_pictures(tiny: LoadedModel) -> None:
    first, second = whole_frames(draw(tiny, ["x", "x"], sampling=Sampling(guidance=2.0)))
    assert not np.array_equal(first.codes, second.codes)


def test_progress_counts_prompt_and_answer(tiny: LoadedModel) -> None:
    events: list[Progress] = []
    generate(tiny, [list(range(100))], max_tokens=50, stops=False, on_progress=events.append)
    assert [event.phase for event in events] == ["reading", "writing", "writing"]
    assert [event.done for event in events[1:]] == [decode.DECODE_CHUNK, 50]
    assert all(event.done <= event.total for event in events)


def test_ends_when_all_rows_have(tiny: LoadedModel) -> None:
    free = generate(tiny, [[1, 40]], max_tokens=90, stops=False)
    end = int(free[0, 30])
    ending = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, eos_id=end))
    written = generate(ending, [[1, 40]], max_tokens=90)
    length = free[0].tolist().index(end) + 1
    assert written.tolist() == [free[0, :length].tolist()]


def test_answers_use_what_room_is_left(tiny: LoadedModel) -> None:
    long = Message("user", "a" * 2000)
    limit = tiny.config.max_length
    with pytest.raises(ContextTooLong, match=str(limit)):
        list(reply(tiny, [long], sampling=GREEDY, max_tokens=10))
    with pytest.raises(ContextTooLong, match=str(limit)):
        complete(tiny, ["x"], sampling=GREEDY, max_tokens=limit)
    clip = Message("user", "x", (np.zeros((20, 64), np.int32),))
    with pytest.raises(ContextTooLong, match="at most 14 frames"):
        list(reply(tiny, [clip], sampling=GREEDY, max_tokens=10))
    fitting = Message("user", "x", (np.zeros((14, 64), np.int32),))
    assert list(reply(tiny, [fitting], sampling=GREEDY, max_tokens=10_000))


def test_pictures_that_do_not_fit_are_refused_first(tiny: LoadedModel) -> None:
    with pytest.raises(ContextTooLong, match=r"^1 frame and a prompt .* shorten the prompt"):
        draw(tiny, ["x", "many words " * 500], sampling=GREEDY)


def test_films_that_do_not_fit_are_refused_first(tiny: LoadedModel) -> None:
    options = {"sampling": GREEDY, "image_sampling": GREEDY}
    with pytest.raises(ContextTooLong, match="at most") as caught:
        next(film(tiny, "x", frames=50, **options))
    room = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(whole_frames(film(tiny, "x", frames=room, **options))) == room


@pytest.mark.parametrize(("tokens", "slots"), [(1, 256), (256, 256), (257, 384), (385, 512)])
def test_cache_sizes_are_few(tokens: int, slots: int) -> None:
    assert decode.cache_slots(tokens, most=1 << 30) == slots


# Loading


def test_bfloat16_is_about_the_same(
    tiny: LoadedModel, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lwm_core")
    half = load_model(str(tiny_model), dtype="bfloat16")
    (told,) = caplog.messages
    assert str(tiny_model) in told
    assert "bfloat16" in told
    assert half.device in told
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    assert generate(half, [[1, 40]], max_tokens=8, stops=False).shape == (1, 8)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_what_draws_is_made_ready_for_what_is_drawn(
    tiny: LoadedModel, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many pictures at once, or of a film's frames one by one."""
    ready, drawn = [], []
    decoded = frame_batches.decode
    monkeypatch.setattr(
        "lwm_core.generate.make_ready_to_decode", lambda _, frames: ready.append(frames)
    )
    monkeypatch.setattr(
        frame_batches, "decode", lambda image, codes: drawn.append(codes) or decoded(image, codes)
    )
    made = draw(tiny, ["x"] * count, sampling=GREEDY)
    assert len(whole_frames(made)) == count
    if count == 1:
        made = film(tiny, "x", frames=2, sampling=GREEDY, image_sampling=GREEDY)
        assert len(whole_frames(made)) == 2
    sizes = {size for rows in ready for size in frame_batches.batches(tiny.vqgan.config, rows)}
    assert {len(codes) for codes in drawn} == sizes
    assert {codes.dtype for codes in drawn} == {np.dtype(np.int32)}


@pytest.mark.parametrize("mesh", ["fsdp=2,tp=2,dp=2", "fsdp=2,sp=2,dp=2"])
def test_a_mesh_of_many_writes_the_same(tiny: LoadedModel, tiny_model: Path, mesh: str) -> None:
    spread = load_model(str(tiny_model), mesh=mesh)
    assert spread.device == f"{tiny.device} as 8 devices"
    prompts = [[1, 40, 41], [1, 300]]
    ours = generate(spread, prompts, max_tokens=16, stops=False)
    assert np.array_equal(ours, generate(tiny, prompts, max_tokens=16, stops=False))


def test_a_folder_hides_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("nano", "other", "LargeWorldModel/LWM-Text-1M"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_model("nano") == registry.embedded_path()
    for folder in ("./nano", "nano/", "other", "LargeWorldModel/LWM-Text-1M", str(tmp_path)):
        assert find_model(folder) == Path(folder)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    for name, words in [
        ("nanno", "did you mean nano"),
        ("missing", "no model is called"),
        (str(tmp_path / "missing"), "no such file or directory"),
        ("./missing", "no such file or directory"),
    ]:
        with pytest.raises(ModelNotFound, match=words):
            find_model(name)
    with pytest.raises(FormatError, match="no weights are there"):
        load_model(str(tmp_path))
    (tmp_path / "params").touch()
    with pytest.raises(FormatError, match="the file is empty"):
        load_model(str(tmp_path))


def test_the_output_of_a_training_is_its_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").touch()
    with pytest.raises(ModelNotFound, match="has written no model yet"):
        find_model(str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_model(str(tmp_path)) == tmp_path / "model"
