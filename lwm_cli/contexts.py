"""`--context FILE`: what is read once, kept in a file, and asked about many times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lwm_cli import loading
from lwm_cli.talk import Talk
from lwm_core.distributed import are_several
from lwm_core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from lwm_cli.session import Conversation
    from lwm_cli.ui import Screen


def check_alone(option: str) -> None:
    """Raise UsageError for an option that several processes can't follow: each must have the file,
    and none has the whole cache."""
    if are_several():
        raise UsageError(f"{option} is for a single process, and several have joined: leave it out")


def inspect(path: Path | None, *, shows: bool, force: bool) -> Mapping[str, str]:
    """What a file says of the model that read it; nothing where one is to be written, or none is.

    `shows` is whether there is something to read. Raises UsageError, or FormatError for a file that
    is something else.
    """
    if path is None:
        if force:
            raise UsageError("--force overwrites a saved context; name it with --context")
        return {}
    check_alone("--context")
    if path.exists() and not force:
        return describe(path)
    if not shows:
        raise UsageError(f"{path}: nothing is there yet to keep; attach what it should hold")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} can't be a file; name another with --context")
    return {}


def describe(path: Path) -> Mapping[str, str]:
    """What a file says of the model that read it. Raises UsageError, FormatError."""
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.context import describe_context

    return describe_context(path)


def load_talk(
    task: str,
    conversation: Conversation,
    screen: Screen,
    said: Mapping[str, str],
    drawn: Mapping[str, Any],
    max_tokens: int,
    **settings: Any,
) -> Talk:
    """Load the model of a conversation, with the number formats that a context `said`.

    What was typed goes before those: `drawn` is for `loading.sampling_for`, `settings` for
    `loading.load`.
    """
    if said:
        screen.note(f"this context was read by {said['name']}")
    for option in ("dtype", "cache", "quantize"):
        settings[option] = settings[option] or said.get(option) or None
    model = loading.load(conversation.model, screen, **settings)
    seed = loading.seed_or_random(drawn["seed"])
    sampling = loading.sampling_for(task, model, **{**drawn, "seed": seed})
    return Talk(model, conversation, screen, sampling, max_tokens)


def reopen(talk: Talk) -> None:
    """Let a conversation that goes on have its context again, if it began with one."""
    from lwm_core.context import open_context

    if talk.conversation.context:
        path = Path(talk.conversation.context)
        talk.begin_with(open_context(path, talk.model), path)


def establish(talk: Talk, path: Path, *, is_there: bool) -> None:
    """Let a conversation begin with a context: the one of a file, or what was shown, kept there.

    Raises UsageError when the file holds something else than what was shown, OutputError when the
    disk has no room for it.
    """
    from lwm_core.context import open_context
    from lwm_core.generate import opening

    model, shown, system = talk.model, talk.take_shown(), talk.conversation.system
    is_asked = bool(system or shown.text or shown.media)
    ids = opening(model, shown, system) if is_asked else []
    if not is_there:
        _read_and_keep(talk, path, ids)
        return
    context = open_context(path, model)
    if ids and ids != context.ids:
        raise UsageError(
            f"{path} was read from something else than what is given now: leave that and -s "
            "out, name another file, or overwrite it with --force"
        )
    talk.begin_with(context, path)


def _read_and_keep(talk: Talk, path: Path, ids: list[int]) -> None:
    """Read ids, which may take hours: where they can't be kept then, they are asked about still."""
    from lwm_core.context import check_space, save_context
    from lwm_core.generate import read_context

    check_space(path, talk.model, len(ids))
    context = read_context(talk.model, ids, talk.screen.progress)
    try:
        save_context(path, talk.model, context)
    except OutputError as error:
        talk.screen.clear()
        typer.echo(f"lwm: neither the context nor this conversation is kept: {error}", err=True)
        talk.begin_with(context, None)
        return
    megabytes = path.stat().st_size / 1e6
    talk.screen.note(f"{len(ids)} tokens are kept in {path} ({megabytes:.1f} MB)")
    talk.begin_with(context, path)
