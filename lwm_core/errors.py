"""What can go wrong, by kind. A message is one line: what was wrong and what to do."""

from __future__ import annotations


class LwmError(Exception):
    """Base of every error that lwm raises on purpose."""


class UsageError(LwmError):
    """What was asked for can't be meant: unknown name, missing path, impossible value."""


class ConfigError(UsageError):
    """A configuration key or value is wrong; the message names the key."""


class ModelNotFound(UsageError):
    """No model of that name; the message suggests the nearest."""


class TextOnly(UsageError):
    """A model that neither sees nor makes pictures, where that was asked for."""

    def __init__(self, model: str):
        super().__init__(f"{model} knows text only; -m nano sees and makes pictures")


class ContextTooLong(UsageError):
    """The input does not fit the context; the message says what would fit."""


class DoesNotFit(LwmError):
    """A job that needs more memory than the devices have; the message says what would fit."""


class MediaError(LwmError):
    """A picture or clip that can't be understood."""


class FormatError(LwmError):
    """A weight, tokenizer or configuration file that is not what it should be."""


class RecordError(LwmError):
    """A record of training data that lacks what is asked of it; the message names its number."""


class OutputError(LwmError):
    """A result that can't be written."""


class DownloadError(LwmError):
    """A model that can't be fetched."""


class ClusterError(LwmError):
    """Processes of several machines that don't find each other, or don't mean the same run."""


class TrainingError(LwmError):
    """Training that can't start or go on."""


class TrainingInterrupted(LwmError):
    """Training that was asked to stop by a signal, and has saved what it had."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, the host's or, as XLA puts it, a device's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
