"""`--context FILE`: what is read once, kept in a file, and asked about many times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lwm_core.errors import UsageError

if TYPE_CHECKING:
    from lwm_cli.talk import Talk


def inspect(path: Path | None, *, shows: bool, force: bool) -> Mapping[str, str]:
    """What a file says of the model that read it; nothing where one is to be written, or none is.

    `shows` is whether there is something to read. Raises UsageError, or FormatError for a file that
    is something else.
    """
    if path is None:
        if force:
            raise UsageError("--force overwrites a saved context; name it with --context")
        return {}
    if path.exists() and not force:
        from lwm_core import backend

        backend.prepare()  # before the next line brings in jax
        from lwm_core.context import describe_context

        return describe_context(path)
    if not shows:
        raise UsageError(f"{path}: nothing is there yet to keep; attach what it should hold")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} can't be a file; name another with --context")
    return {}


def establish(talk: Talk, path: Path, *, is_there: bool) -> None:
    """Let a conversation begin with a context: the one of a file, or what was shown, kept there.

    Raises UsageError when the file holds something else than what was shown.
    """
    from lwm_core.context import open_context, save_context
    from lwm_core.generate import opening, read_context

    model, shown, system = talk.model, talk.take_shown(), talk.conversation.system
    is_asked = bool(system or shown.text or shown.media)
    ids = opening(model, shown, system) if is_asked else []
    if is_there:
        context = open_context(path, model)
        if ids and ids != context.ids:
            raise UsageError(
                f"{path} was read from something else than what is given now: leave that and -s "
                "out, name another file, or overwrite it with --force"
            )
    else:
        context = read_context(model, ids, talk.screen.progress)
        save_context(path, model, context)
        megabytes = path.stat().st_size / 1e6
        talk.screen.note(f"{len(ids)} tokens are kept in {path} ({megabytes:.1f} MB)")
    talk.begin_with(context, path)
