"""The image tokenizer (VQGAN, Esser et al. 2021): pixels to a square of codes and back.

Pixels are float32 `[F, resolution, resolution, 3]` in [-1, 1]; codes are int32 `[F, grid * grid]`
in row-major order. A clip is a batch of frames.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Wrapped

from lwm_core.config import VQConfig
from lwm_core.convolution import convolve
from lwm_core.types import Array

Weights = Any
"""Arrays, or their shapes, in nested dicts and lists: a model's, or those of a part of it."""


@partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["config"])
@dataclass(frozen=True, eq=False)
class VQGAN:
    """Encoder, codebook and decoder of one size: plain functions of a tree of weights.

    A library's modules would take longer to import and to build than a small model to draw.
    """

    config: VQConfig
    weights: Weights

    @property
    def codebook(self) -> jax.Array:
        """The vectors of all codes, `[codes, code_dim]`."""
        return self.weights["codebook"]

    def latents(self, pixels: Array) -> jax.Array:
        """Pixels `[F, R, R, 3]` to latents `[F, grid, grid, code_dim]` before quantization."""
        return _conv(self.weights["quant_conv"], self.encoder(pixels))

    def nearest(self, latents: jax.Array) -> jax.Array:
        """Index of the nearest code by squared distance, int32, latents `[..., code_dim]`."""
        codes = self.codebook
        flat = latents.reshape(-1, latents.shape[-1])
        distance = (
            jnp.sum(flat**2, axis=1, keepdims=True) + jnp.sum(codes**2, axis=1) - 2 * flat @ codes.T
        )
        return distance.argmin(axis=1).astype(jnp.int32).reshape(latents.shape[:-1])

    def decode_latents(self, latents: Array) -> jax.Array:
        """Quantized latents `[F, grid, grid, code_dim]` to pixels, not clipped."""
        return self.decoder(_conv(self.weights["post_quant_conv"], latents))

    def encode(self, pixels: Array) -> jax.Array:
        """Pixels `[F, R, R, 3]` in [-1, 1] to codes, int32 `[F, grid * grid]`."""
        return self.nearest(self.latents(pixels)).reshape(pixels.shape[0], -1)

    def decode(self, codes: Array) -> jax.Array:
        """Codes `[F, grid * grid]` to pixels `[F, R, R, 3]` in [-1, 1].

        A code beyond the codebook counts as the last one, as in the original.
        """
        codes = jnp.clip(codes, 0, self.config.codes - 1)
        grid = self.config.grid
        vectors = self.codebook[codes].reshape(-1, grid, grid, self.config.code_dim)
        return jnp.clip(self.decode_latents(vectors), -1.0, 1.0)

    def encoder(self, x: Array) -> jax.Array:
        """Pixels to latents at `grid x grid`: residual blocks, halving between levels."""
        weights = self.weights["encoder"]
        x = _conv(weights["conv_in"], x)
        for level, chain in enumerate(weights["blocks"]):
            for block in chain:
                x = self._residual(block, x)
            if level < len(weights["downs"]):
                x = _conv(weights["downs"][level], x, stride=2, padding=((0, 1), (0, 1)))
        for block in weights["mid"]:
            x = self._residual(block, x)
        return _conv(weights["conv_out"], _norm_silu(weights["norm_out"], x, self.config.groups))

    def decoder(self, z: Array) -> jax.Array:
        """Latents to pixels: from the lowest resolution up, doubling by nearest neighbour."""
        weights = self.weights["decoder"]
        z = _conv(weights["conv_in"], z)
        for block in weights["mid"]:
            z = self._residual(block, z)
        for level, chain in enumerate(weights["blocks"]):
            for block in chain:
                z = self._residual(block, z)
            if level < len(weights["ups"]):
                z = _doubled(weights["ups"][level], z)
        return _conv(weights["conv_out"], _norm_silu(weights["norm_out"], z, self.config.groups))

    def _residual(self, weights: Weights, x: jax.Array) -> jax.Array:
        """Norm, silu, convolution, twice, added to the input (through 1x1 if channels change)."""
        groups = self.config.groups
        h = _conv(weights["conv1"], _norm_silu(weights["norm1"], x, groups))
        h = _conv(weights["conv2"], _norm_silu(weights["norm2"], h, groups))
        return h + (_conv(weights["shortcut"], x) if "shortcut" in weights else x)


