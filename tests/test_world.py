"""The world is what its words say: measured on pixels, with means that are not the renderer's."""

from __future__ import annotations

import colorsys
import itertools
import re

import numpy as np
import pytest

from lwm_core.world import (
    dialogue,
    retrieval,
    sample_landscape,
    sample_scene,
    sample_shapes,
    stream,
)
from lwm_core.world.canvas import Canvas
from lwm_core.world.colours import REGIONS, canonical, nearby
from lwm_core.world.noise import degrade
from lwm_core.world.painters import PAINTERS
from lwm_core.world.shapes import SHAPES, coverage
from lwm_core.world.stream import MIX
from lwm_core.world.words import Story, Thing, caption

SIZE = 64
HAYSTACK = "".join(f"This is sentence number {i} of a long text.\n" for i in range(4000))


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng((2026, seed))


def lone_shapes(count: int, purpose: str, frames: int):
    """Clean scenes of one shape."""
    scenes = (
        sample_shapes(generator(i), frames=frames, purpose=purpose) for i in itertools.count()
    )
    clean = (s for s in scenes if len(s.actors) == 1 and s.noise_seed is None)
    return list(itertools.islice(clean, count))


def shares(frames: np.ndarray) -> np.ndarray:
    """How much of each pixel a lone shape covers, `[F, S, S]`; the ground is the median colour."""
    ground = np.median(frames.reshape(-1, 3), 0)
    away = np.abs(frames.astype(float) - ground).sum(-1)
    return away / away.max()


def centroid(share: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y) of one frame, in parts of the side."""
    y, x = np.mgrid[: share.shape[0], : share.shape[1]] + 0.5
    return np.array([(x * share).sum(), (y * share).sum()]) / share.sum() / len(share)


def colour_name(pixel: np.ndarray) -> str:
    """A colour's name by hue, saturation and brightness."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.8 else "gray"
    ends = {
        15: "red",
        45: "orange",
        75: "yellow",
        170: "green",
        255: "blue",
        330: "purple",
        361: "red",
    }
    return next(name for end, name in ends.items() if hue * 360 < end)


def shape_name(share: np.ndarray) -> str:
    """An upright shape's name by how much of its bounding box it fills."""
    filled = share > 0.5
    box = np.ptp(np.flatnonzero(filled.any(0))) + 1, np.ptp(np.flatnonzero(filled.any(1))) + 1
    part = share.sum() / (box[0] * box[1])
    return (
        "star"
        if part < 0.475
        else "triangle"
        if part < 0.64
        else "circle"
        if part < 0.9
        else "square"
    )


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


def test_pictures_are_not_asked_about_motion() -> None:
    for index in range(60):
        scene = sample_scene(generator(index), frames=1, purpose="see")
        told = " ".join(answer for _, answer in scene.questions(generator(index), 12))
        assert not re.search(r"moves|grows|shrinks|stands still|bounces|drives|rises", told)


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


@pytest.mark.parametrize("name", list(PAINTERS))
def test_landscapes_change_in_time_and_keep_their_place(name: str) -> None:
    scene = sample_landscape(generator(1), frames=8, purpose="make", name=name)
    frames = scene.render(SIZE).astype(float)
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert steps.min() > 0.3
    again = sample_landscape(generator(1), frames=8, purpose="make", name=name).render(SIZE)
    np.testing.assert_array_equal(frames, again)
    others = [sample_landscape(generator(2), frames=8, purpose="make", name=n) for n in PAINTERS]
    distances = {o.name: np.abs(o.render(SIZE) - frames).mean() for o in others}
    assert min(distances, key=distances.get) == name


def test_the_sun_rises() -> None:
    for seed in range(5):
        scene = sample_landscape(generator(seed), frames=8, purpose="make", name="sunrise")
        red, green, blue = np.moveaxis(scene.render(SIZE)[:, :40].astype(float), -1, 0)
        yellow = ((red > 220) & (green > 180) & (green - blue > 60)).astype(float)
        heights = [centroid(np.pad(y, ((0, 24), (0, 0))))[1] for y in yellow[[0, -1]]]
        assert heights[1] < heights[0] - 0.1


def test_the_car_drives_the_way_it_is_told() -> None:
    for seed in range(8):
        scene = sample_landscape(generator(seed), frames=8, purpose="make", name="car")
        frames = scene.render(SIZE).astype(float)
        changed = np.abs(frames - np.median(frames, 0)).sum(-1)
        moved = centroid(changed[-1])[0] - centroid(changed[0])[0]
        told = dict(scene.questions(generator(seed), 30)).values()
        assert f"The car drives {'right' if moved > 0 else 'left'}." in told


def test_the_ball_comes_back_down() -> None:
    scene = sample_landscape(generator(3), frames=16, purpose="make", name="ball")
    frames = scene.render(SIZE)[:, :34].astype(float)  # the wall alone
    height = np.abs(frames - np.median(frames, 0)).sum((1, 2, 3))
    turns = np.diff(np.sign(np.diff(height)))
    assert (turns != 0).sum() >= 2


@pytest.mark.parametrize("frames", range(1, 17))
def test_any_length_and_size(frames: int) -> None:
    for purpose in ("see", "make"):
        for seed in range(6):
            scene = sample_scene(generator(seed), frames=frames, purpose=purpose)
            assert scene.frames == frames
            clip = scene.render(32 + 4 * seed)
            assert clip.shape == (frames, 32 + 4 * seed, 32 + 4 * seed, 3)
            assert clip.dtype == np.uint8
            assert len(scene.questions(generator(0), 5)) == 5
            np.testing.assert_array_equal(clip, scene.render(32 + 4 * seed))


