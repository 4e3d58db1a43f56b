"""What a long prompt takes, memory and time: `python -m benchmarks.long`.

The embedded model reads prompts far beyond the length that it was trained for (what it would say
then is noise) and writes one token, each prompt in a process of its own. Peak memory stands beside
what the keys and values of the prompt need, and the time per token of each chunk beside a straight
line over its position: more than that the attention to all tokens before can't explain.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from benchmarks.plot import Curve, plot
from lwm_core.decode import generate
from lwm_core.load import load_model
from lwm_core.mesh import device_line, make_mesh
from lwm_core.sampling import Sampling
from lwm_core.types import Progress

SHORT = 256
"""Tokens of the prompt whose peak is that of the program and its model."""
LENGTHS = tuple(4096 << doubling for doubling in range(6))
MODEL = "nano"
ALONE = "import sys; from benchmarks.long import print_reading; print_reading(int(sys.argv[1]))"
MOST_CACHES, MOST_ELSE = 2, 1e9
"""The peak should be no more than so many times the cache, and so many bytes beside."""
MOST_ABOVE_LINE = 1.25
"""No chunk should take more than so many times what the line says."""


@dataclass(frozen=True)
class Reading:
    """A prompt that was read: bytes, and seconds of each chunk, the first of which compiles.

    The seconds are those of all cores together, so that other programs do not count.
    `flops` are those of the attention of one token to one other in all layers.
    """

    tokens: int
    cache: int
    peak: int
    flops: int
    seconds: list[float]

    @property
    def limit(self) -> float:
        """The bytes that the peak should not exceed."""
        return MOST_CACHES * self.cache + MOST_ELSE

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.tokens // len(self.seconds)

    @property
    def positions(self) -> np.ndarray:
        """The middle of each chunk but the first."""
        return (np.arange(1, len(self.seconds)) + 0.5) * self.chunk

    @property
    def per_token(self) -> np.ndarray:
        """Seconds for a token in each chunk but the first."""
        return np.array(self.seconds[1:]) / self.chunk


def read(tokens: int) -> Reading:
    """Prefill in this process, whose peak it is."""
    model = load_model(MODEL, dtype="float32", context=tokens + 1)
    config = model.config
    ids = np.random.default_rng(0).integers(3, config.text_vocab, tokens).tolist()
    times = [time.process_time()]

    def note(progress: Progress) -> None:
        if progress.phase == "reading":
            times.append(time.process_time())

    options = {"modality": "text", "sampling": Sampling(temperature=0), "max_tokens": 1}
    list(generate(model, [ids], **options, on_progress=note))
    cache = 2 * config.layers * config.kv_heads * config.head_dim * model.how.dtype.itemsize
    flops = 4 * config.layers * config.heads * config.head_dim
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Reading(tokens, cache * tokens, peak, flops, np.diff(times).tolist())


def print_reading(tokens: int) -> None:
    """All that a process of its own does."""
    print(json.dumps(asdict(read(tokens))))


def read_alone(tokens: int) -> Reading:
    """Prefill in a process of its own."""
    program = [sys.executable, "-c", ALONE, str(tokens)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Line:
    """Least squares: seconds for a token at a position are `start + slope * position`."""

    start: float
    slope: float
    r2: float
    worst: float

    @classmethod
    def through(cls, reading: Reading) -> Line:
        """The line of a reading, and how well it fits: R², and the slowest chunk in its units."""
        x, y = reading.positions, reading.per_token
        slope, start = np.polyfit(x, y, 1)
        fitted = start + slope * x
        r2 = 1 - np.square(y - fitted).sum() / np.square(y - y.mean()).sum()
        return cls(float(start), float(slope), float(r2), float((y / fitted).max()))


def show(readings: Iterator[Reading]) -> list[Reading]:
    """Print the readings as they come; the first is the short one."""
    print(
        f"{'tokens':>8}{'cache, GB':>11}{'peak, GB':>10}{'more, GB':>10}{'limit, GB':>11}", end=""
    )
    print(f"{'s':>8}{'last chunk, tok/s':>19}")
    shown: list[Reading] = []
    for one in readings:
        shown.append(one)
        more = one.peak - shown[0].peak
        bytes_ = f"{one.cache / 1e9:>11.3f}{one.peak / 1e9:>10.2f}{more / 1e9:>10.2f}"
        speed = one.chunk / one.seconds[-1]
        times = f"{sum(one.seconds):>8.1f}{speed:>19.0f}"
        print(f"{one.tokens:>8}{bytes_}{one.limit / 1e9:>11.2f}{times}", flush=True)
    return shown


def picture(readings: Sequence[Reading], line: Line) -> Image.Image:
    """Time over position, and memory over length, side by side."""
    longest = readings[-1]
    ends = np.array([0, longest.tokens])
    length = [one.tokens / 1024 for one in readings]
    left = plot(
        f"{MODEL}, {longest.tokens} tokens",
        "position, in 1024 tokens",
        "ms per token",
        [
            Curve("least squares", ends / 1024, (line.start + line.slope * ends) * 1e3),
            Curve("a chunk", longest.positions / 1024, longest.per_token * 1e3, dots=True),
        ],
    )
    right = plot(
        "peak memory",
        "length of the prompt, in 1024 tokens",
        "GB",
        [
            Curve("at most", length, [one.limit / 1e9 for one in readings]),
            Curve("peak", length, [one.peak / 1e9 for one in readings], dots=True),
            Curve("keys and values", length, [one.cache / 1e9 for one in readings]),
        ],
    )
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left)
    both.paste(right, (left.width, 0))
    return both


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="8192 tokens: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (PNG)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    machine = f"{device_line(make_mesh())}, jax {jax.__version__}"
    print(f"{machine}; {MODEL}, float32")
    lengths = [8192] if options.smoke else LENGTHS
    readings = show(read_alone(tokens) for tokens in (SHORT, *lengths))
    line = Line.through(readings[-1])
    speed = readings[-1].flops / line.slope
    print(
        f"\nms per token: {line.start * 1e3:.3f} + {line.slope * 1e6:.3f} millionths of position",
        end="",
    )
    print(f" (attention at {speed / 1e9:.0f} GFLOP/s); R² {line.r2:.4f}")
    print(f"slowest chunk: {line.worst:.2f} times the line (at most {MOST_ABOVE_LINE})")
    if options.json:
        content = {
            "machine": machine,
            "readings": [asdict(one) for one in readings],
            "line": asdict(line),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        picture(readings, line).save(options.plot)


if __name__ == "__main__":
    main()
