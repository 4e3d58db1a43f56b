"""How fast the model runs here, beside the original: `python -m benchmarks.speed`.

The model has the shape that the original was timed with (58M parameters) and random weights.
A figure is the median of a few runs, after one that compiles. `--startup` times the command
`lwm see` instead, with nothing compiled yet and then with what that run has kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lwm_core
from lwm_core import backend, transformer
from lwm_core.checkpoint import read_config
from lwm_core.config import ModelConfig
from lwm_core.decode import generate
from lwm_core.execution import Execution
from lwm_core.load import LoadedModel
from lwm_core.media import write_video
from lwm_core.mesh import device_line, make_mesh
from lwm_core.registry import embedded_path
from lwm_core.sampling import Sampling
from lwm_core.train.language import LanguageState, language_step
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer
from lwm_core.types import Batch, Tokens

SHAPE = ModelConfig(
    text_vocab=32000,
    hidden=512,
    intermediate=1376,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    max_length=4096,
)

ORIGINAL = {
    "forward": (1195, 1195),
    "prefill": (1195, 1195),
    "decode": (12.4, 12.4),
    "train": (186, 256),
}
"""Tokens a second of the original (JAX, float32): least and most.

Measured on another machine of the size that README names. `forward` and `prefill` are both
compared with its forward pass, which computes the logits of every token.
"""

RECIPES = Path(lwm_core.__file__).parent / "recipes"


@dataclass(frozen=True)
class Lengths:
    """Tokens of a forward pass, a prefill and a training step; before decoding, and decoded."""

    whole: int = 2048
    before: int = 512
    decoded: int = 160


@dataclass(frozen=True)
class Figure:
    """One measurement: tokens a second, and the bytes that one token must read (decoding)."""

    what: str
    dtype: str
    speed: float
    bytes_per_token: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the original's speed, at its best, where that was timed."""
        return self.speed / ORIGINAL[self.what][1] if self.what in ORIGINAL else None


def seconds(run: Callable[[], float], repeats: int) -> float:
    """Median of what `run` returns, after a first run that compiles."""
    run()
    return statistics.median(run() for _ in range(repeats))


def clocked(work: Callable[[], object]) -> float:
    """Seconds until everything that `work` returns is computed."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def random_ids(config: ModelConfig, count: int) -> np.ndarray:
    """Text ids, int32 `[count]`."""
    return np.random.default_rng(0).integers(3, config.text_vocab, count, dtype=np.int32)


def one_row(ids: np.ndarray) -> Tokens:
    """Ids `[T]` as a batch of one row and one segment."""
    positions = np.arange(len(ids), dtype=np.int32)
    return Tokens(ids[None], positions[None], np.ones_like(positions)[None])


def time_forward(model: LoadedModel, lengths: Lengths, repeats: int) -> Figure:
    """One pass without a cache; logits of every token."""
    tokens = one_row(random_ids(model.config, lengths.whole))
    args = model.params, model.config, tokens, model.how
    took = seconds(lambda: clocked(lambda: transformer.forward(*args)), repeats)
    return Figure("forward", model.how.dtype.name, lengths.whole / took)


def answer(model: LoadedModel, prompt: int, count: int) -> Iterator[np.ndarray]:
    """Greedy generation behind a random prompt, in the pieces in which it comes."""
    ids = random_ids(model.config, prompt).tolist()
    greedy = Sampling(temperature=0)
    return generate(model, [ids], modality="text", sampling=greedy, max_tokens=count, stops=False)


def time_prefill(model: LoadedModel, lengths: Lengths, repeats: int) -> Figure:
    """A prompt into the cache, chunk by chunk, and one token behind it."""
    took = seconds(lambda: clocked(lambda: list(answer(model, lengths.whole, 1))), repeats)
    return Figure("prefill", model.how.dtype.name, lengths.whole / took)


def time_decode(model: LoadedModel, lengths: Lengths, repeats: int) -> Figure:
    """Single tokens behind a cached prompt; the clock starts after the first piece."""

    def seconds_per_token() -> float:
        pieces = answer(model, lengths.before, lengths.decoded)
        next(pieces)
        began = time.perf_counter()
        count = sum(ids.shape[1] for ids in pieces)
        return (time.perf_counter() - began) / count

    took = seconds(seconds_per_token, repeats)
    context = lengths.before + lengths.decoded // 2
    return Figure("decode", model.how.dtype.name, 1 / took, bytes_read(model, context))


def bytes_read(model: LoadedModel, context: int) -> float:
    """What a token can't do without: all weights but the embedding, and the cache so far."""
    config = model.config
    weights = transformer.count_parameters(config) - config.vocab * config.hidden
    cached = 2 * config.layers * config.kv_heads * config.head_dim * context
    return float((weights + cached) * model.how.dtype.itemsize)


