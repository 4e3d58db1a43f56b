"""The options that commands share: one name, one letter, one meaning everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from lwm_core import registry
from lwm_core.config import Quantization
from lwm_core.costs import CacheDtype

DEFAULT_MODEL = "nano"
_LENGTH_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def parse_length(text: str | int) -> int:
    """A number of tokens as people write it: `2048`, `8k` (8192), `1m` (1048576); or a default."""
    written = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", str(text).lower())
    length = float(written[1]) * _LENGTH_UNITS[written[2]] if written else 0.0
    if length < 1 or not length.is_integer():
        raise typer.BadParameter(f"{text!r} is no length; write for example 2048, 8k or 1m")
    return int(length)


def parse_time(text: str) -> float:
    """A moment of a clip in seconds: `12.5`, `1:30`, `1:02:03`."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < float("inf") for part in parts):
        raise typer.BadParameter(f"{text!r} is no time; write seconds, mm:ss or h:mm:ss")
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + part
    return seconds


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line itself."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def short_name(card: registry.Card) -> str:
    """What a model is called on the command line."""
    return card.name if card.embedded else card.aliases[0]


def complete_model(incomplete: str) -> list[str]:
    """Names of models that begin with what has been typed."""
    names = [short_name(card) for card in registry.CARDS]
    return [name for name in names if name.startswith(incomplete.lower())]


Model = Annotated[
    str,
    typer.Option(
        "-m",
        "--model",
        envvar="LWM_MODEL",
        metavar="MODEL",
        help="Model: a name (lwm download --list), a directory or a Hub repository.",
        autocompletion=complete_model,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="File to write; - is standard output."),
]
MaxTokens = Annotated[
    int,
    typer.Option("-n", "--max-tokens", min=1, metavar="N", help="Longest answer, in tokens."),
]
Temperature = Annotated[
    float | None,
    typer.Option("-t", "--temperature", min=0, metavar="T", help="0 takes the likeliest token."),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=1, metavar="K", help="Draw from the K likeliest tokens."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0, max=1, metavar="P", help="Draw from the likeliest tokens of total P."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "-g", "--guidance", min=0, metavar="G", help="How closely to follow the prompt; 1 is plain."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=2**31 - 1, metavar="N", help="The same seed gives the same result."
    ),
]
System = Annotated[
    str | None,
    typer.Option("-s", "--system", metavar="TEXT", help="How the model should behave."),
]
Attach = Annotated[
    list[str] | None,
    typer.Option(
        "-a", "--attach", metavar="FILE", help="Text file, picture or clip to show it (repeatable)."
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--ctx", parser=parse_length, metavar="LENGTH", help="Context in tokens: 2048, 8k, 1m."
    ),
]
MostContext = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        parser=parse_length,
        metavar="LENGTH",
        help="Tokens to hold at most: 8k, 1m; by default what the model was made for.",
    ),
]
KeptContext = Annotated[
    Path | None,
    typer.Option(
        "--context",
        metavar="FILE",
        help="Keep what is attached there once it is read; later ask about it without reading.",
    ),
]
Frames = Annotated[
    int,
    typer.Option("--frames", min=1, metavar="N", help="Frames of a clip."),
]
Start = Annotated[
    float | None,
    typer.Option(
        "--start", parser=parse_time, metavar="TIME", help="Look from here on: 12.5, 1:30."
    ),
]
End = Annotated[
    float | None,
    typer.Option("--end", parser=parse_time, metavar="TIME", help="Look up to here: 12.5, 1:30."),
]
Rate = Annotated[
    float,
    typer.Option("--fps", min=0.1, max=240, metavar="RATE", help="Frames a second."),
]
Size = Annotated[
    int,
    typer.Option(
        "--size", min=16, max=4096, metavar="PIXELS", help="Enlarge the shorter side to this."
    ),
]
Mesh = Annotated[
    str,
    typer.Option(
        "--mesh",
        metavar="MESH",
        help="auto, axes such as fsdp=8,tp=4,sp=-1, or hardware: 8xh100-80gb.",
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option("--dtype", help="Number format to compute in; by default what suits the device."),
]
Cache = Annotated[
    CacheDtype | None,
    typer.Option(
        "--cache",
        help="Number format of keys and values; by default as --dtype, int8 for rounded weights.",
    ),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        "--quantize",
        help="Fewer bits for the weights: less memory, faster words. Without it and --dtype a "
        "model may say what a CPU rounds it to, as nano does (int8).",
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="WAY",
        help="Way to compute attention to try first: fused, blockwise, dense.",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        help="On several machines: where the first process listens.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, metavar="N", help="On several machines: how many processes."
    ),
]
Process = Annotated[
    int | None,
    typer.Option(
        "--process", min=0, metavar="I", help="On several machines: which of them this is, from 0."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but the answer.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show what is done and chosen.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
