"""Chat templates of model files, which are programs: known wordings are recognised, none is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lwm_core.errors import FormatError
from lwm_core.tensor_files import read_json
from lwm_core.tokenizer_json import SETTINGS

FILE = "chat_template.jinja"
"""What the file of a template is called in a model directory."""


MOST = 1 << 20
"""Characters of a template; real ones have some thousand."""


@dataclass(frozen=True)
class ChatStyle:
    """How a conversation is worded; `system` opens one that brings no system message.

    `lwm` is the original's USER and ASSISTANT, which has a system message of its own; `chatml` has
    `<|im_start|>` and `<|im_end|>`, and without `system` begins with the first message.
    """

    name: Literal["lwm", "chatml"]
    system: str | None = None


LWM = ChatStyle("lwm")

# A line break is one in the template, or an escape of its language. A default is a literal between
# two marks: quotes or braces between them would be program.
_SYSTEM = re.compile(r"""<\|im_start\|>system(?:\n|\\n)([^'"{}<]+)<\|im_end\|>""")


def recognise(template: str | None) -> ChatStyle | None:
    """The wording that a template gives: that of LWM without one, None for an unknown one."""
    if template is None:
        return LWM
    if "<|im_start|>" not in template:
        return None
    system = _SYSTEM.search(template)
    return ChatStyle("chatml", system[1] if system else None)


def read_template(directory: Path) -> str | None:
    """The template of a model directory: a file of its own, or in `tokenizer_config.json`.

    None where there is none, or one of several must be chosen by name. Raises FormatError.
    """
    try:
        with (directory / FILE).open(encoding="utf-8") as file:
            return _checked(file.read(MOST + 1), directory / FILE)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise FormatError(f"{directory / FILE}: not readable as text; fetch it again") from error
    if not (directory / SETTINGS).is_file():
        return None
    template = read_json(directory / SETTINGS).get("chat_template")
    return _checked(template, directory / SETTINGS) if isinstance(template, str) else None


def _checked(template: str, path: Path) -> str:
    if len(template) > MOST:
        raise FormatError(f"{path}: a chat template of more than {MOST} characters is none")
    return template.encode("utf-8", "replace").decode()
