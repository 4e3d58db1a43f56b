"""`lwm see`: ask about pictures and clips, or have them described."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lwm_cli import contexts, loading, options
from lwm_cli.dialogue import hold_dialogue
from lwm_cli.files import as_file, has_person, piped_text
from lwm_cli.session import Conversation
from lwm_cli.ui import Screen

if TYPE_CHECKING:
    from lwm_core.media import Clip


def run(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MEDIA|QUESTION", help="Pictures and clips, then what to ask about them."
        ),
    ],
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    kept: options.KeptContext = None,
    length: options.MostContext = None,
    frames: options.Frames = 8,
    start: options.Start = None,
    end: options.End = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    attention: options.Attention = "auto",
    as_json: options.AsJson = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Ask about pictures and clips.

    Without a question they are described; on a terminal you can then ask.
    """
    said = contexts.inspect(kept, shows=True, force=force)
    names, question = split_question(words, needs_media=not said)
    if said and not options.was_typed(context, "model"):
        model = said["name"]
    if question is None and "-" not in names:
        question = piped_text(is_needed=False) or None
    size = loading.picture_size(model)
    clips = [_read(name, frames, start, end, size) for name in names]
    with Screen(quiet=quiet, verbose=verbose) as screen:
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        settings = {
            "mesh": mesh,
            "dtype": dtype,
            "cache": cache,
            "quantize": quantize,
            "attention": attention,
        }
        conversation = Conversation.with_model(model, system)
        talk = contexts.load_talk(
            "see", conversation, screen, said, drawn, max_tokens,
            **settings, sees=True, context=length,
        )  # fmt: skip
        for clip in clips:
            talk.show_frames(clip.frames)
        if kept:
            contexts.establish(talk, kept, is_there=bool(said))
        asked = question or _description(clips)
        answer = talk.say(asked, echo=not as_json)
        if as_json:
            looked_at = [
                {"file": name, "seconds": clip.times.round(3).tolist()}
                for name, clip in zip(names, clips, strict=True)
            ]
            result = {"model": talk.model.name, "media": looked_at, "question": asked}
            typer.echo(json.dumps({**result, **answer.to_json()}, ensure_ascii=False))
        elif question is None and has_person():
            hold_dialogue(talk, frames)


def split_question(
    words: Sequence[str], *, needs_media: bool = True
) -> tuple[list[str], str | None]:
    """The names of files, and the last word if it is a question and no file.

    What has blanks or no file suffix and isn't there can only be a question, unless it is all
    that was given and there must be media.
    """
    *names, last = words
    is_file = last == "-" or os.path.exists(last) or re.fullmatch(r"\S*(/\S*[^?]|\.\w{1,5})", last)
    if (needs_media and not names) or is_file:
        return list(words), None
    return names, last


def _read(name: str, frames: int, start: float | None, end: float | None, size: int) -> Clip:
    from lwm_core.media import read_media

    with as_file(name) as path:
        return read_media(path, frames=frames, start=start, end=end, size=size)


def _description(clips: Sequence[Clip]) -> str:
    from lwm_core.tokens import DESCRIBE

    moves = any(len(clip.frames) > 1 for clip in clips)
    return DESCRIBE["video" if moves else "image"]
