"""What went wrong, in one line for a person, and the exit code that goes with it."""

from __future__ import annotations

import typer

from lwm_core.errors import LwmError, TrainingInterrupted, UsageError, is_out_of_memory

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
OF_SIGNALS = 128
"""Shells add it to the number of the signal that ended a program: 130 is Ctrl-C, 143 SIGTERM."""


def explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    text = " ".join(str(error).split())
    match error:
        case TrainingInterrupted():
            return text, OF_SIGNALS + error.signal
        case LwmError():
            return text, WRONG_USAGE if isinstance(error, UsageError) else FAILED
        case typer.TyperException():
            return _explain_usage(error), error.exit_code
        case OSError(strerror=str(reason)):
            return f"{error.filename}: {reason}" if error.filename else reason, FAILED
    if is_out_of_memory(error):
        return "out of memory; a shorter context, fewer frames or fewer rows need less", FAILED
    return f"unexpected {type(error).__name__}: {text[:300]} (--debug shows where)", FAILED


def _explain_usage(error: typer.TyperException) -> str:
    """Typer's own message, with the help that would have answered it."""
    text = " ".join(error.format_message().split()).removesuffix(".")
    text = text.replace("Value error, ", "")  # of the library that checks types
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context else ""
    return text[:1].lower() + text[1:] + hint
