"""`lwm film`: a film from words."""

from __future__ import annotations

from typing import Annotated

import typer

from lwm_cli import files, loading, options
from lwm_cli.ui import Screen


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What the film shows; - or none reads a pipe."),
    ] = None,
    output: options.Output = None,
    frames: options.Frames = 8,
    fps: options.Rate = 4,
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
    """Make a film from words.

    The name of the output says what it is: .mp4, .gif or .webp. Options that say how tokens are
    drawn hold for all frames.
    """
    from lwm_core.media import VIDEO_SUFFIXES, upscale, write_video

    text = files.prompt_text(prompt)
    path = output or files.output_name(text, ".mp4")
    force = files.claim([path], VIDEO_SUFFIXES, force=force)
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
        from lwm_core.generate import film

        seed = loading.seed_or_random(seed)
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        events = film(
            loaded,
            text,
            frames=frames,
            sampling=loading.sampling_for("film", loaded, **drawn, seed=seed),
            image_sampling=loading.sampling_for("draw", loaded, **drawn, seed=seed),
            preview=screen.shows_pictures,
        )
        pictures = (upscale(frame.pixels[None], size)[0] for frame in screen.follow(events))
        with files.written(path, ".mp4") as place:
            write_video(place, pictures, fps, force=force)
            screen.clear()  # before the name of the film is written
        screen.footer([f"{frames} frame{'s' * (frames > 1)}", f"seed {seed}", loaded.device])
