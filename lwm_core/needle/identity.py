"""Which test of which model: where both are the same, so are the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lwm_core.identity import digest, identify
from lwm_core.needle.questions import NeedleConfig

if TYPE_CHECKING:
    from lwm_core.load import LoadedModel


@dataclass(frozen=True)
class Identity:
    """What the model and what the test is, as plain values; texts and weights by their digest."""

    model: Mapping[str, Any]
    test: Mapping[str, Any]

    @classmethod
    def of(cls, model: LoadedModel, config: NeedleConfig, passages: Sequence[str]) -> Identity:
        """Describe a model, down to its weights, and a test, down to its haystack."""
        text = "\0".join(passages).encode("utf-8", "surrogatepass")
        return cls(
            identify(model),
            # Read back from JSON, so that it equals what comes from a file.
            json.loads(json.dumps({**asdict(config), "haystack": digest(text)})),
        )

    @property
    def config(self) -> NeedleConfig:
        """The test. Raises UsageError for one that can't be, TypeError for what is none."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.test.items()
            if key != "haystack"
        }
        return NeedleConfig(**values)

    @property
    def digest(self) -> str:
        """A short name for it."""
        return digest(json.dumps([self.model, self.test], sort_keys=True).encode())

    def difference(self, other: Identity) -> str | None:
        """The first thing that is not the same in the other, in words."""
        ours, theirs = (
            {f"model's {key}": value for key, value in one.model.items()} for one in (self, other)
        )
        return differing(self.test, other.test) or differing(ours, theirs)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """The first key whose values are not the same, with both, in words."""
    for key in {**first, **second}:
        if first.get(key) != second.get(key):
            return f"{key}: {first.get(key)!r} != {second.get(key)!r}"
    return None
