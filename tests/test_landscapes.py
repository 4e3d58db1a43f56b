"""Landscapes are what their words say: measured on pixels, not by the renderer."""

from __future__ import annotations

import numpy as np
import pytest
from pixels import SIZE, centroid, generator

from lwm_core.world import sample_landscape
from lwm_core.world.colours import REGIONS
from lwm_core.world.painters import PAINTERS


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


def test_a_plain_landscape_shows_usual_colours() -> None:
    for seed in range(12):
        scene = sample_landscape(generator(seed), frames=1, purpose="see", name="ball")
        colours = scene.plain().render(SIZE).reshape(-1, 3)
        assert scene.plain().noise_seed is None
        usual = np.array(REGIONS[scene.names["colour"]].canonical[0])
        assert np.abs(colours - usual).max(-1).min() < 12


def test_landscapes_to_make_have_few_views() -> None:
    scenes = [
        sample_landscape(generator(seed), frames=1, purpose="make", name="snow")
        for seed in range(100)
    ]
    assert 2 <= len({scene.seed for scene in scenes}) <= 6