def training(
    config: ModelConfig, optimizer: OptimizerConfig, how: Execution, rows: int, length: int
) -> Callable[[], object]:
    """Something that takes one step on equal rows; weights stay float32."""
    chain = make_optimizer(optimizer, steps=1000)
    step = jax.jit(partial(language_step, config, chain, how), donate_argnums=0)
    params = transformer.init(config, jax.random.key(0))
    state = LanguageState(jnp.int32(0), params, chain.init(params))
    row = one_row(random_ids(config, length))
    targets, weights = np.roll(row.ids, -1, axis=1), np.ones((1, length), np.float32)
    parts = row.ids, targets, row.positions, row.segments, weights
    batch = Batch(*(np.repeat(part, rows, axis=0) for part in parts))

    def one_step() -> object:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return one_step


def time_train(model: LoadedModel, lengths: Lengths, repeats: int) -> Figure:
    """One step of AdamW on one row."""
    step = training(model.config, OptimizerConfig("adamw"), model.how, 1, lengths.whole)
    took = seconds(lambda: clocked(step), repeats)
    return Figure("train", model.how.dtype.name, lengths.whole / took)


def time_nano(model: LoadedModel, lengths: Lengths, repeats: int) -> Figure:
    """One step of nano as its recipe says, on rows of 1024 tokens (of `model` only how it runs)."""
    document = tomllib.loads((RECIPES / "nano.toml").read_text())
    optimizer = OptimizerConfig(**document["optimizer"])
    rows, length = 8, lengths.whole // 2
    step = training(read_config(embedded_path()), optimizer, model.how, rows, length)
    took = seconds(lambda: clocked(step), repeats)
    return Figure("nano", model.how.dtype.name, rows * length / took)


TIMERS = {
    "forward": time_forward,
    "prefill": time_prefill,
    "decode": time_decode,
    "train": time_train,
    "nano": time_nano,
}


