"""The start of a command: it loads what it needs, and compiles what no run before it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

NEEDLESS = ("flax", "optax", "orbax", "gguf", "tokenizers", "huggingface_hub", "rich")
"""Packages for training, for other formats, for the Hub and for terminals."""

FILM_AND_SEE = f"""
import sys
from lwm_cli.app import main
model, wish, question, seed = sys.argv[1:]
film = ["film", wish, "-o", wish + ".mp4", "--frames", "2", "--seed", seed]
see = ["see", "red.png", question, "-n", "8"]
assert main([*film, "-m", model]) == 0
assert main([*see, "-m", model]) == 0
print([name for name in {NEEDLESS} if name in sys.modules])
"""


def film_and_see(*words: str, home: Path) -> str:
    """Run both commands in a process of its own; returns the last line that it prints."""
    ours = ("JAX_COMPILATION", "JAX_PERSISTENT", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    ended = subprocess.run(
        [sys.executable, "-c", FILM_AND_SEE, *words],
        cwd=home.parent,
        env={**kept, "LWM_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()[-1]


def programs(home: Path) -> set[str]:
    """The compiled programs that are kept."""
    return {path.name for path in (home / "xla").glob("*-cache")}


def test_a_second_run_loads_and_compiles_nothing_new(tiny_model: Path, tmp_path: Path) -> None:
    """Though it is asked for something else, in words of another length."""
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    home = tmp_path / "home"
    assert film_and_see(str(tiny_model), "a red star", "what is it?", "1", home=home) == "[]"
    compiled = programs(home)
    assert compiled
    film_and_see(str(tiny_model), "a blue circle", "which colour?", "2", home=home)
    assert programs(home) == compiled
