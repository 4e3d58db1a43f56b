"""How fast pictures go in and out: `python -m benchmarks.vision`.

Frames a second of the image tokenizer at the published size, with random weights, beside the same
network written down plainly, in one run; and the seconds that eight frames of an hour of film take,
which is rendered first. A figure is the least of a few runs. Those of the tokenizers take turns;
each comes behind one of the same, as the batches of a clip do, and finds the memory that it needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np

from lwm_cli.heap import start_with_heap
from lwm_core import backend, vqgan
from lwm_core.bench import clocked
from lwm_core.config import VQConfig
from lwm_core.frame_batches import frames_at_once
from lwm_core.media import read_media

TINY = VQConfig(resolution=16, base_channels=32, channel_mult=(1, 2), res_blocks=1, codes=64)
SIZE = 1280, 720
RATE = 30
GROUPS_APART = 32
"""The original's number of groups, where a layer has as many channels."""

Weights = dict[str, jax.Array]


def convolve(weights: Weights, name: str, x: jax.Array, **options: object) -> jax.Array:
    """A convolution, `[F, H, W, C]`."""
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = weights[f"{name}.kernel"]
    convolved = jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)
    return convolved + weights[f"{name}.bias"]


def normalise(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    """Group norm as it is defined, then silu."""
    grouped = x.reshape(*x.shape[:3], min(GROUPS_APART, x.shape[3]), -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    x = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return jax.nn.silu(x * weights[f"{name}.scale"] + weights[f"{name}.bias"])


def block(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    """A residual block."""
    h = convolve(weights, f"{name}.conv1", normalise(weights, f"{name}.norm1", x))
    h = convolve(weights, f"{name}.conv2", normalise(weights, f"{name}.norm2", h))
    changes = f"{name}.shortcut.kernel" in weights
    return h + (convolve(weights, f"{name}.shortcut", x) if changes else x)


def blocks(weights: Weights, name: str, x: jax.Array, count: int) -> jax.Array:
    for index in range(count):
        x = block(weights, f"{name}.{index}", x)
    return x


def plain_encode(config: VQConfig, weights: Weights, pixels: jax.Array) -> jax.Array:
    """Pixels to codes, as the original's code reads."""
    levels = len(config.channel_mult)
    x = convolve(weights, "encoder.conv_in", pixels)
    for level in range(levels):
        x = blocks(weights, f"encoder.blocks.{level}", x, config.res_blocks)
        if level + 1 < levels:
            half = {"window_strides": (2, 2), "padding": ((0, 1), (0, 1))}
            x = convolve(weights, f"encoder.downs.{level}", x, **half)
    x = normalise(weights, "encoder.norm_out", blocks(weights, "encoder.mid", x, 2))
    x = convolve(weights, "quant_conv", convolve(weights, "encoder.conv_out", x))
    codes = weights["codebook"]
    flat = x.reshape(-1, config.code_dim)
    distance = (flat**2).sum(1, keepdims=True) + (codes**2).sum(1) - 2 * flat @ codes.T
    return distance.argmin(1).reshape(len(pixels), -1)


def plain_decode(config: VQConfig, weights: Weights, codes: jax.Array) -> jax.Array:
    """Codes to pixels, as the original's code reads."""
    levels = len(config.channel_mult)
    vectors = weights["codebook"][codes]
    z = vectors.reshape(-1, config.grid, config.grid, config.code_dim)
    z = convolve(weights, "decoder.conv_in", convolve(weights, "post_quant_conv", z))
    z = blocks(weights, "decoder.mid", z, 2)
    for level in range(levels):
        z = blocks(weights, f"decoder.blocks.{level}", z, config.res_blocks + 1)
        if level + 1 < levels:
            z = convolve(weights, f"decoder.ups.{level}", z.repeat(2, axis=1).repeat(2, axis=2))
    z = convolve(weights, "decoder.conv_out", normalise(weights, "decoder.norm_out", z))
    return jnp.clip(z, -1.0, 1.0)


def least_seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Of works that take turns, each time the second of two."""
    rounds = [
        {name: [clocked(work), clocked(work)][1] for name, work in works.items()}
        for _ in range(repeats)
    ]
    return {name: min(one[name] for one in rounds) for name in works}


def time_tokenizer(config: VQConfig, batch: int, repeats: int) -> Iterator[tuple[str, float]]:
    """Frames a second, in and out, of ours and of the plain one."""
    model = vqgan.create(config)
    weights = jax.tree.map(jnp.asarray, vqgan.to_tensors(model))
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (batch, config.resolution, config.resolution, 3))
    codes = random.integers(0, config.codes, (batch, config.grid**2))
    frames = {"encode": pixels.astype(np.float32), "decode": codes}
    ours = {"encode": vqgan.encode, "decode": vqgan.decode}
    plain = {"encode": plain_encode, "decode": plain_decode}
    for what, given in frames.items():
        port = jax.jit(partial(plain[what], config))
        works = {"ours": partial(ours[what], model, given), "plain": partial(port, weights, given)}
        for whose, seconds in least_seconds(works, repeats).items():
            yield f"{what}, {whose}", batch / seconds


def render(path: Path, seconds: int, part: int) -> None:
    """A film in 720p H.264: `part` seconds of moving gradients and grain, again and again."""
    width, height = SIZE
    rows, columns = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).integers(0, 12, (height, width, 1))
    count = RATE * part
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets = []
        for index in range(count):
            waves = [rows // 4 + index, columns // 6 + 2 * index, (rows + columns) // 8 - index]
            pixels = np.abs(np.stack(waves, axis=-1) % 480 - 240) + np.roll(grain, 7 * index, 1)
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8)))
        packets += stream.encode(None)
        for turn in range(seconds // part):
            for one in packets:
                again = av.Packet(bytes(one))
                again.pts, again.dts = one.pts + turn * count, one.dts + turn * count
                again.is_keyframe, again.time_base, again.stream = (
                    one.is_keyframe, one.time_base, stream,
                )  # fmt: skip
                container.mux(again)


def time_film(seconds: int, part: int, repeats: int) -> float:
    """Seconds until eight frames are there, the file being in the system's cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        render(path, seconds, part)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            read_media(path, frames=8)
            times.append(time.perf_counter() - began)
    return min(times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision", description=__doc__)
    parser.add_argument("--batch", type=int, metavar="N", help="frames at once; as lwm does if not")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    backend.prepare()
    figures = {}
    config = TINY if options.smoke else VQConfig()
    batch = options.batch or frames_at_once(config)
    for what, speed in time_tokenizer(config, batch, options.repeats):
        figures[what] = speed
        print(f"{what:<16}{speed:>10.3f} frames/s", flush=True)
    length, part = (2, 1) if options.smoke else (3600, 20)
    figures["film"] = time_film(length, part, options.repeats)
    print(f"8 frames of {length} s of film: {figures['film']:.2f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    start_with_heap()
    main()
