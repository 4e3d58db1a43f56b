"""Two small recipes, and how to change one."""

from __future__ import annotations

import copy
from typing import Any

IMAGE = {
    "kind": "image",
    "steps": 2,
    "batch": 2,
    "model": {
        "resolution": 16, "base_channels": 4, "channel_mult": [1, 2], "res_blocks": 1,
        "latent_channels": 4, "codes": 8, "code_dim": 4, "groups": 2,
    },
    "optimizer": {"rate": 1e-3},
}  # fmt: skip

TEXT = {
    "kind": "language",
    "save_every": 2,
    "model": {"hidden": 16, "intermediate": 24, "layers": 1, "heads": 2, "max_length": 256},
    "optimizer": {"rate": 1e-2, "warmup": 1},
    "defaults": {"chat": {"temperature": 0.5}},
    "stages": [
        {
            "steps": steps, "length": 192, "rows": 2, "frames": [1, 1], "characters": [20, 60],
            "mix": {"dialogue": 0.8, "prose": 0.2},
        }
        for steps in (1, 3)
    ],
}  # fmt: skip


def changed(recipe: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A recipe with one value replaced or added, or without it if the value is None."""
    recipe = copy.deepcopy(recipe)
    *outer, last = key.split(".")
    table = recipe
    for name in outer:
        table = table[int(name)] if isinstance(table, list) else table.setdefault(name, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return recipe
