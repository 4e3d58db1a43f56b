"""Scenes of shapes are what their words say: measured on pixels, not by the renderer."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from pixels import SIZE, centroid, colour_name, generator, lone_shapes, shape_name, shares

from lwm_core.world import sample_landscape, sample_shapes, stream
from lwm_core.world.canvas import Canvas
from lwm_core.world.colours import REGIONS, canonical, nearby
from lwm_core.world.shapes import SHAPES, coverage
from lwm_core.world.words import Story, Thing, caption


def painted_area(shape: str, diameter: float, angle: float, variant: float) -> float:
    canvas = Canvas(1, 256)
    centre = np.array([[0.47, 0.53]])
    return float(coverage(canvas, shape, centre, np.array([diameter]), angle, variant).mean())


@pytest.mark.parametrize("angle", [0.0, 0.2])
@pytest.mark.parametrize("diameter", [0.1, 0.3, 0.5])
def test_painted_areas_are_those_of_geometry(diameter: float, angle: float) -> None:
    radius = diameter / 2
    tips = np.exp(2j * np.pi * np.arange(5) / 5)
    inner = 0.382 * np.exp(2j * np.pi * (np.arange(5) + 0.5) / 5)
    outline = np.stack([tips, inner], 1).ravel()
    star = 0.5 * np.sum((np.conj(outline) * np.roll(outline, -1)).imag) * radius**2
    expected = {
        ("circle", 0.0): np.pi * radius**2,
        ("square", 1.0): diameter**2,
        ("triangle", 0.0): 3 * np.sqrt(3) / 4 * radius**2,
        ("triangle", 1.0): diameter**2 / 2,
        ("star", 0.0): star,
    }
    for (shape, variant), area in expected.items():
        measured = painted_area(shape, diameter, angle, variant)
        assert measured == pytest.approx(area, rel=0.03 if diameter < 0.2 else 0.01)


@pytest.mark.parametrize("purpose", ["see", "make"])
def test_shapes_go_where_the_caption_says(purpose: str) -> None:
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    seen = set()
    for scene in lone_shapes(80, purpose, frames=8):
        share = shares(scene.render(SIZE))
        moved = centroid(share[-1]) - centroid(share[0])
        grown = share[-1].sum() / share[0].sum()
        doing = re.search(r"(left|right|up|down|growing|shrinking|still) on ", scene.caption())[1]
        seen.add(doing)
        if doing in ways:
            along = moved @ ways[doing]
            assert along > 0.13
            assert np.abs(moved - along * np.array(ways[doing])).max() < 0.02
            assert grown == pytest.approx(1, abs=0.08)  # never leaves the picture
        elif doing == "still":
            assert np.abs(moved).max() < 0.005
            assert grown == pytest.approx(1, abs=0.01)
        else:
            assert (grown > 1.9) if doing == "growing" else (grown < 1 / 1.9)
    assert len(seen) == 7


@pytest.mark.parametrize("purpose", ["see", "make"])
@pytest.mark.parametrize("frames", [1, 8])
def test_answers_name_what_the_pixels_show(purpose: str, frames: int) -> None:
    for index, scene in enumerate(lone_shapes(60, purpose, frames)):
        pixels = scene.render(256)[-1]
        share = shares(pixels[None])[0]
        core = colour_name(np.median(pixels[share > 0.97], 0))
        ground = colour_name(np.median(pixels.reshape(-1, 3), 0))
        exchanges = scene.questions(generator(index), 20)
        assert f" {core} " in exchanges[0][1]
        assert f"The background is {ground}." in dict(exchanges).values()
        if scene.actors[0].angle == 0:
            assert shape_name(share) in exchanges[0][1]


@pytest.mark.parametrize("frames", [1, 4])
def test_places_are_where_the_pixels_are(frames: int) -> None:
    for scene in lone_shapes(60, "see", frames):
        share = shares(scene.render(SIZE))
        told = {answer for seed in range(4) for _, answer in scene.questions(generator(seed), 9)}
        pattern = r" (is|starts|ends) (?:at|on|in) the (.*)\.$"
        places = {m[1]: m[2] for answer in told if (m := re.search(pattern, answer))}
        assert set(places) <= ({"is"} if frames == 1 else {"starts", "ends"})
        for verb, place in places.items():
            filled = share[-1 if verb == "ends" else 0] > 0.5
            x, y = (np.flatnonzero(filled.any(axis)).mean() / SIZE for axis in (0, 1))
            for word, value, sign in (
                ("left", x, -1), ("right", x, 1), ("top", y, -1), ("bottom", y, 1)
            ):  # fmt: skip
                beyond = sign * (value - 0.5) - 0.1
                assert beyond > -0.07 if word in place.split() else beyond < 0.07


def test_one_scene_gives_consistent_answers() -> None:
    for index in range(40):
        scene = sample_shapes(generator(index), frames=8, purpose="see")
        exchanges = scene.questions(generator(index), 30)
        counts = {a for q, a in exchanges if q.lower().startswith(("how many", "count"))}
        assert counts == {
            "There are two shapes." if len(scene.actors) == 2 else "There is one shape."
        }
        things = [actor.thing for actor in scene.actors]
        for question, answer in exchanges:
            assert answer[0].isupper()
            assert answer.endswith(".")
            if question.lower().startswith("is there"):
                asked = re.search(r"is there an? (\w+)", question.lower())[1]
                there = any(asked in (thing.colour, thing.shape) for thing in things)
                assert answer.startswith("Yes" if there else "No")


def test_canonical_caption() -> None:
    things = (Thing("orange", "star", "grow"), Thing("blue", "square", "left"))
    assert caption(Story(things[:1], "gray", True)) == "an orange star growing on a gray background"
    assert (
        caption(Story(things, "black", True))
        == "an orange star growing and a blue square moving left on a black background"
    )
    assert caption(Story(things[1:], "white", False)) == "a blue square on a white background"


def test_prompts_name_the_thing() -> None:
    for index in range(60):
        scene = sample_shapes(generator(index), frames=8, purpose="make")
        wish = scene.prompt(generator(index)).lower()
        assert all(actor.thing.name in wish for actor in scene.actors)
        if "background" in wish:
            assert f"{scene.ground} background" in wish.replace("grey", "gray")


def test_two_shapes_start_apart() -> None:
    pairs = 0
    for index in range(120):
        scene = sample_shapes(generator(index), frames=4, purpose="see")
        if len(scene.actors) == 2:
            pairs += 1
            covered = [
                coverage(Canvas(4, SIZE), a.thing.shape, a.centre, a.diameter, a.angle, a.variant)[
                    0
                ]
                for a in scene.actors
            ]
            assert (np.minimum(*covered) > 0.5).sum() == 0
    assert pairs > 15


@pytest.mark.parametrize("name", list(REGIONS))
def test_colour_values_deserve_their_names(name: str) -> None:
    rng = generator(0)
    for choose in (canonical, nearby):
        values = np.array([choose(name, rng) for _ in range(200)])
        assert values.min() >= 0
        assert values.max() <= 1
        assert {colour_name(value * 255) for value in values} == {name}


def test_a_plain_scene_is_the_same_scene_without_noise_and_shades() -> None:
    noisy = (sample_shapes(generator(i), frames=2, purpose="see") for i in itertools.count())
    for scene in itertools.islice((s for s in noisy if s.noise_seed is not None), 30):
        plain, seen = scene.plain().render(SIZE), scene.render(SIZE)
        colours, counts = np.unique(plain.reshape(-1, 3), axis=0, return_counts=True)
        # A plain ground has one colour in most of the pixels; noise gives it many.
        assert counts.max() > 0.5 * SIZE**2
        assert tuple(colours[counts.argmax()]) == REGIONS[scene.ground].canonical[0]
        for actor in scene.actors:
            painted = np.all(plain == REGIONS[actor.thing.colour].canonical[0], axis=-1)
            assert painted.any()
            assert colour_name(np.median(seen[painted], axis=0)) == actor.thing.colour


def test_shapes_to_make_step_by_a_patch_of_the_image_tokenizer() -> None:
    """A frame later a moving shape is the same picture, one patch of 8 pixels further."""
    shift = {"left": (0, -8), "right": (0, 8), "up": (-8, 0), "down": (8, 0)}
    moving = [s for s in lone_shapes(80, "make", 8) if s.actors[0].thing.motion in shift]
    assert len(moving) > 30
    for scene in moving:
        frames = scene.render(SIZE).astype(int)
        moved = np.roll(frames[:-1], shift[scene.actors[0].thing.motion], axis=(1, 2))
        going = abs(np.diff(scene.actors[0].centre, axis=0)).max(-1) > 0
        assert going[:4].all()  # then it rests at the border
        assert np.abs(moved - frames[1:])[going].max() <= 2
        assert (frames[1:] == frames[:-1])[~going].all()


def test_each_patch_is_named_by_the_shape_that_is_seen_there() -> None:
    for purpose in ("see", "make"):
        for scene in lone_shapes(40, purpose, 3):
            names = scene.shapes_at(8)
            frames = scene.plain().render(64).astype(int)
            ground = np.array(scene.plain().ground_colour) * 255
            painted = (np.abs(frames - ground).max(-1) > 40).reshape(3, 8, 8, 8, 8).mean((2, 4))
            index = 1 + SHAPES.index(scene.actors[0].thing.shape)
            assert set(np.unique(names)) == {0, index}
            assert (names[painted > 0.2] == index).all()
            assert (names[painted == 0] == 0).all()
    assert not sample_landscape(generator(1), frames=2, purpose="see").shapes_at(8).any()


def test_what_is_to_move_says_its_way_and_goes_it() -> None:
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    examples = stream(3, "", size=SIZE, frames=(1, 4), mix={"move": 1.0})
    seen = set()
    for example in itertools.islice(examples, 40):
        wish, answer = example.exchanges[0]
        way = re.search(r" moving (left|right|up|down) on an? \w+ background$", wish)[1]
        share = shares(example.frames)
        moved = centroid(share[-1]) - centroid(share[0])
        assert moved @ ways[way] > 0.1
        assert answer == ""
        seen.add((way, len(example.frames)))
    assert {way for way, _ in seen} == set(ways)
    assert {frames for _, frames in seen} == {2, 3, 4}


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 9, 10, 14, 16, 18])
def test_shapes_to_make_stay_inside(frames: int) -> None:
    for scene in lone_shapes(60, "make", frames):
        actor = scene.actors[0]
        reach = actor.diameter[:, None] / 2
        assert (actor.centre - reach).min() > -1e-6
        assert (actor.centre + reach).max() < 1 + 1e-6
