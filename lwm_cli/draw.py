"""`lwm draw`: pictures from words."""

from __future__ import annotations

from typing import Annotated

import typer

from lwm_cli import files, loading, options
from lwm_cli.ui import Screen


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What the picture shows; - or none reads a pipe."),
    ] = None,
    output: options.Output = None,
    count: Annotated[
        int, typer.Option("-N", "--count", min=1, max=256, metavar="N", help="How many pictures.")
    ] = 1,
    as_grid: Annotated[
        bool, typer.Option("--grid", help="Put several pictures into one file.")
    ] = False,
    size: options.Size = 256,
    model: options.Model = options.DEFAULT_MODEL,
    guidance: options.Guidance = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    attention: options.Attention = "auto",
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Draw a picture from words.

    The name of the output says what it is: .png, .jpg, .webp or .gif.
    """
    from lwm_core.media import PICTURE_SUFFIXES, grid, upscale, write_image

    text = files.prompt_text(prompt)
    name = output or files.output_name(text, ".png")
    outputs = [name] if as_grid else files.numbered(name, count)
    force = files.claim(outputs, PICTURE_SUFFIXES, force=force)
    with Screen(quiet=quiet, verbose=verbose) as screen:
        loaded = loading.load(
            model,
            screen,
            sees=True,
            mesh=mesh,
            dtype=dtype,
            cache=cache,
            quantize=quantize,
            attention=attention,
        )
        import numpy as np

        from lwm_core.generate import draw

        seed = loading.seed_or_random(seed)
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        sampling = loading.sampling_for("draw", loaded, **drawn, seed=seed)
        events = draw(loaded, [text] * count, sampling=sampling, preview=screen.shows_pictures)
        by_row = {frame.row: frame.pixels for frame in screen.follow(events)}
        screen.clear()  # before the names of the pictures are written
        pictures = upscale(np.stack([by_row[row] for row in range(count)]), size)
        for path, picture in zip(outputs, [grid(pictures)] if as_grid else pictures, strict=True):
            with files.written(path, ".png") as place:
                write_image(place, picture, force=force)
        screen.footer([f"{count} picture{'s' * (count > 1)}", f"seed {seed}", loaded.device])