def test_making_is_clean_and_seeing_is_mixed() -> None:
    noisy = {
        purpose: [
            sample_scene(generator(i), frames=2, purpose=purpose).noise_seed is not None
            for i in range(200)
        ]
        for purpose in ("see", "make")
    }
    assert not any(noisy["make"])
    assert 0.4 < np.mean(noisy["see"]) < 0.8


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


def test_a_plain_landscape_shows_usual_colours() -> None:
    for seed in range(12):
        scene = sample_landscape(generator(seed), frames=1, purpose="see", name="ball")
        colours = scene.plain().render(SIZE).reshape(-1, 3)
        assert scene.plain().noise_seed is None
        usual = np.array(REGIONS[scene.names["colour"]].canonical[0])
        assert np.abs(colours - usual).max(-1).min() < 12


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


def test_landscapes_to_make_have_few_views() -> None:
    scenes = [
        sample_landscape(generator(seed), frames=1, purpose="make", name="snow")
        for seed in range(100)
    ]
    assert 2 <= len({scene.seed for scene in scenes}) <= 6


def test_noise_keeps_what_is_seen() -> None:
    clip = sample_shapes(generator(5), frames=3, purpose="make").render(50)
    before = clip.copy()
    worse = [degrade(clip, generator(i)) for i in range(40)]
    np.testing.assert_array_equal(clip, before)
    assert all(w.shape == clip.shape and w.dtype == np.uint8 for w in worse)
    errors = [np.abs(w.astype(float) - clip).mean() for w in worse]
    assert max(errors) < 50
    assert len({w.tobytes() for w in worse}) > 30
    np.testing.assert_array_equal(worse[7], degrade(clip, generator(7)))


@pytest.mark.parametrize("characters", [150, 600, 5000])
def test_retrieval_in_the_wording_of_the_needle_test(characters: int) -> None:
    places = set()
    for seed in range(30):
        body, answer = retrieval.sample(generator(seed), HAYSTACK, characters=characters)
        city, number = re.fullmatch(r"The special magic (.+) number is: (\d{7})\.", answer).groups()
        needle = f"\nThe special magic {city} number is: {number}\n"
        head = "You are a helpful assistant. USER: "
        tail = (
            f" What is the special magic {city} number? Don't give information outside the document"
            " or repeat your findings. Keep your response short and direct. ASSISTANT: "
        )
        assert body.count(needle) == 1
        assert body.startswith(head)
        assert body.endswith(tail)
        text = body.removeprefix(head).removesuffix(tail).replace("<s> ", "")
        before, after = text.split(needle)
        assert before[-1:] in (".", "") or not after
        assert before + after in HAYSTACK
        assert len(before + needle + after) == characters
        places.add(round(5 * len(before) / characters))
    assert len(places) >= 3


def test_several_needles_in_the_wording_of_the_needle_test() -> None:
    body, answer = retrieval.sample(generator(0), HAYSTACK, characters=2000, needles=4, asked=3)
    asked = re.search(r"What are the special magic numbers for (.+), (.+), and (.+)\? Don't", body)
    found = re.findall(r"\nThe special magic (.+) number is: (\d+)\n", body)
    assert len(found) == 4
    assert answer == " ".join(
        f"The special magic {city} number is: {dict(found)[city]}." for city in asked.groups()
    )
    assert body.endswith("? Don't give information outside the document. ASSISTANT: ")
    body, answer = retrieval.sample(generator(1), HAYSTACK, characters=2000, needles=4)
    city = re.search(r"What is the special magic number for (.+)\?", body)[1]
    assert answer.startswith(f"The special magic {city} number is: ")


def test_dialogues_remember_what_was_said() -> None:
    remembered = 0
    for seed in range(300):
        turns = dialogue.sample(generator(seed))
        assert 1 <= len(turns) <= 9
        assert all(user and answer for user, answer in turns)
        said = " ".join(user for user, _ in turns)
        for user, answer in turns:
            if named := re.fullmatch(r"Your name is (\w+)\.", answer):
                remembered += 1
                assert re.search(rf"(name is|am|I'm|me) {named[1]}\.", said)
            if total := re.fullmatch(r"(\d+) plus (\d+) is (\d+)\.", answer):
                assert int(total[1]) + int(total[2]) == int(total[3])
                assert total[1] in user
    assert remembered > 5


def test_what_is_repeated_was_said() -> None:
    for seed in range(50):
        ((question, answer),) = dialogue.repeat(generator(seed))
        words = answer.removesuffix(".")
        assert words.lower() in question.lower()


def test_the_stream_can_be_resumed_anywhere() -> None:
    mix = dict.fromkeys(MIX, 1.0)
    options = {"size": 32, "frames": (1, 4), "characters": (100, 300), "mix": mix}
    whole = list(itertools.islice(stream(7, HAYSTACK, **options), 40))
    resumed = itertools.islice(stream(7, HAYSTACK, start=25, **options), 15)
    assert {example.kind for example in whole} == set(MIX)
    for one, other in zip(whole[25:], resumed, strict=True):
        assert (one.kind, one.exchanges) == (other.kind, other.exchanges)
        np.testing.assert_array_equal(one.frames, other.frames)
    assert whole[0].exchanges != next(stream(8, HAYSTACK, **options)).exchanges
