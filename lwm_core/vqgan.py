"""The image tokenizer (VQGAN, Esser et al. 2021): pixels to a square of codes and back.

Pixels are float32 `[F, resolution, resolution, 3]` in [-1, 1]; codes are int32 `[F, grid * grid]`
in row-major order. A clip is a batch of frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lwm_core.config import VQConfig
from lwm_core.types import Array


class NormSilu(nnx.Module):
    """Group norm (Wu and He 2018, epsilon 1e-6), then silu.

    Sums are taken per channel first and scale and shift are folded into one multiply-add: on a
    CPU that is four times faster than normalising group by group.
    """

    def __init__(self, channels: int, config: VQConfig):
        self.groups = min(config.groups, channels)
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        size = channels // self.groups

        def group_mean(values: jax.Array) -> jax.Array:
            sums = values.reshape(batch, -1, channels).sum(axis=1)
            return sums.reshape(batch, self.groups, size).sum(axis=-1) / (height * width * size)

        mean = group_mean(x)
        variance = jnp.maximum(group_mean(x * x) - mean**2, 0.0)  # rounding may go below
        inverse = jax.lax.rsqrt(variance + 1e-6)
        scale = jnp.repeat(inverse, size, axis=1) * self.scale[...]
        shift = self.bias[...] - jnp.repeat(mean, size, axis=1) * scale
        return nnx.silu(x * scale[:, None, None] + shift[:, None, None])


def _conv(inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3, **options: Any) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs, **options)


def _doubled(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """A 3x3 convolution of `x` doubled by nearest neighbour, `[F, H, W, C]` to `[F, 2H, 2W, C]`.

    Of three neighbours two are equal and need one product, by the sum of their weights: an even
    and an odd row (and column) each see two of `x`, which is 4/9 of the work.
    """
    merged = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], x.dtype)
    kernels = jnp.einsum("yip,xjq,pqco->yxijco", merged, merged, conv.kernel[...])

    def at(row: int, column: int) -> jax.Array:
        around = ((1 - row, row), (1 - column, column))
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernels[row, column], (1, 1), around, None, None, layout
        )

    assert conv.bias is not None
    rows = [jnp.stack([at(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    batch, height, width, channels = x.shape
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels) + conv.bias[...]


class ResidualBlock(nnx.Module):
    """Norm, silu, 3x3 convolution, twice, added to the input (through 1x1 if channels change)."""

    def __init__(self, inputs: int, outputs: int, config: VQConfig, rngs: nnx.Rngs):
        self.norm1 = NormSilu(inputs, config)
        self.conv1 = _conv(inputs, outputs, rngs)
        self.norm2 = NormSilu(outputs, config)
        # Starting as the identity, a deep stack learns from the first step (Zhang et al. 2019).
        self.conv2 = _conv(outputs, outputs, rngs, kernel_init=nnx.initializers.zeros_init())
        self.shortcut = _conv(inputs, outputs, rngs, size=1) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (self.shortcut(x) if self.shortcut else x)


class Encoder(nnx.Module):
    """Pixels to latents at `grid x grid`: residual blocks, halving between levels."""

    def __init__(self, config: VQConfig, rngs: nnx.Rngs):
        widths = [config.base_channels * m for m in config.channel_mult]
        self.conv_in = _conv(3, config.base_channels, rngs)
        blocks, downs, width = [], [], config.base_channels
        for level, outputs in enumerate(widths):
            chain = []
            for _ in range(config.res_blocks):
                chain.append(ResidualBlock(width, outputs, config, rngs))
                width = outputs
            blocks.append(nnx.List(chain))
            if level + 1 < len(widths):
                downs.append(_conv(width, width, rngs, strides=2, padding=((0, 1), (0, 1))))
        self.blocks, self.downs = nnx.List(blocks), nnx.List(downs)
        self.mid = nnx.List([ResidualBlock(width, width, config, rngs) for _ in range(2)])
        self.norm_out = NormSilu(width, config)
        self.conv_out = _conv(width, config.latent_channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level, chain in enumerate(self.blocks):
            for block in chain:
                x = block(x)
            if level < len(self.downs):
                x = self.downs[level](x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(self.norm_out(x))


class Decoder(nnx.Module):
    """Latents to pixels: levels from the lowest resolution up, doubling by nearest neighbour."""

    def __init__(self, config: VQConfig, rngs: nnx.Rngs):
        widths = [config.base_channels * m for m in reversed(config.channel_mult)]
        width = widths[0]
        self.conv_in = _conv(config.latent_channels, width, rngs)
        self.mid = nnx.List([ResidualBlock(width, width, config, rngs) for _ in range(2)])
        blocks, ups = [], []
        for level, outputs in enumerate(widths):
            chain = []
            for _ in range(config.res_blocks + 1):
                chain.append(ResidualBlock(width, outputs, config, rngs))
                width = outputs
            blocks.append(nnx.List(chain))
            if level + 1 < len(widths):
                ups.append(_conv(width, width, rngs))
        self.blocks, self.ups = nnx.List(blocks), nnx.List(ups)
        self.norm_out = NormSilu(width, config)
        self.conv_out = _conv(width, 3, rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        z = self.conv_in(z)
        for block in self.mid:
            z = block(z)
        for level, chain in enumerate(self.blocks):
            for block in chain:
                z = block(z)
            if level < len(self.ups):
                z = _doubled(self.ups[level], z)
        return self.conv_out(self.norm_out(z))


class VQGAN(nnx.Module):
    """Encoder, codebook and decoder of one size."""

    def __init__(self, config: VQConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.quant_conv = _conv(config.latent_channels, config.code_dim, rngs, size=1)
        self.post_quant_conv = _conv(config.code_dim, config.latent_channels, rngs, size=1)
        spread = 1.0 / config.codes
        self.codebook = nnx.Param(
            jax.random.uniform(
                rngs.params(), (config.codes, config.code_dim), minval=-spread, maxval=spread
            )
        )

    def latents(self, pixels: jax.Array) -> jax.Array:
        """Pixels `[F, R, R, 3]` to latents `[F, grid, grid, code_dim]` before quantization."""
        return self.quant_conv(self.encoder(pixels))

    def nearest(self, latents: jax.Array) -> jax.Array:
        """Index of the nearest code by squared distance, int32, latents `[..., code_dim]`."""
        codes = self.codebook[...]
        flat = latents.reshape(-1, latents.shape[-1])
        distance = (
            jnp.sum(flat**2, axis=1, keepdims=True) + jnp.sum(codes**2, axis=1) - 2 * flat @ codes.T
        )
        return distance.argmin(axis=1).astype(jnp.int32).reshape(latents.shape[:-1])

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """Quantized latents `[F, grid, grid, code_dim]` to pixels, not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels `[F, R, R, 3]` in [-1, 1] to codes, int32 `[F, grid * grid]`."""
        return self.nearest(self.latents(pixels)).reshape(pixels.shape[0], -1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes `[F, grid * grid]` to pixels `[F, R, R, 3]` in [-1, 1].

        A code beyond the codebook counts as the last one, as in the original.
        """
        codes = jnp.clip(codes, 0, self.config.codes - 1)
        grid = self.config.grid
        vectors = self.codebook[...][codes].reshape(-1, grid, grid, self.config.code_dim)
        return jnp.clip(self.decode_latents(vectors), -1.0, 1.0)


