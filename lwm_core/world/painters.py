"""Six small landscapes, painted from soft shapes and changing in time.

Each painter is a function of a canvas, the moments `[F]` of its frames (0..1 over the whole
course; moments may lie close together), a generator for the details and a `Look`. It draws all
details from the generator before it looks at the moments, so that the same seed shows the
same place at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lwm_core.world.canvas import Canvas, Spots, per_frame
from lwm_core.world.colours import Colour

Generator = np.random.Generator


@dataclass(frozen=True)
class Look:
    """What can be asked about a landscape and therefore isn't left to the painter."""

    colour: Colour = (0.8, 0.1, 0.1)  # of the car or the ball
    way: float = 1.0  # the car drives right (1) or left (-1)


def fireworks(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """Rockets climb from a skyline at night and burst into coloured, falling sparks."""
    dusk = rng.uniform((0.08, 0.05, 0.2), (0.22, 0.12, 0.36))
    stars = rng.uniform(0, (1, 0.6), (25, 2))
    twinkle = rng.uniform(0.1, 0.5, (25, 1))
    canvas.ramp((0.01, 0.01, 0.06), dusk, 0.1, 0.9)
    canvas.pixels = canvas.pixels + canvas.light(
        _still_spots(stars, 0.006, 0.006), np.repeat(twinkle, 3, 1)[None]
    )
    houses = np.zeros((1, canvas.size, canvas.size), np.float32)
    for low, high, wall in ((3, 6, (0.09, 0.08, 0.17)), (2, 4, (0.03, 0.03, 0.05))):
        houses = np.maximum(houses, _skyline(canvas, rng, low, high, wall))
    flames = np.zeros((len(moments), canvas.size, canvas.size, 3), np.float32)
    for burst in range(6):
        age = (moments + 0.22 - 0.22 * burst) / 0.45  # in lives of a burst
        alive = np.flatnonzero((age > -0.25) & (age < 1.15))
        spots, colours = _burst(age[alive, None], rng)
        flames[alive] += canvas.light(spots, colours)
    canvas.pixels = canvas.pixels + flames * (1 - houses[..., None])


_FLAMES = np.array(
    [
        (1, 0.3, 0.25),
        (1, 0.75, 0.25),
        (0.35, 1, 0.4),
        (0.35, 0.6, 1),
        (0.95, 0.4, 1),
        (1, 0.95, 0.8),
    ]
)


def _skyline(canvas: Canvas, rng: Generator, low: int, high: int, wall: Colour) -> np.ndarray:
    """A row of houses with some windows lit; gives their coverage.

    Houses and windows stand in cells of a sixteenth of the side: a small image tokenizer keeps
    them apart.
    """
    cell = 1 / 16
    houses = np.zeros((1, canvas.size, canvas.size), np.float32)
    lights = houses
    left = 0
    while left < 16:
        width, height = int(rng.integers(2, 4)), int(rng.integers(low, high + 1))
        right, top = (left + width) * cell, 1 - height * cell
        houses = np.maximum(houses, canvas.box(left * cell, top, right, 1))
        for row, column in np.argwhere(rng.random((height, width)) < 0.4):
            x, y = (left + column) * cell + 0.016, top + row * cell + 0.016
            lights = np.maximum(lights, canvas.box(x, y, x + 0.034, y + 0.034))
        left += width
    canvas.paint(houses, wall)
    canvas.paint(lights, (0.95, 0.8, 0.4))
    return houses


def _burst(age: np.ndarray, rng: Generator) -> tuple[Spots, np.ndarray]:
    """One rocket at ages `[F, 1]`: it climbs until 0, bursts, and fades until 1.15."""
    x, y = rng.uniform(0.18, 0.82), rng.uniform(0.16, 0.42)
    reach, count = rng.uniform(0.2, 0.3), int(rng.integers(9, 13))
    flame = _FLAMES[rng.integers(len(_FLAMES))]
    angle = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1)
    angle = np.concatenate([angle, angle + np.pi / count])
    speed = np.repeat((1.0, 0.55), count)

    fading = np.where(age < 0, 0, 1.15 - age)
    columns = [np.full_like(age, x)] * 2  # the rocket and the flash
    rows = [y - 4 * np.minimum(age, 0) * (0.8 - y), np.full_like(age, y)]
    light = [0.9 * (age < 0), 0.7 * fading * np.exp(-6 * np.maximum(age, 0))]
    for trail in (0.0, 0.05, 0.1):
        old = np.maximum(age - trail, 0)
        spread = reach * (1.0 - 0.75 * np.exp(-3.2 * old)) * speed
        columns.append(x + spread * np.cos(angle))
        rows.append(y + spread * np.sin(angle) + 0.11 * old * old)
        light.append(np.repeat(fading * (0.85 - 5.5 * trail), len(speed), 1))
    sparks = np.full(3 * len(speed), 0.017)
    spots = Spots(
        np.concatenate(columns, 1),
        np.concatenate(rows, 1),
        np.concatenate([[0.01, 0.05], sparks]),
        np.concatenate([[0.035, 0.05], sparks]),
    )
    return spots, np.concatenate(light, 1)[..., None] * flame