@partial(jax.jit, static_argnames="groups")
def _norm_silu(weights: Weights, x: jax.Array, groups: int) -> jax.Array:
    """Group norm (Wu and He 2018, epsilon 1e-6), then silu.

    Sums are taken per channel first and scale and shift are folded into one multiply-add: on a
    CPU that is four times faster than normalising group by group. Compiled for itself it is traced
    once for each shape.
    """
    batch, height, width, channels = x.shape
    groups = min(groups, channels)
    size = channels // groups

    def group_mean(values: jax.Array) -> jax.Array:
        sums = values.reshape(batch, -1, channels).sum(axis=1)
        return sums.reshape(batch, groups, size).sum(axis=-1) / (height * width * size)

    mean = group_mean(x)
    variance = jnp.maximum(group_mean(x * x) - mean**2, 0.0)  # rounding may go below
    inverse = lax.rsqrt(variance + 1e-6)
    scale = jnp.repeat(inverse, size, axis=1) * weights["scale"]
    shift = weights["bias"] - jnp.repeat(mean, size, axis=1) * scale
    scale, shift = (part.reshape(batch, 1, 1, channels) for part in (scale, shift))
    return jax.nn.silu(x * scale + shift)


def _conv(weights: Weights, x: Array, stride: int = 1, padding: Any = "SAME") -> jax.Array:
    """A convolution of `x [F, height, width, in]`, and a bias."""
    return weights["bias"] + convolve(jnp.asarray(x), weights["kernel"], stride, padding)


