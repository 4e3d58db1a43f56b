"""What a model is asked for: answers, pictures, films."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from lwm_core.context import Context
from lwm_core.decode import AS_NEEDED, Room, generate, read_context
from lwm_core.errors import ContextTooLong, TextOnly
from lwm_core.frame_batches import decode_frames, encode_frames, make_ready_to_decode
from lwm_core.load import LoadedModel
from lwm_core.media import prepare
from lwm_core.sampling import Sampling
from lwm_core.tokens import Message, chat_prompt, make_prompt, opening_ids, unconditional_prompt
from lwm_core.types import Frame, Progress
from lwm_core.vqgan import VQGAN

__all__ = [
    "Message",
    "complete",
    "draw",
    "encode_media",
    "film",
    "opening",
    "read_context",
    "reply",
]

OnProgress = Callable[[Progress], None]


def encode_media(model: LoadedModel, frames: np.ndarray) -> np.ndarray:
    """Frames of any size, uint8 `[F, H, W, 3]`, to codes, int32 `[F, frame_codes]`.

    Raises TextOnly, and ContextTooLong, before any work, for
    more frames than its context holds.
    """
    image = _image_tokenizer(model)
    room = model.context // model.layout.frame_tokens
    if len(frames) > room:
        raise ContextTooLong(
            f"{len(frames)} frames are more than the context of {model.name} holds "
            f"({model.context} tokens): show at most {room} (--frames)"
        )
    return encode_frames(image, prepare(frames, image.config.resolution))


def _image_tokenizer(model: LoadedModel) -> VQGAN:
    if model.vqgan is None:
        raise TextOnly(model.name)
    return model.vqgan


def opening(model: LoadedModel, shown: Message, system: str | None = None) -> list[int]:
    """Ids of what a conversation is to be about, for `decode.read_context` and `reply`.

    Raises UsageError for media that the model can't talk about.
    """
    return opening_ids(model.tokenizer, model.layout, shown, model.style, system)


def reply(
    model: LoadedModel,
    messages: Sequence[Message],
    *,
    sampling: Sampling,
    max_tokens: int,
    opening: Sequence[int] = (),
    context: Context | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[str]:
    """The assistant's answer to a conversation, piece by piece as it is written, without guidance.

    The conversation may have an `opening`, what `opening` gave or a file held; what a
    `context` holds of it all is not read again, and it then holds the answer too. Ends at the end
    id or where the model's context is full. Raises ContextTooLong when the conversation leaves no
    room for an answer; the message says how many frames would fit.
    """
    prompt = chat_prompt(model.tokenizer, model.layout, messages, model.style, opening)
    room = model.context - len(prompt)
    if room < 1:
        raise ContextTooLong(_too_long(model, messages, len(prompt)))
    stream = model.tokenizer.stream()
    for ids in generate(
        model,
        [prompt],
        modality="text",
        sampling=replace(sampling, guidance=1.0),
        max_tokens=min(max_tokens, room),
        context=context,
        on_progress=on_progress,
    ):
        if piece := stream.feed(ids[0].tolist()):
            yield piece
    if piece := stream.flush():
        yield piece


def _too_long(model: LoadedModel, messages: Sequence[Message], length: int) -> str:
    """What to say when a conversation does not fit, in frames if it has any."""
    message = f"{length} tokens are more than the {model.context} of {model.name}"
    frames = sum(len(codes) for one in messages for codes in one.media)
    over = -(-(length + 1 - model.context) // model.layout.frame_tokens)
    if frames <= over:
        return f"{message}: shorten the text, or give a longer --ctx"
    return f"{message}: show at most {frames - over} frames (--frames), not {frames}"


def complete(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    sampling: Sampling,
    max_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """What the model writes behind each prompt, all in one batch, without guidance."""
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    parts = generate(
        model,
        ids,
        modality="text",
        sampling=replace(sampling, guidance=1.0),
        max_tokens=max_tokens,
        on_progress=on_progress,
    )
    written = np.concatenate(list(parts), axis=1)
    eos = model.tokenizer.eos_id
    return [model.tokenizer.decode(_until(row.tolist(), eos)) for row in written]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def draw(
    model: LoadedModel, prompts: Sequence[str], *, sampling: Sampling, preview: bool = False
) -> Iterator[Progress | Frame]:
    """One picture for each prompt, in one batch; with `preview` also what is there so far.

    Raises ContextTooLong before any work when the context does not hold prompt and picture.
    """
    return _pictures(model, _draw(model, prompts, sampling), len(prompts), preview)


def film(
    model: LoadedModel,
    prompt: str,
    *,
    frames: int,
    sampling: Sampling,
    image_sampling: Sampling,
    preview: bool = False,
) -> Iterator[Progress | Frame]:
    """A film: its first frame is drawn as a picture, the others follow from it.

    Raises ContextTooLong before any work when the context does not hold so many frames.
    """
    wish = make_prompt(model.tokenizer, prompt, "video")
    _check_room(model, wish, frames)

    def parts() -> Iterator[_Part]:
        prompt_and_frame = len(wish) + model.layout.frame_tokens
        room = Room(prompt_and_frame, prompt_and_frame + (frames - 1) * model.layout.frame_tokens)
        for part in _draw(model, [prompt], image_sampling, room):
            yield part
        if frames > 1:
            begun = part.codes[:, : model.layout.frame_codes]
            yield from _frames(model, [wish], begun, frames - 1, sampling)

    yield from _pictures(model, parts(), 1, preview)


def _check_room(model: LoadedModel, wish: Sequence[int], frames: int) -> None:
    """Raise TextOnly, or ContextTooLong, unless so many frames can be made behind a prompt."""
    _image_tokenizer(model)
    room = (model.context - len(wish)) // model.layout.frame_tokens
    if frames > room:
        what_to_do = f"make at most {room} (--frames)" if room > 0 else "shorten the prompt"
        raise ContextTooLong(
            f"{frames} frame{'s' * (frames > 1)} and a prompt of {len(wish)} tokens are more than "
            f"the context of {model.name} holds ({model.context} tokens): {what_to_do}"
        )


class _Part(NamedTuple):
    """All codes, `[rows, n]`, that were drawn so far behind the frames that had `begun`.

    In the end there are `total`; that of a frame's end is one of them.
    """

    phase: str
    begun: int
    codes: np.ndarray
    total: int


def _draw(
    model: LoadedModel,
    prompts: Sequence[str],
    sampling: Sampling,
    room: Room = AS_NEEDED,
) -> Iterator[_Part]:
    """The codes of one picture for each prompt."""
    wishes = [make_prompt(model.tokenizer, prompt, "image") for prompt in prompts]
    _check_room(model, max(wishes, key=len), 1)
    nothing = np.zeros((0, model.config.frame_codes), np.int32)
    return _frames(model, wishes, nothing, 1, sampling, room)


def _frames(
    model: LoadedModel,
    wishes: list[list[int]],
    begun: np.ndarray,
    count: int,
    sampling: Sampling,
    room: Room = AS_NEEDED,
) -> Iterator[_Part]:
    """Draw `count` frames behind each wish and the frames that have `begun`, as codes.

    Under guidance the prompt without a wish is followed by the begun frames too.
    """
    layout, total = model.layout, count * model.layout.frame_tokens
    prompts = wishes
    if sampling.guidance != 1:
        prompts = wishes + [unconditional_prompt(model.tokenizer)] * len(wishes)
    past = layout.frames(begun, closed=False)
    drawn = np.zeros((len(wishes), 0), np.int32)
    for ids in generate(
        model,
        [prompt + past for prompt in prompts],
        modality="vision",
        sampling=sampling,
        max_tokens=total,
        stops=False,
        room=room,
    ):
        drawn = np.concatenate([drawn, ids - layout.offset], axis=1)
        yield _Part("filming" if past else "drawing", len(begun), drawn, total)


def _pictures(
    model: LoadedModel, parts: Iterator[_Part], rows: int, preview: bool
) -> Iterator[Progress | Frame]:
    """Progress and pictures; one part of the codes is drawn while the one before is shown."""
    image, layout, shown = _image_tokenizer(model), model.layout, 0
    ready = partial(make_ready_to_decode, image, rows)
    for part in _one_ahead(parts, meanwhile=ready):
        yield Progress(part.phase, part.codes.shape[1], part.total, "codes")
        whole = part.begun + part.codes.shape[1] // layout.frame_tokens
        last = part.begun + part.total // layout.frame_tokens
        for frame in range(shown, min(last, whole + preview)):
            begin = (frame - part.begun) * layout.frame_tokens
            codes = part.codes[:, begin : begin + layout.frame_codes]
            yield from _show(model, codes, frame, frame < whole)
        shown = whole


def _one_ahead(parts: Iterator[_Part], meanwhile: Callable[[], None]) -> Iterator[_Part]:
    """Parts as they come from a thread, which makes the next while one is in use.

    `meanwhile` is called while it makes the first.
    """
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, parts, None)
        meanwhile()
        while part := coming.result():
            coming = maker.submit(next, parts, None)
            yield part


def _show(model: LoadedModel, codes: np.ndarray, index: int, complete: bool) -> Iterator[Frame]:
    """Frame `index` of every row; codes `[rows, n]` that are still to come look like the last."""
    if not codes.size:
        return
    missing = model.layout.frame_codes - codes.shape[1]
    codes = np.pad(codes, ((0, 0), (0, missing)), mode="edge")
    for row, pixels in enumerate(decode_frames(_image_tokenizer(model), codes)):
        yield Frame(row, index, pixels, complete, codes[row])