def random_model(config: ModelConfig, dtype: str) -> LoadedModel:
    """A model of this shape with random weights. It has no tokenizer: ids go in and come out."""
    params = transformer.init(config, jax.random.key(0))
    return LoadedModel(
        name="random",
        config=config,
        params=jax.tree.map(lambda weight: weight.astype(dtype), params),
        tokenizer=None,  # type: ignore[arg-type]
        vqgan=None,
        how=Execution(make_mesh(), jnp.dtype(dtype)),
        context=config.max_length,
        cache_dtype=jnp.dtype(dtype),
        defaults={},
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(size: int) -> float:
    """Bytes a second that all cores together read from an array of `size` bytes, at best."""
    parts = np.array_split(np.ones(size // 4, np.float32), cores())
    with ThreadPoolExecutor(len(parts)) as threads:
        times = [clocked(lambda: list(threads.map(np.max, parts))) for _ in range(7)]
    return size / min(times)


@dataclass(frozen=True)
class StartUp:
    """One run of `lwm see`, in seconds from its start; the speed is the one that it reports."""

    run: str
    first_words: float
    whole: float
    tokens: int
    speed: float


def time_start_up(model: str, repeats: int) -> Iterator[StartUp]:
    """`lwm see` on a clip: cold (nothing compiled yet), then warm, with what that has kept."""
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        write_video(clip, moving_square(), 8)
        environment = {**os.environ, "LWM_HOME": str(Path(scratch) / "home")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for run in ["cold", *["warm"] * repeats]:
            yield time_see(run, clip, model, environment)


def moving_square() -> np.ndarray:
    """A clip, uint8 `[16, 256, 256, 3]`: a red square moves right on black."""
    frames = np.zeros((16, 256, 256, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[96:160, 10 + 8 * index : 74 + 8 * index, 0] = 255
    return frames


def time_see(run: str, clip: Path, model: str, environment: dict[str, str]) -> StartUp:
    """Run the command once; its first words are there when its output begins."""
    command = [sys.executable, "-m", "lwm_cli", "see", str(clip), "what happens?", "-m", model]
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads could fill up
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        began = time.perf_counter()
        with subprocess.Popen(command, env=environment, **pipes) as running:
            running.stdout.read(1)
            first_words = time.perf_counter() - began
            running.stdout.read()
        whole = time.perf_counter() - began
        errors.seek(0)
        said = errors.read().decode()
    figures = re.search(r"(\d+) tokens(?: · (\d+) tok/s)?", said)
    if running.returncode or figures is None:
        sys.exit(f"lwm see failed: {said.strip()}")
    return StartUp(run, first_words, whole, int(figures[1]), float(figures[2] or 0))


def show_start_up(runs: Iterator[StartUp]) -> list[StartUp]:
    """Print the runs as they come."""
    print(f"{'lwm see':<10}{'first words, s':>16}{'whole, s':>10}{'tokens':>8}{'tok/s':>8}")
    shown = []
    for one in runs:
        figures = f"{one.first_words:>16.2f}{one.whole:>10.2f}{one.tokens:>8}{one.speed:>8.0f}"
        print(f"{one.run:<10}{figures}", flush=True)
        shown.append(one)
    return shown


def show_figures(figures: Iterator[Figure], bandwidth: float) -> list[Figure]:
    """Print the figures as they come, beside the original's and the memory's limit."""
    print(f"{'':<10}{'':<10}{'tok/s':>10}{'original':>10}{'ratio':>8}{'of memory speed':>18}")
    shown = []
    for one in figures:
        original = "-".join(f"{speed:g}" for speed in sorted({*ORIGINAL.get(one.what, ())}))
        ratio = f"{one.ratio:.1f}" if one.ratio else ""
        share = f"{one.speed * one.bytes_per_token / bandwidth:.0%}" if one.bytes_per_token else ""
        speeds = f"{one.speed:>10.1f}{original:>10}{ratio:>8}{share:>18}"
        print(f"{one.what:<10}{one.dtype:<10}{speeds}", flush=True)
        shown.append(one)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(TIMERS)}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="only this one")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--startup", action="store_true", help="time `lwm see` instead")
    parser.add_argument("--model", default="nano", help="of --startup (default: nano)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if unknown := set(options.what) - set(TIMERS):
        parser.error(f"{', '.join(unknown)} is nothing to measure; choose of {', '.join(TIMERS)}")
    return options


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """The figures that were asked for, in float32 and bfloat16."""
    config = replace(SHAPE, layers=1) if options.smoke else SHAPE
    lengths = Lengths(128, 64, 64) if options.smoke else Lengths()
    for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        model = random_model(config, dtype)
        for what in options.what or TIMERS:
            yield TIMERS[what](model, lengths, options.repeats)


def main() -> None:
    options = arguments()
    backend.prepare()
    print(f"{device_line(make_mesh())}, jax {jax.__version__}")
    if options.startup:
        content = {"startup": [asdict(r) for r in show_start_up(time_start_up(options.model, 2))]}
    else:
        bandwidth = read_bandwidth(2**24 if options.smoke else 2**29)
        print(f"memory: {bandwidth / 1e9:.1f} GB/s read by {cores()} threads")
        figures = show_figures(measure(options), bandwidth)
        content = {
            "memory_bytes_per_second": bandwidth,
            "figures": [{**asdict(f), "ratio": f.ratio} for f in figures],
        }
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