def sunrise(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """The sun comes out of the sea; the sky goes from deep red to light blue and gold."""
    x, horizon = rng.uniform(0.3, 0.7), rng.uniform(0.56, 0.66)
    radius, top = rng.uniform(0.1, 0.14), rng.uniform(0.2, 0.28)
    clouds = rng.uniform((0, 0.08), (1, 0.42), (5, 2))
    widths = rng.uniform(0.08, 0.2, (1, 5))
    phase = rng.uniform(0, 6.3)

    day = moments[:, None]
    canvas.ramp(
        _between(day, (0.16, 0.12, 0.36), (0.36, 0.6, 0.9)),
        _between(day, (0.92, 0.34, 0.2), (1.0, 0.86, 0.6)),
        0,
        horizon,
    )
    sun = _between(day, (1.0, 0.78, 0.35), (1.0, 0.95, 0.65))
    y = horizon - 0.03 + moments * (top - horizon + 0.03)
    halo = Spots(np.full((len(moments), 1), x), y[:, None], 0.22, 0.18)
    canvas.pixels = canvas.pixels + canvas.light(halo, sun[:, None] * 0.28)
    canvas.veil(_still_spots(clouds, widths, 0.018), (1, 0.8, 0.75))
    canvas.paint(canvas.disc(x, y, radius), sun.reshape(-1, 1, 1, 3))
    _sea(canvas, moments, horizon, x, sun, phase)


def _sea(
    canvas: Canvas, moments: np.ndarray, horizon: float, x: float, sun: np.ndarray, phase: float
) -> None:
    """Water below the horizon, with waves that run and the sun's path glittering on them."""
    near = np.clip((canvas.y - horizon) / (1 - horizon), 0, 1)
    wave = np.sin(near * 26 + np.sin(canvas.x * 7 + phase) * 1.2 + per_frame(moments * 14))
    water = _between(moments[:, None], (0.1, 0.1, 0.3), (0.1, 0.36, 0.6)).reshape(-1, 1, 1, 3)
    water = water * (0.85 + 0.2 * wave[..., None] * (0.4 + near[..., None]))
    path = np.exp(-0.5 * ((canvas.x - x) / (0.05 + 0.12 * near)) ** 2) * (0.45 + 0.4 * wave)
    water = water + path[..., None] * sun.reshape(-1, 1, 1, 3)
    canvas.paint(canvas.box(0, horizon, 1, 1), water.astype(np.float32))


def rain(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """Slanting rain from gray clouds on a green, ploughed field."""
    horizon = rng.uniform(0.42, 0.52)
    green = rng.uniform((0.16, 0.42, 0.12), (0.3, 0.55, 0.2))
    clouds = rng.uniform((0, 0), (1, 0.22), (9, 2))
    hills = rng.uniform(0.1, 0.9, 2)
    vanish = rng.uniform(0.3, 0.7)
    wind = rng.uniform(-0.16, 0.16)
    drops = rng.uniform(0, 1, (46, 2))
    speed = rng.uniform(1.6, 2.2, 46)

    canvas.ramp((0.36, 0.4, 0.47), (0.66, 0.7, 0.74), 0, horizon)
    canvas.veil(_still_spots(clouds, 0.15, 0.06), (0.3, 0.32, 0.38))
    for hill in hills:
        canvas.paint(canvas.disc(hill, horizon + 0.42, 0.5), (0.32, 0.44, 0.42))
    near = np.clip((canvas.y - horizon) / (1 - horizon), 0, 1)
    furrow = np.sin((canvas.x - vanish) / (near + 0.12) * 14)
    field = green * (0.8 + 0.25 * near[..., None] + 0.22 * (furrow * np.sqrt(near))[..., None])
    canvas.paint(canvas.box(0, horizon, 1, 1), field.astype(np.float32))

    y = (drops[:, 1] + moments[:, None] * speed) % 1.2 - 0.1
    x = drops[:, 0] * 1.3 - 0.15 + wind * (y - 0.5)
    for part in (-0.02, 0.0, 0.02):
        canvas.veil(Spots(x + part * wind, y + part, 0.0065, 0.016), (0.84, 0.9, 0.97))


def snow(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """Big flakes sail down on rows of fir trees with white boughs."""
    dusk = rng.uniform((0.5, 0.58, 0.7), (0.68, 0.74, 0.84))
    flakes = rng.uniform(0, 1, (55, 2))
    speed, sway = rng.uniform(0.7, 1.2, 55), rng.uniform(0, 6.3, 55)
    size = rng.uniform(0.008, 0.017, (1, 55))

    canvas.ramp(dusk, dusk * 0.5 + 0.5, 0, 0.6)
    canvas.paint(canvas.disc(rng.uniform(0.2, 0.8), 1.75, 1.1), (0.9, 0.93, 0.97))
    canvas.paint(canvas.box(0, 0.78, 1, 1), (0.95, 0.97, 1.0))
    for base, height, haze in ((0.7, 0.3, 0.45), (0.8, 0.42, 0.2), (0.92, 0.55, 0.0)):
        x = rng.uniform(-0.05, 0.1)
        while x < 1.05:
            _fir(canvas, rng, x, base, height * rng.uniform(0.8, 1.1), haze)
            x += height * rng.uniform(0.42, 0.75)
    y = (flakes[:, 1] + moments[:, None] * speed) % 1.1 - 0.05
    x = flakes[:, 0] + 0.025 * np.sin(sway + moments[:, None] * 9)
    canvas.veil(Spots(x, y, size, size), (1, 1, 1))


def _fir(canvas: Canvas, rng: Generator, x: float, base: float, height: float, haze: float) -> None:
    """Three wedges of boughs, each with snow on its tip, on a short trunk."""
    green = np.array((0.05, rng.uniform(0.24, 0.34), 0.17)) * (1 - haze) + 0.7 * haze
    canvas.paint(
        canvas.box(x - 0.02 * height, base - 0.1 * height, x + 0.02 * height, base),
        (0.3, 0.2, 0.14),
    )
    for tier in (2, 1, 0):
        top = base - height + tier * 0.25 * height
        width = height * (0.13 + 0.06 * tier)
        canvas.paint(canvas.wedge(x, top, top + 0.42 * height, width), green)
        canvas.paint(canvas.wedge(x, top, top + 0.17 * height, width * 0.4), (0.93, 0.96, 1.0))


def car(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """A car crosses the picture on a gray road between meadows and hills."""
    road, scale = rng.uniform(0.66, 0.72), rng.uniform(0.85, 1.1)
    hills = rng.uniform((0, 0.3), (1, 0.5), (3, 2))
    greens = rng.uniform((0.3, 0.55, 0.25), (0.5, 0.72, 0.38), (3, 3))
    clouds = rng.uniform((0, 0.06), (1, 0.24), (5, 2))
    sun = rng.uniform((0.1, 0.08), (0.9, 0.2))
    start = rng.uniform(0.16, 0.24)

    canvas.ramp((0.35, 0.62, 0.95), (0.78, 0.9, 1.0), 0, 0.55)
    canvas.paint(canvas.disc(sun[0], sun[1], 0.07), (1, 0.93, 0.5))
    canvas.veil(_still_spots(clouds, 0.09, 0.025), (1, 1, 1))
    for (x, radius), green in zip(hills, greens, strict=True):
        canvas.paint(canvas.disc(x, 0.5 + radius, radius), green)
    canvas.paint(canvas.box(0, 0.56, 1, 1), greens.mean(0) * 0.85)
    canvas.paint(canvas.box(0, road, 1, road + 0.22), (0.35, 0.35, 0.38))
    for dash in np.arange(0.02, 1, 0.16):
        canvas.paint(canvas.box(dash, road + 0.12, dash + 0.08, road + 0.14), (0.95, 0.93, 0.8))
    across = start + moments * (1 - 2 * start)
    x = across if look.way > 0 else 1 - across
    _car_body(canvas, x, road + 0.1, scale, look)


def _car_body(canvas: Canvas, x: np.ndarray, ground: float, scale: float, look: Look) -> None:
    """Body, cabin, windows, a lamp and two wheels, around `x` `[F]` on the `ground`."""

    def part(left: float, top: float, right: float, bottom: float) -> np.ndarray:
        ends = sorted((look.way * left, look.way * right))
        return canvas.box(
            x + scale * ends[0], ground - scale * top, x + scale * ends[1], ground - scale * bottom
        )

    shade = np.asarray(look.colour) * 0.85
    canvas.paint(0.5 * part(-0.19, 0.005, 0.19, -0.02), (0.1, 0.1, 0.12))
    canvas.paint(part(-0.11, 0.2, 0.07, 0.1), shade)
    canvas.paint(part(-0.09, 0.185, -0.025, 0.115), (0.75, 0.9, 1.0))
    canvas.paint(part(-0.005, 0.185, 0.055, 0.115), (0.75, 0.9, 1.0))
    canvas.paint(part(-0.18, 0.12, 0.18, 0.03), look.colour)
    canvas.paint(part(0.155, 0.1, 0.18, 0.07), (1, 0.95, 0.6))
    for wheel in (-0.1, 0.1):
        centre = x + scale * look.way * wheel
        canvas.paint(canvas.disc(centre, ground - 0.03 * scale, 0.045 * scale), (0.08, 0.08, 0.09))
        canvas.paint(canvas.disc(centre, ground - 0.03 * scale, 0.019 * scale), (0.75, 0.75, 0.78))


def ball(canvas: Canvas, moments: np.ndarray, rng: Generator, look: Look) -> None:
    """A ball bounces on a wooden floor in front of a wall; its shadow comes and goes."""
    wall = rng.uniform((0.6, 0.6, 0.55), (0.9, 0.88, 0.85))
    wood = rng.uniform((0.5, 0.32, 0.18), (0.66, 0.46, 0.3))
    edge, radius = rng.uniform(0.64, 0.7), rng.uniform(0.1, 0.14)
    drift, phase = rng.uniform(-0.3, 0.3), rng.uniform(0.3, 0.7)
    high = rng.uniform(0.42, 0.52)

    canvas.ramp(wall, wall * 0.88, 0, edge)
    near = np.clip((canvas.y - edge) / (1 - edge), 0, 1)
    plank = np.sin((canvas.x - 0.5) / (near + 0.7) * 30)
    floor = wood * (0.9 + 0.15 * near - 0.15 * (plank > 0.9))[..., None]
    canvas.paint(canvas.box(0, edge, 1, 1), floor.astype(np.float32))
    canvas.paint(canvas.box(0, edge - 0.02, 1, edge), wall * 0.7)

    beat = (moments * 2 + phase) % 1
    height = 4 * high * beat * (1 - beat)
    ground = 0.84
    x = 0.5 + drift * (moments - 0.5)
    dark = 0.55 - 0.35 * height / high
    shadow = _flat_shadow(canvas, x, ground, radius * (1 + 0.5 * height))
    canvas.paint(shadow * per_frame(dark), (0.1, 0.06, 0.03))
    y = ground - radius - height
    base = np.asarray(look.colour)
    canvas.paint(canvas.disc(x, y, radius), base * 0.8)
    canvas.paint(canvas.disc(x - 0.15 * radius, y - 0.15 * radius, 0.8 * radius, 0.05), base)
    canvas.paint(
        0.8 * canvas.disc(x - 0.4 * radius, y - 0.4 * radius, 0.2 * radius, 0.04), base * 0.3 + 0.7
    )


def _flat_shadow(canvas: Canvas, x: np.ndarray, ground: float, radius: np.ndarray) -> np.ndarray:
    """Coverage of a soft flat ellipse on the floor."""
    dx, dy = canvas.x - per_frame(x), (canvas.y - ground) * 3.2
    return canvas.inside(np.sqrt(dx * dx + dy * dy) - per_frame(radius), 0.08)


def _still_spots(places: np.ndarray, width: ArrayLike, height: ArrayLike) -> Spots:
    """Spots at places `[N, 2]` that don't move."""
    return Spots(places[None, :, 0], places[None, :, 1], width, height)


def _between(share: np.ndarray, start: Colour, end: Colour) -> np.ndarray:
    """Colours `[F, 3]` on the way from `start` to `end`, by share `[F, 1]`."""
    return np.asarray(start) + share * np.subtract(end, start)


PAINTERS: dict[str, Callable[[Canvas, np.ndarray, Generator, Look], None]] = {
    "fireworks": fireworks,
    "sunrise": sunrise,
    "rain": rain,
    "snow": snow,
    "car": car,
    "ball": ball,
}
