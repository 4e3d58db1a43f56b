"""Shell completion: the scripts in `completions/`, and what keeps every TAB fast.

`python -m lwm_cli.completions` writes the scripts anew; `lwm --install-completion` installs the
same script for the shell it runs in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH = "_LWM_COMPLETE"
SCRIPTS = {"bash": "lwm.bash", "zsh": "_lwm", "fish": "lwm.fish"}


@contextmanager
def without_rich() -> Iterator[None]:
    """Hide rich from Typer while a shell asks for completions.

    Typer would import it (100 ms a TAB) to strip markup from help texts, and ours have none.
    """
    if SWITCH not in os.environ or "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's way to say "not installed"
    try:
        yield
    finally:
        del sys.modules["rich"]


def script(shell: str) -> str:
    """The completion script for `shell` ("bash", "zsh" or "fish"), as the program prints it."""
    import subprocess

    asked = subprocess.run(
        [sys.executable, "-m", "lwm_cli"],
        env=os.environ | {SWITCH: f"source_{shell}"},
        capture_output=True,
        check=True,
        text=True,
    )
    return asked.stdout.strip() + "\n"


def write_scripts(folder: Path) -> None:
    """Write every shell's script into `folder`."""
    for shell, name in SCRIPTS.items():
        (folder / name).write_text(script(shell), encoding="utf-8")


if __name__ == "__main__":
    write_scripts(Path(__file__).parent.parent / "completions")
