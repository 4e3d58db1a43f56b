"""`lwm chat`: talk with the model, about text files, pictures and clips too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lwm_cli import contexts, options
from lwm_cli.dialogue import attach_file, hold_dialogue, read_attachment
from lwm_cli.files import has_person, piped_text
from lwm_cli.session import Conversation
from lwm_cli.ui import Screen
from lwm_core.errors import UsageError


def run(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to say; without it, a dialogue begins."),
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    attach: options.Attach = None,
    go_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with the last conversation.")
    ] = False,
    kept: options.KeptContext = None,
    length: options.MostContext = None,
    frames: options.Frames = 8,
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
    """Talk with the model.

    A prompt, piped text, or both joined get one answer; without either a dialogue begins.
    """
    text = _opening(prompt, is_piped_attached="-" in (attach or ()))
    if as_json and not text:
        raise UsageError("--json answers one prompt; give it as an argument or through a pipe")
    if go_on and kept:
        raise UsageError("-c goes on with the context that it began with; leave out --context")
    said = contexts.inspect(kept, shows=bool(attach), force=force)
    is_model_typed = options.was_typed(context, "model")
    if go_on:
        conversation = _latest(system, model if is_model_typed else None)
        if conversation.context:
            said = contexts.describe(Path(conversation.context))
    else:
        name = said["name"] if said and not is_model_typed else model
        conversation = Conversation.with_model(name, system)
    attached = [(name, read_attachment(name, frames, conversation.model)) for name in attach or ()]
    with Screen(quiet=quiet, verbose=verbose) as screen:
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        settings = {
            "mesh": mesh,
            "dtype": dtype,
            "cache": cache,
            "quantize": quantize,
            "attention": attention,
        }
        talk = contexts.load_talk(
            "chat", conversation, screen, said, drawn, max_tokens, **settings, context=length
        )
        contexts.reopen(talk)
        for name, content in attached:
            attach_file(talk, name, content)
        if kept:
            contexts.establish(talk, kept, is_there=bool(said))
        if not text:
            hold_dialogue(talk, frames)
            return
        answer = talk.say(text, echo=not as_json)
        if as_json:
            result = {"model": talk.model.name, "prompt": text, **answer.to_json()}
            typer.echo(json.dumps(result, ensure_ascii=False))


def _latest(system: str | None, model: str | None) -> Conversation:
    """The last conversation, with what is to be another from now on."""
    contexts.check_alone("-c")
    conversation = Conversation.latest()
    if conversation.context and system not in (None, conversation.system):
        raise UsageError("what it was told stands in the context that was read; leave out -s")
    if model is not None:
        conversation.switch(model)
    conversation.system = system or conversation.system
    return conversation


def _opening(prompt: str | None, *, is_piped_attached: bool) -> str:
    """What is said first: piped text, then the prompt; nothing where a dialogue should begin."""
    typed = "" if prompt in (None, "-") else prompt.strip()
    piped = "" if is_piped_attached else piped_text(is_needed=not typed)
    text = "\n\n".join(part for part in (piped, typed) if part)
    if not text and not has_person():
        raise UsageError("there is nothing to answer; give a prompt, or pipe text in")
    return text
