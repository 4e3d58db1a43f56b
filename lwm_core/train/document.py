"""Settings as documents: what a TOML file says, checked key by key, as frozen dataclasses.

What does not fit is a ConfigError that names the key, as in `stages[2].length`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lwm_core.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass of nested dataclasses from a document; `prefix` begins the keys in messages."""
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such key; known are {', '.join(fields)}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing")
    converted = {k: _convert(hints[k], v, f"{prefix}{k}") for k, v in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _convert(next(t for t in get_args(hint) if t is not type(None)), value, name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a table is needed, not {value!r}")
        return build(hint, value, f"{name}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: a list is needed, not {value!r}")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ConfigError(f"{name}: {len(kinds)} values are needed, not {len(value)}")
        return tuple(
            _convert(kind, one, f"{name}[{index}]")
            for index, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is Literal:
        if value not in get_args(hint):
            known = ", ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{name} is {value!r}; choose one of {known}")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a table is needed, not {value!r}")
        kind = get_args(hint)[1]
        return {k: _convert(kind, v, f"{name}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: {hint.__name__} is needed, not {value!r}")
    return value
