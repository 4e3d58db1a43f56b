"""How a data set was made: what a run that goes on, and a training, compare with their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lwm_core.atomic import write_text
from lwm_core.errors import FormatError
from lwm_core.vqgan import VQGAN, fingerprint

MANIFEST = "tokens.json"


@dataclass(frozen=True)
class Manifest:
    """What the codes of a data set are: of which image tokenizer, and of which frames.

    `image_tokenizer` is its fingerprint, `model` the name that it was found by; `frame_codes` of
    `codes` different ones stand for a frame. `frames` and `fps` (the rate) are as `read_media`
    takes them, `tasks` as `examples` does.
    """

    model: str
    image_tokenizer: str
    codes: int
    frame_codes: int
    frames: int | None
    fps: float | None
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, image: VQGAN, **options: Any) -> Manifest:
        """Describe what an image tokenizer makes with some options (the fields of those names)."""
        sizes = image.config
        return cls(
            image_tokenizer=fingerprint(image),
            codes=sizes.codes,
            frame_codes=sizes.grid**2,
            **options,
        )

    def write(self, folder: Path) -> None:
        """Write it into the folder of the data set. Raises OutputError."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=2) + "\n")

    def misfit(self, image: VQGAN) -> str | None:
        """Why the codes are not those of an image tokenizer, or None where they are."""
        sizes = image.config
        if (self.frame_codes, self.codes) != (sizes.grid**2, sizes.codes):
            ours = f"{sizes.grid**2} of {sizes.codes}"
            return f"a frame is {self.frame_codes} of {self.codes} codes, not {ours}"
        if self.image_tokenizer != fingerprint(image):
            return f"the codes are those of {self.model}, whose image tokenizer is another"
        return None

    def difference(self, other: Manifest) -> str:
        """The options to give for what is not the same in another, as they are typed; or nothing.

        Of a model that has other weights now, none can be given.
        """
        options = [
            _option(name, getattr(self, name))
            for name in ("frames", "fps", "tasks")
            if getattr(self, name) != getattr(other, name)
        ]
        if self.image_tokenizer != other.image_tokenizer:
            was = " as it was then" if self.model == other.model else ""
            options.append(f"--model {self.model}{was}")
        return ", ".join(options)


def read_manifest(folder: Path) -> Manifest | None:
    """How the data set of a folder was made; None where none is. Raises FormatError."""
    path = folder / MANIFEST
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{**values, "tasks": tuple(values["tasks"])})
    except FileNotFoundError:
        return None
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} does not say how its data were made; tokenize anew") from error


def _option(name: str, value: int | float | tuple[str, ...] | None) -> str:
    """An option as it is typed."""
    if value is None:
        return f"no --{name}"
    return f"--{name} {','.join(value) if isinstance(value, tuple) else value}"
