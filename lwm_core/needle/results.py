"""The file of a test's results: a line each, so that a run goes on where it was stopped.

The first line says which test of which model they are of. Every result is on the disk before the
next question is asked; whatever ends a run, the next one asks only what is missing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lwm_core.errors import FormatError, LwmError, OutputError, UsageError
from lwm_core.needle.identity import Identity
from lwm_core.needle.questions import NeedleCase, NeedleConfig, cases
from lwm_core.wording import Needle

KIND = "answers of lwm needle"


@dataclass(frozen=True)
class NeedleResult:
    """What the model answered, and for every asked needle whether its number was there.

    `present` says for every hidden needle whether the context really holds it.
    """

    case: NeedleCase
    answer: str
    found: tuple[bool, ...]
    present: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the long context."""
        return {
            "length": self.case.length,
            "round": self.case.round,
            "needles": [
                {**asdict(needle), "present": present}
                for needle, present in zip(self.case.needles, self.present, strict=True)
            ],
            "asked": [needle.city for needle in self.case.asked],
            "answer": self.answer,
            "found": list(self.found),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NeedleResult:
        """The result that these are the values of. Raises LookupError, TypeError, ValueError."""
        needles, present = {}, []
        for hidden in values["needles"]:
            needle = Needle(hidden["city"], hidden["number"], hidden["depth"])
            needles[needle.city] = needle
            present.append(hidden["present"])
        asked = tuple(needles[city] for city in values["asked"])
        case = NeedleCase(values["length"], values["round"], tuple(needles.values()), asked)
        result = cls(case, values["answer"], tuple(values["found"]), tuple(present))
        truths = (*result.found, *result.present)
        if len(result.found) != len(asked) or not all(isinstance(one, bool) for one in truths):
            raise ValueError("every number that is asked for is found or not")
        if not isinstance(result.answer, str):
            raise TypeError("an answer is text")
        return result


class Answers:
    """The results of one test of one model in a file that grows; no other run writes it meanwhile.

    `results` are those that are there. As a context manager it closes the file.
    """

    def __init__(self, path: Path, identity: Identity, *, fresh: bool = False):
        """Open a file, or begin one; with `fresh` the results that it holds are given up.

        A last line that was cut off while it was written is dropped. Raises UsageError for the
        file of another test, of another model or of a run that goes on, FormatError for one that
        is damaged or something else, and OutputError where the system refuses.
        """
        self.path = path
        self.results: list[NeedleResult] = []
        self._header = _line({"file": KIND, "model": identity.model, "test": identity.test})
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file; name another with --results")
        with _refusals(path):
            self._file = path.open("a+b")
        try:
            self._lock()
            self._go_on(identity, fresh)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *raised: object) -> None:
        with _refusals(self.path):  # it tries again to write what could not be written
            self._file.close()

    def add(self, result: NeedleResult) -> None:
        """Write a result; it is on the disk when this returns. Raises OutputError."""
        line = _line(result.to_json())
        with _refusals(self.path):
            self._file.write(line if self.results else self._header + line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.results.append(result)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: another run writes to it; wait for its end") from None
        except OSError:  # a file system without locks
            return

    def _go_on(self, identity: Identity, fresh: bool) -> None:
        """Read what is there, and cut off what is not wanted."""
        with _refusals(self.path):
            self._file.seek(0)
            content = self._file.read()
        lines = _whole_lines(content)
        if lines:
            there = _identity(self.path, lines[0])
            difference = there.difference(identity)
            if difference and not fresh:
                raise UsageError(
                    f"{self.path} holds answers of another test ({difference}): name another file "
                    "with --results, or give them up with --fresh"
                )
            if not fresh:
                self.results = _results(self.path, lines[1:], identity.config)
        elif not self._header.startswith(content):
            raise _not_ours(self.path)
        with _refusals(self.path):
            self._file.truncate(sum(map(len, lines)) if self.results else 0)


def read_answers(path: Path) -> tuple[Identity, list[NeedleResult]]:
    """All results of a file whose test is complete, and what they are of.

    Raises UsageError for a file that can't be opened or is not complete, FormatError for one that
    is damaged or something else.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file")
    try:
        lines = _whole_lines(path.read_bytes())
    except OSError as error:
        raise UsageError(f"can't open {path}: {error.strerror}") from error
    identity = _identity(path, lines[0] if lines else b"")
    if len(lines) - 1 < identity.config.count:
        raise UsageError(
            f"{path} has {len(lines) - 1} of {identity.config.count} answers: run that test again "
            "to ask what is missing"
        )
    return identity, _results(path, lines[1:], identity.config)


def _whole_lines(content: bytes) -> list[bytes]:
    """The lines with their ends; without a last one that has none."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _identity(path: Path, line: bytes) -> Identity:
    """What the first line says. Raises FormatError."""
    try:
        values = json.loads(line)
        if values["file"] != KIND:
            raise _not_ours(path)
        identity = Identity(dict(values["model"]), dict(values["test"]))
        _ = identity.config
    except (LookupError, TypeError, ValueError, RecursionError, LwmError) as error:
        raise _not_ours(path) from error
    return identity


def _results(path: Path, lines: Sequence[bytes], config: NeedleConfig) -> list[NeedleResult]:
    """The results of some questions of a test, each there at most once. Raises FormatError."""
    results: list[NeedleResult] = []
    try:
        missing = set(cases(config))
        for line in lines:
            result = NeedleResult.from_json(json.loads(line))
            missing.remove(result.case)
            results.append(result)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{path}, line {len(results) + 2}: no answer of this test, or one that is there "
            "already; take the line out, or give up all answers with --fresh"
        ) from error
    return results


def _not_ours(path: Path) -> FormatError:
    return FormatError(f"{path} holds no {KIND}; name another file")


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Raise OutputError where the system refuses."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"can't keep answers in {path}: {error.strerror}; name another file with --results"
        ) from error