def create(config: VQConfig, seed: int = 0) -> VQGAN:
    """A freshly initialised image tokenizer."""
    return VQGAN(config, nnx.Rngs(seed))


def to_tensors(model: VQGAN) -> dict[str, np.ndarray]:
    """All weights by dotted name, convolution kernels `[height, width, in, out]`."""
    return {name: np.asarray(leaf[...]) for name, leaf in _named(nnx.state(model, nnx.Param))}


def shapes(config: VQConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by dotted name, without making any."""
    model = nnx.eval_shape(lambda: create(config))
    return {name: leaf.shape for name, leaf in _named(nnx.state(model, nnx.Param))}


def from_tensors(config: VQConfig, tensors: dict[str, np.ndarray]) -> VQGAN:
    """A model with the given weights, named and shaped as `shapes` says."""
    graph, state = nnx.split(nnx.eval_shape(lambda: create(config)))
    for name, leaf in _named(state):
        leaf.set_value(jnp.asarray(tensors[name]))
    return nnx.merge(graph, state)


def _named(state: nnx.State) -> list[tuple[str, nnx.Param]]:
    return [(".".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(state)]


def in_batches(work: Callable[[np.ndarray], Array], rows: np.ndarray, size: int) -> np.ndarray:
    """What `work` makes of `rows`, `size` at a time; the last batch is filled up.

    A single row goes alone, so that two compiled programs serve all counts.
    """
    if len(rows) == 1:
        return np.asarray(work(rows))
    filled = np.pad(rows, ((0, -len(rows) % size), *[(0, 0)] * (rows.ndim - 1)), mode="edge")
    parts = [work(filled[i : i + size]) for i in range(0, len(filled), size)]
    return np.concatenate(parts)[: len(rows)]


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_bytes(pixels: jax.Array) -> np.ndarray:
    """Pixels in [-1, 1] to uint8, truncated as the original does."""
    return ((np.asarray(pixels) + 1.0) * 127.5).astype(np.uint8)


def quick_encoder(model: VQGAN) -> Callable[[np.ndarray], jax.Array]:
    """`model.encode`, compiled over its bare arrays.

    Walking through the modules in every call would cost more than a small VQGAN does.
    """
    graph, state = nnx.split(model)
    arrays, structure = jax.tree.flatten(state)

    @jax.jit
    def encode(arrays: list[jax.Array], pixels: jax.Array) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, arrays)).encode(pixels)

    return partial(encode, arrays)


def fingerprint(model: VQGAN) -> str:
    """A short name for the codes that a model gives: of its sizes, encoder and codebook.

    Where it is the same, so are the codes of a picture; how they are drawn again does not matter.
    """
    state = hashlib.sha256(json.dumps(model.config.to_json()).encode())
    for name, tensor in sorted(to_tensors(model).items()):
        if name.startswith(("encoder.", "quant_conv.", "codebook")):
            state.update(name.encode() + tensor.tobytes())
    return state.hexdigest()[:16]


encode: Callable[[VQGAN, Array], jax.Array] = nnx.jit(lambda model, pixels: model.encode(pixels))
decode: Callable[[VQGAN, Array], jax.Array] = nnx.jit(lambda model, codes: model.decode(codes))
