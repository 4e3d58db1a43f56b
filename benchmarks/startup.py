"""What a short command costs, as a user waits for it: `python -m benchmarks.startup`.

`lwm see` on a clip and `lwm film` of eight frames, each as a whole command: first with nothing
compiled yet, then with what that run has kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lwm_core.media import write_video

FRAMES = 8


@dataclass(frozen=True)
class Command:
    """One run of a command, in seconds from its start; `first_words` of one that writes words."""

    name: str
    run: str
    first_words: float | None
    whole: float


def time_commands(model: str, repeats: int) -> Iterator[Command]:
    """Both commands: cold (nothing is compiled yet), then warm so many times."""
    with tempfile.TemporaryDirectory() as scratch:
        clip, film = Path(scratch) / "clip.mp4", Path(scratch) / "film.mp4"
        write_video(clip, moving_square(), 8)
        commands = {
            "see": [str(clip), "what happens?"],
            "film": ["fireworks over a city", "--frames", str(FRAMES), "-o", str(film), "--force"],
        }
        for name, words in commands.items():
            environment = {**os.environ, "LWM_HOME": str(Path(scratch) / name)}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            for run in ["cold", *["warm"] * repeats]:
                yield time_command(name, run, [name, *words, "-m", model], environment)


def moving_square() -> np.ndarray:
    """A clip, uint8 `[16, 256, 256, 3]`: a red square moves right on black."""
    frames = np.zeros((16, 256, 256, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[96:160, 10 + 8 * index : 74 + 8 * index, 0] = 255
    return frames


def time_command(name: str, run: str, words: list[str], environment: dict[str, str]) -> Command:
    """Run `lwm` once; its first words are there when its output begins."""
    command = [sys.executable, "-m", "lwm_cli", *words]
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads could fill up
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        began = time.perf_counter()
        with subprocess.Popen(command, env=environment, **pipes) as running:
            running.stdout.read(1)
            first_words = time.perf_counter() - began
            running.stdout.read()
        whole = time.perf_counter() - began
        errors.seek(0)
        if running.returncode:
            sys.exit(f"lwm {name} failed: {errors.read().decode().strip()}")
    return Command(name, run, first_words if name == "see" else None, whole)


def show(runs: Iterator[Command]) -> list[Command]:
    """Print the runs as they come."""
    print(f"{'':<12}{'':<8}{'first words, s':>16}{'whole, s':>10}")
    shown = []
    for one in runs:
        first = f"{one.first_words:.2f}" if one.first_words is not None else ""
        print(f"{'lwm ' + one.name:<12}{one.run:<8}{first:>16}{one.whole:>10.2f}", flush=True)
        shown.append(one)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--model", default="nano", help="default: nano")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="warm runs of each")
    parser.add_argument("--smoke", action="store_true", help="one of each: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    runs = show(time_commands(options.model, 1 if options.smoke else options.repeats))
    if options.json:
        content = {"commands": [asdict(one) for one in runs]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