def _doubled(weights: Weights, x: jax.Array) -> jax.Array:
    """A 3x3 convolution of `x` doubled by nearest neighbour, `[F, H, W, C]` to `[F, 2H, 2W, C]`.

    Of three neighbours two are equal and need one product, by the sum of their weights: an even
    and an odd row (and column) each see two of `x`, which is 4/9 of the work.
    """
    merged = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], x.dtype)
    kernels = jnp.einsum("yip,xjq,pqco->yxijco", merged, merged, weights["kernel"])

    def at(row: int, column: int) -> jax.Array:
        kernel = {"kernel": kernels[row, column], "bias": weights["bias"]}
        return _conv(kernel, x, padding=((1 - row, row), (1 - column, column)))

    rows = [jnp.stack([at(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    batch, height, width, channels = x.shape
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


def _abstract_weights(config: VQConfig) -> Weights:
    """The shape of every weight in its place; kernels are `[height, width, in, out]`."""

    def weight(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def conv(inputs: int, outputs: int, size: int = 3) -> Weights:
        return {"kernel": weight(size, size, inputs, outputs), "bias": weight(outputs)}

    def norm(channels: int) -> Weights:
        return {"scale": weight(channels), "bias": weight(channels)}

    def residual(inputs: int, outputs: int) -> Weights:
        first = {"norm1": norm(inputs), "conv1": conv(inputs, outputs)}
        second = {"norm2": norm(outputs), "conv2": conv(outputs, outputs)}
        shortcut = {} if inputs == outputs else {"shortcut": conv(inputs, outputs, 1)}
        return {**first, **second, **shortcut}

    def middle(width: int) -> list[Weights]:
        return [residual(width, width) for _ in range(2)]

    def levels(width: int, widths: list[int], count: int) -> tuple[list, list, int]:
        """Chains of so many blocks, the convolutions between them, and the width at the end."""
        blocks: list[list[Weights]] = []
        between = []
        for outputs in widths:
            if blocks:
                between.append(conv(width, width))
            blocks.append([])
            for _ in range(count):
                blocks[-1].append(residual(width, outputs))
                width = outputs
        return blocks, between, width

    widths = [config.base_channels * factor for factor in config.channel_mult]
    latent, code = config.latent_channels, config.code_dim
    blocks, downs, width = levels(config.base_channels, widths, config.res_blocks)
    encoder = {
        "conv_in": conv(3, config.base_channels),
        "blocks": blocks,
        "downs": downs,
        "mid": middle(width),
        "norm_out": norm(width),
        "conv_out": conv(width, latent),
    }
    blocks, ups, width = levels(widths[-1], widths[::-1], config.res_blocks + 1)
    decoder = {
        "conv_in": conv(latent, widths[-1]),
        "mid": middle(widths[-1]),
        "blocks": blocks,
        "ups": ups,
        "norm_out": norm(width),
        "conv_out": conv(width, 3),
    }
    return {
        "encoder": encoder,
        "quant_conv": conv(latent, code, 1),
        "codebook": weight(config.codes, code),
        "post_quant_conv": conv(code, latent, 1),
        "decoder": decoder,
    }


def create(config: VQConfig, seed: int = 0) -> VQGAN:
    """A freshly initialised image tokenizer."""
    abstract = _abstract_weights(config)
    named = _named(abstract)
    keys = jax.random.split(jax.random.key(seed), len(named))
    fresh = [
        _fresh(name, leaf.shape, key) for (name, leaf), key in zip(named.items(), keys, strict=True)
    ]
    return VQGAN(config, jax.tree.unflatten(jax.tree.structure(abstract), fresh))


def _fresh(name: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """A weight before it has learned anything."""
    if name == "codebook":
        return jax.random.uniform(key, shape, minval=-1 / shape[0], maxval=1 / shape[0])
    if name.endswith("scale"):
        return jnp.ones(shape)
    # Starting as the identity, a deep stack learns from the first step (Zhang et al. 2019).
    if name.endswith(("bias", "conv2.kernel")):
        return jnp.zeros(shape)
    return jax.nn.initializers.lecun_normal()(key, shape)


def to_tensors(model: VQGAN) -> dict[str, np.ndarray]:
    """All weights by dotted name, convolution kernels `[height, width, in, out]`."""
    return {name: np.asarray(leaf) for name, leaf in _named(model.weights).items()}


def shapes(config: VQConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by dotted name, without making any."""
    return {name: leaf.shape for name, leaf in _named(_abstract_weights(config)).items()}


def from_tensors(config: VQConfig, tensors: dict[str, np.ndarray]) -> VQGAN:
    """A model with the given weights, named and shaped as `shapes` says."""
    abstract = _abstract_weights(config)
    weights = [tensors[name] for name in _named(abstract)]
    return VQGAN(config, jax.device_put(jax.tree.unflatten(jax.tree.structure(abstract), weights)))


def _named(weights: Weights) -> dict[str, Any]:
    """The leaves by dotted name, in the order of the tree."""
    leaves = jax.tree.leaves_with_path(weights)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def fingerprint(model: VQGAN) -> str:
    """A short name for the codes that a model gives: of its sizes, encoder and codebook.

    Where it is the same, so are the codes of a picture, but for ties that rounding decides, which
    is another on another device or in another batch. How codes are drawn again does not matter.
    """
    state = hashlib.sha256(json.dumps(model.config.to_json()).encode())
    for name, tensor in sorted(to_tensors(model).items()):
        if name.startswith(("encoder.", "quant_conv.", "codebook")):
            state.update(name.encode() + tensor.tobytes())
    return state.hexdigest()[:16]


# Of a model and pixels or codes, as the methods are.
encode: Wrapped = jax.jit(VQGAN.encode)
decode: Wrapped = jax.jit(VQGAN.decode)
