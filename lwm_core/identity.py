"""What a loaded model is, as plain values: where they are the same, so is what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from lwm_core.load import LoadedModel


def identify(model: LoadedModel) -> dict[str, str]:
    """Describe a model: its name, its number formats, and by their digests sizes and weights."""
    return {
        "name": model.name,
        "dtype": str(model.how.dtype),
        "cache": str(model.cache_dtype),
        "quantize": model.config.quantized or "",
        "config": digest(json.dumps(asdict(model.config)).encode()),
        "weights": digest(json.dumps(_checksums(model.params)).encode()),
    }


def digest(content: bytes) -> str:
    """A short name for some bytes, which no others have."""
    return hashlib.sha256(content).hexdigest()[:16]


def _checksums(params: Mapping[str, Any]) -> list[int]:
    """Sums over the bits of the tensors, those of layers together: quick, and the same however they
    are kept and spread."""
    import jax
    import jax.numpy as jnp

    def bits(weight: jax.Array) -> jax.Array:
        if jnp.issubdtype(weight.dtype, jnp.floating):
            weight = jax.lax.bitcast_convert_type(weight, f"uint{8 * weight.dtype.itemsize}")
        return weight.astype(jnp.uint32).sum()

    @jax.jit
    def sums(params: Mapping[str, Any]) -> list[jax.Array]:
        found = jax.tree.map(bits, dict(params))
        found["layers"] = sum(jax.tree.leaves(found["layers"]))
        return jax.tree.leaves(found)

    return [int(one) for one in sums(params)]
