"""In which numbers a model runs: by default, by what is asked, by what the model says of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from originals import said_to_round

from lwm_core import number_formats
from lwm_core.config import SIZES
from lwm_core.convert import convert
from lwm_core.decode import generate
from lwm_core.errors import ConfigError
from lwm_core.load import load_model
from lwm_core.number_formats import usual_rounding
from lwm_core.sampling import Sampling
from lwm_core.source import open_source


@pytest.mark.parametrize(
    ("quantize", "dtype", "fast", "expected"),
    [
        (None, None, True, "float32"),
        ("int8", None, True, "bfloat16"),
        ("int8", None, False, "float32"),
        ("int8", "float32", True, "float32"),
        ("int8", "bfloat16", False, "bfloat16"),
    ],
)
def test_what_is_computed_in_by_default(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Literal["int8"] | None,
    dtype: str | None,
    fast: bool,
    expected: str,
) -> None:
    """Of rounded weights it depends on whether the processor is fast in bfloat16."""
    monkeypatch.setattr(number_formats, "multiplies_bfloat16", lambda: fast)
    model = load_model(str(tiny_model), mesh="dp=8", quantize=quantize, dtype=dtype)
    assert model.how.dtype == expected
    greedy = {"modality": "text", "sampling": Sampling(temperature=0.0), "stops": False}
    parts = list(generate(model, [[1, 40]], max_tokens=4, **greedy))
    assert np.concatenate(parts, axis=1).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "int8"), ({"dtype": "float32"}, None), ({"quantize": "int4"}, "int4")],
)
def test_a_model_may_say_what_a_cpu_rounds_it_to(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], expected: str | None
) -> None:
    """What is made of it has other weights, and does not."""
    name = said_to_round(tiny_model, tmp_path / "model", "int8")
    assert load_model(name, mesh="dp=8", **options).config.quantized == expected
    convert(open_source(name), tmp_path / "copy", dtype="float32")
    assert load_model(str(tmp_path / "copy"), mesh="dp=8").config.quantized is None


def test_it_rounds_nothing_elsewhere_and_nothing_twice() -> None:
    plain, rounded = SIZES["7b"], dataclasses.replace(SIZES["7b"], quantized="int4")
    assert usual_rounding(plain, "int8", "cpu", None) == "int8"
    assert usual_rounding(plain, "int8", "gpu", None) is None
    assert usual_rounding(plain, "int8", "cpu", "bfloat16") is None
    assert usual_rounding(rounded, "int8", "cpu", None) is None


def test_a_rounding_that_is_unknown(tiny_model: Path, tmp_path: Path) -> None:
    name = said_to_round(tiny_model, tmp_path / "model", "int3")
    with pytest.raises(ConfigError, match=r"lwm\.quantize is 'int3'; choose one of int8, int4"):
        load_model(name, mesh="dp=8")
