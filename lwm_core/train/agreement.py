"""Several processes of one run: what each has to say, and whether they mean the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from lwm_core.distributed import are_several
from lwm_core.errors import ClusterError

Plain = TypeVar("Plain")

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
LONGEST = 40
"""Characters of a value that are shown as they are; of a longer one it is the hash."""


def everyone(value: Plain) -> list[Plain]:
    """The values of all processes, of those that JSON knows, by number; each must ask."""
    if not are_several():
        return [value]
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, lengths, strict=True)]


def largest(numbers: Sequence[int]) -> list[int]:
    """The largest that any process has, of each of these numbers; each must ask."""
    if not are_several():
        return list(numbers)
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(np.array(numbers, np.int32)).max(0).tolist()


def versions() -> dict[str, str]:
    """What decides what a run computes: our code, and the versions of the packages it uses."""
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    of_others = {f"the version of {name}": version(name) for name in PACKAGES}
    return {"the code of lwm": code.hexdigest()[:16], **of_others}


def facts_of(document: Mapping[str, Any], of: str) -> dict[str, str]:
    """The values of a document by their names, each short enough for a line."""
    return {f"{of} {key}": short(json.dumps(value)) for key, value in sorted(document.items())}


def short(text: str) -> str:
    """A text, or, where it is long, a hash of it."""
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()[:16]


def check(facts: Mapping[str, str]) -> None:
    """See that all processes know the same facts of the run; each must ask.

    Raises ClusterError, in all of them, naming the first fact that differs and whose it is.
    """
    first, *others = everyone(dict(facts))
    for number, theirs in enumerate(others, 1):
        for name in sorted({*first, *theirs}):
            ours, other = first.get(name, "missing"), theirs.get(name, "missing")
            if ours != other:
                raise ClusterError(
                    f"the processes don't mean the same run: {name} is {other} in process "
                    f"{number}, but {ours} in the first; start all with the same"
                )
