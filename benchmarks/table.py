"""All speeds in one table of Markdown, as README shows it: `python -m benchmarks.table FOLDER`.

What other benchmarks have written to the folder is read; what is missing there is measured first,
each benchmark in a process of its own. Begin with an empty folder for a table of one sitting.
Figures of the 58M shape and of training are medians, the others the best of their runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("peers", "speed", "training", "vision", "startup")
"""The benchmarks, and what their files are called."""
BESIDE = {
    ("decode after 512", "int8"): ["llama.cpp Q4_1"],
    ("decode after 2048", "int8"): ["llama.cpp Q4_1"],
    ("decode after 512", "float32"): ["transformers float32"],
    ("decode after 2048", "float32"): ["transformers float32"],
    ("prefill 2048", "bfloat16"): ["transformers bfloat16", "llama.cpp Q4_1"],
    ("prefill 2048", "int8"): ["transformers bfloat16", "llama.cpp Q4_1"],
}
"""What stands in the table of SmolLM2, and beside which other programs."""


class Row(NamedTuple):
    """What was measured, of lwm and of another."""

    what: str
    ours: float
    unit: str
    beside: float | None = None
    whose: str = ""

    def markdown(self) -> str:
        """A line of the table."""
        if self.beside is None:
            return f"| {self.what} | {_short(self.ours)} {self.unit} | | |"
        ratio = self.ours / self.beside
        beside = f"{self.whose}: {_short(self.beside)}"
        return f"| {self.what} | {_short(self.ours)} {self.unit} | {beside} | {ratio:.2f} × |"


def _short(number: float) -> str:
    """Three digits, or all of a larger number."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def all_rows(figures: dict[str, Any]) -> Iterator[Row]:
    """The table, from what each benchmark wrote."""
    yield from beside_programs(figures["peers"]["rows"])
    yield from beside_original(figures["speed"]["figures"])
    for numbers, speed in figures["training"]["tokens a second"].items():
        yield Row(f"nano, training, {numbers}", speed, "tok/s")
    vision = figures["vision"]
    for job in ("encode", "decode"):
        ours, plain = (vision[f"{job}, {whose}"] for whose in ("ours", "plain"))
        yield Row(f"image tokenizer, 256×256, {job}", ours, "frames/s", plain, "written plainly")
    yield Row("8 frames of an hour of 720p", vision["film"], "s")
    yield from whole_commands(figures["startup"]["commands"])


def beside_programs(rows: list[dict]) -> Iterator[Row]:
    """SmolLM2, at best of all rounds."""
    found = {(row["job"], f"{row['name']} {row['numbers']}"): row for row in rows}
    for (job, numbers), others in BESIDE.items():
        ours = found[job, f"lwm {numbers}"]
        share = f" ({ours['share']:.0%} of memory)" if ours["share"] else ""
        what, speed = f"SmolLM2-135M, {job}, {numbers}{share}", max(ours["speeds"])
        compared = [other for other in others if (job, other) in found]
        for other in compared:
            yield Row(what, speed, "tok/s", max(found[job, other]["speeds"]), other)
        if not compared:
            yield Row(what, speed, "tok/s")


def beside_original(figures: list[dict]) -> Iterator[Row]:
    """The shape of 58M parameters."""
    for one in figures:
        what = f"58M parameters, {one['job']}, {one['numbers']}"
        beside = one["speed"] / one["ratio"]
        yield Row(what, one["speed"], "tok/s", beside, "the original, float32")


def whole_commands(commands: list[dict]) -> Iterator[Row]:
    """The second runs, at best."""
    warm = [one for one in commands if one["run"] == "warm"]
    first_words = min(one["first_words"] for one in warm if one["name"] == "see")
    yield Row("`lwm see`, second run, to the first word", first_words, "s")
    whole = min(one["whole"] for one in warm if one["name"] == "film")
    yield Row("`lwm film`, second run, 8 frames", whole, "s")


def measured(name: str, folder: Path, node: Path | None) -> Any:
    """What a benchmark has written, or writes now."""
    path = folder / f"{name}.json"
    if not path.is_file():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        more = ["--node", str(node)] if name == "peers" and node else []
        command = [sys.executable, "-m", f"benchmarks.{name}", *more, "--json", str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(path.read_text(encoding="utf-8"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the figures")
    parser.add_argument("--node", type=Path, metavar="FOLDER", help="has node-llama-cpp")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = {name: measured(name, options.folder, options.node) for name in NAMES}
    print("| | lwm | beside | |\n|---|---|---|---|")
    print(*(row.markdown() for row in all_rows(figures)), sep="\n")


if __name__ == "__main__":
    main()
