"""Pictures and clips: every kind is read as a player shows it, or refused in one line.

What is read is compared with the reference numbers, with a plain sequential decode, and with
pictures whose pixels are known because the test made them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from lwm_core.errors import LwmError, MediaError, OutputError, UsageError
from lwm_core.media import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    check_output,
    clips,
    grid,
    prepare,
    read_media,
    upscale,
    write_image,
    write_video,
)
from lwm_core.media.choice import choose_frames

# What lies in the shared folder: frames, height and width with frames=8, or the refusal.
SHARED_MEDIA: dict[str, tuple[int, int, int] | type[LwmError]] = {
    "README.md": MediaError,
    "b.mp4": (8, 270, 480),
    "bigbuckbunny.mp4": (8, 720, 1280),
    "bikes.mp4": (8, 272, 640),
    "carphone_pristine.mp4": (8, 144, 176),
    "cheetah1.jpg": (1, 256, 256),
    "countdown_10min.mkv": (8, 288, 384),
    "lion.jpg": (1, 256, 256),
    "logo.png": (1, 57, 66),
    "odd": UsageError,
    "odd/audio_only.mp4": MediaError,
    "odd/b.avi": (8, 270, 480),
    "odd/empty.gif": (1, 1, 1),
    "odd/flv_test.flv": (8, 240, 320),
    "odd/mkv_test.mkv": (8, 480, 720),
    "odd/mpg_test.mpg": (8, 720, 1280),
    "odd/muted_b.mp4": (8, 270, 480),
    "odd/rotated90.mp4": (8, 640, 272),
    "odd/sample.avif": (1, 480, 640),
    "odd/sample.gif": (8, 32, 32),
    "odd/sample.heic": (1, 960, 1440),
    "odd/sample.m4a": MediaError,
    "odd/sample.mov": (8, 240, 320),
    "odd/test.webp": (1, 1, 1),
    "odd/truncated_bbb.mp4": MediaError,
    "odd/vfr.mp4": (8, 272, 640),
    "odd/wmv_test.wmv": (8, 264, 360),
    "pedestrians.avi": (8, 576, 768),
    "tower.jpg": (1, 600, 377),
    "world.mp4": (8, 270, 480),
}


def picture(index: int = 0, height: int = 64, width: int = 96) -> np.ndarray:
    """A picture that tells its index: a gradient with a bright line that wanders."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 3, columns * 2, 0 * rows + index], axis=-1).astype(np.uint8)
    pixels[(index * 7) % height] = 255
    return pixels


def make_clip(
    path: Path,
    codec: str = "libx264",
    count: int = 100,
    *,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Callable[[int], int] | None = None,
) -> Path:
    """Encode `count` pictures at 25 frames a second, or at `times(index)` milliseconds."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            if times:
                frame.pts, frame.time_base = times(index), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sequential(path: Path) -> np.ndarray:
    """Every frame of a small clip as PyAV decodes it from beginning to end."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of the frames that get decoded, wanted or not."""
    seen: list[int] = []
    decode = clips._decode

    def watched(*arguments: object) -> Iterator[tuple[int, av.VideoFrame]]:
        for index, frame in decode(*arguments):
            seen.append(index)
            yield index, frame

    monkeypatch.setattr(clips, "_decode", watched)
    return seen


# --- the numbers of the original -------------------------------------------------------------


def test_prepare_equals_the_reference(reference: Path) -> None:
    with np.load(reference / "frames" / "golden.npz") as golden:
        names = [name for name in golden if name.startswith("image")]
        assert len(names) == 8
        for name in names:
            _, number, size = name.split("_")
            clip = read_media(reference / "frames" / f"image_{number}.png")
            np.testing.assert_array_equal(prepare(clip.frames, int(size))[0], golden[name])
        np.testing.assert_array_equal(
            prepare(golden["video_8_decoded"], 64), golden["video_8_processed_64"]
        )


def test_frames_are_chosen_as_in_the_reference(reference: Path) -> None:
    path = reference / "frames" / "clip.mp4"
    lists = json.loads((reference / "frames" / "meta.json").read_text())["video"]["index_lists"]
    every = sequential(path)
    for count, indices in lists.items():
        clip = read_media(path, frames=int(count))
        np.testing.assert_array_equal(clip.frames, every[indices])
    with np.load(reference / "frames" / "golden.npz") as golden:
        eight = read_media(path, frames=8).frames
        assert np.abs(eight.astype(int) - golden["video_8_decoded"]).max() <= 3


# --- which frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "start", "end", "chosen"),
    [
        (8, None, None, [0, 1, 2, 3, 5, 6, 7, 9]),
        (20, None, None, list(range(10))),
        (1, None, None, [0]),
        (3, 1.0, 3.0, [2, 3, 5]),  # the frame at 3.0 belongs to what follows
        (3, 4.9, None, [9]),  # no frame begins after 4.9: the one on view is taken
        (3, 1.1, 1.2, [2]),
        (3, None, 0.1, [0]),
    ],
)
def test_choice(frames: int, start: float | None, end: float | None, chosen: list[int]) -> None:
    times = np.arange(10) / 2
    assert choose_frames(times, frames, start, end).tolist() == chosen


@pytest.mark.parametrize(
    ("rate", "frames", "start", "chosen"),
    [
        (1, None, None, [0, 2, 4, 6, 8]),
        (2, None, None, list(range(10))),
        (100, None, None, list(range(10))),  # no frame twice
        (0.4, None, None, [0, 5]),
        (0.01, None, None, [0]),
        (1, 3, None, [0, 4, 8]),  # at most three, spread as always
        (1, None, 0.6, [2, 4, 6, 8]),  # the clock starts with the first frame that is wanted
    ],
)
def test_rate(rate: float, frames: int | None, start: float | None, chosen: list[int]) -> None:
    times = np.arange(10) / 2
    assert choose_frames(times, frames, start, None, rate).tolist() == chosen


def test_rate_goes_by_what_is_on_view() -> None:
    """A frame that stays is taken once; of those within one tick, the one on view."""
    times = np.array([0, 0.1, 0.2, 0.9, 3.5, 3.6])
    assert choose_frames(times, None, None, None, 1).tolist() == [0, 3]
    assert choose_frames(times, None, None, None, 2).tolist() == [0, 2, 3, 4]


def test_start_beyond_the_end_names_the_length(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", count=50)
    with pytest.raises(UsageError, match=r"start 2 s lies beyond the end: the clip is 2 s long"):
        read_media(path, start=2)
    assert read_media(path, start=1.99).times.tolist() == [1.96]


@pytest.mark.parametrize(
    "wish",
    [
        {"frames": 0},
        {"start": -1},
        {"start": 2, "end": 2},
        {"end": 0},
        {"start": np.nan},
        {"rate": 0},
    ],
)
def test_impossible_wishes_are_refused(tmp_path: Path, wish: dict[str, float]) -> None:
    write_image(tmp_path / "a.png", picture())
    with pytest.raises(UsageError):
        read_media(tmp_path / "a.png", **wish)


# --- films: seeking and time -----------------------------------------------------------------


def test_every_shared_file_is_read_or_refused(
    shared: Path, subtests: pytest.Subtests, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((shared / "media").rglob("*")):
        name = path.relative_to(shared / "media").as_posix()
        with subtests.test(name):
            expected = SHARED_MEDIA[name]
            if isinstance(expected, tuple):
                clip = read_media(path)
                assert clip.frames.shape == (*expected, 3)
                assert clip.frames.dtype == np.uint8
                assert clip.times.shape == expected[:1]
                assert clip.times[0] == 0
                assert (np.diff(clip.times) > 0).all()
            else:
                with pytest.raises(expected) as refusal:
                    read_media(path)
                assert path.name in str(refusal.value)
                assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_the_countdown_shows_the_right_second(shared: Path, decoded: list[int]) -> None:
    """One frame a second: the time of a frame is its number in a plain sequential decode."""
    path = shared / "media" / "countdown_10min.mkv"
    overview = read_media(path, frames=5)
    assert overview.times.tolist() == [0, 149, 299, 449, 599]
    assert len(decoded) < 250  # of 600, with a keyframe every 60
    stretch = read_media(path, frames=4, start=300.5, end=420)
    assert stretch.times.tolist() == [301, 340, 379, 419]
    wanted = dict(zip(overview.times, overview.frames, strict=True))
    wanted |= dict(zip(stretch.times, stretch.frames, strict=True))
    with av.open(str(path)) as container:
        for second, frame in enumerate(container.decode(video=0)):
            if second in wanted:
                np.testing.assert_array_equal(wanted[second], frame.to_ndarray(format="rgb24"))


def test_a_turned_film_stands_upright(shared: Path) -> None:
    """rotated90.mp4 is bikes.mp4 with a display matrix that asks for a quarter turn."""
    turned = read_media(shared / "media" / "odd" / "rotated90.mp4", frames=2)
    plain = read_media(shared / "media" / "bikes.mp4", frames=2)
    np.testing.assert_array_equal(turned.frames, np.rot90(plain.frames, axes=(1, 2)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("sign_x", "sign_y"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_display_matrices(turned: bool, sign_x: int, sign_y: int) -> None:
    """Each pixel (x, y) is shown at (ax + cy, bx + dy), moved so that the corner is at 0."""
    a, b, c, d = (0, sign_y, sign_x, 0) if turned else (sign_x, 0, 0, sign_y)
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    x, y = np.meshgrid(np.arange(3), np.arange(2))
    shown_x, shown_y = a * x + c * y, b * x + d * y
    shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
    expected = np.zeros((shown_y.max() + 1, shown_x.max() + 1, 3), np.uint8)
    expected[shown_y, shown_x] = pixels
    stored = np.array([a, b, 0, c, d, 0, 0, 0, 1], np.int32) << 16
    frame = SimpleNamespace(side_data={"DISPLAYMATRIX": stored.tobytes()})
    np.testing.assert_array_equal(clips._upright(pixels, frame), expected)


REORDERED = {"x264-params": "keyint=20:min-keyint=20:scenecut=0:bframes=3:open-gop=1"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("open_gop.mp4", {"options": REORDERED}),
        (
            "fragments.mp4",
            {"options": REORDERED, "container_options": {"movflags": "frag_keyframe"}},
        ),
        ("without_duration.mkv", {"options": REORDERED, "container_options": {"live": "1"}}),
        ("transport_stream.ts", {"options": REORDERED}),
        ("program_stream.mpg", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
        ("old.avi", {"codec": "mpeg4", "options": {"g": "20"}}),
        ("flash.flv", {"options": REORDERED}),
        ("windows.asf", {"codec": "wmv2", "options": {"g": "20"}}),
    ],
)
def test_seeking_equals_decoding_everything(
    tmp_path: Path, decoded: list[int], name: str, options: dict
) -> None:
    path = make_clip(tmp_path / name, **options)
    every = sequential(path)
    clip = read_media(path, frames=3)
    np.testing.assert_array_equal(clip.frames, every[[0, 49, 99]])
    np.testing.assert_allclose(clip.times, [0, 1.96, 3.96], atol=2e-3)
    assert len(decoded) < 90
    part = read_media(path, frames=100, start=2.6)
    np.testing.assert_array_equal(part.frames, every[65:])


def test_what_no_other_frame_needs_is_left_out(tmp_path: Path, decoded: list[int]) -> None:
    """Any one frame is the same without those on the way to it that are no other's reference."""
    path = make_clip(tmp_path / "clip.mp4", count=60, options=REORDERED)
    for index, frame in enumerate(sequential(path)):
        clip = read_media(path, frames=1, start=index / 25)
        assert clip.times.tolist() == pytest.approx([index / 25])
        np.testing.assert_array_equal(clip.frames[0], frame)
    from_keyframes = sum(index % 20 + 1 for index in range(60))
    assert len(decoded) < 0.85 * from_keyframes


@pytest.mark.parametrize("name", ["reordered.avi", "bare.h264"])
def test_frames_without_times_are_counted(tmp_path: Path, name: str) -> None:
    path = make_clip(tmp_path / name, options=REORDERED)
    clip = read_media(path, frames=5)
    np.testing.assert_array_equal(clip.frames, sequential(path)[[0, 24, 49, 74, 99]])
    np.testing.assert_allclose(clip.times, np.array([0, 24, 49, 74, 99]) / 25)


def test_variable_frame_rate(tmp_path: Path) -> None:
    """Two seconds of quick frames, then slow ones: choice by frames, time by the clock."""
    path = make_clip(
        tmp_path / "vfr.mkv",
        options=REORDERED,
        times=lambda index: index * 40 if index < 50 else 2000 + (index - 50) * 500,
    )
    clip = read_media(path, frames=4)
    np.testing.assert_allclose(clip.times, [0, 1.32, 10, 26.5])
    np.testing.assert_array_equal(clip.frames, sequential(path)[[0, 33, 66, 99]])
    assert read_media(path, frames=2, start=10, end=10.6).times.tolist() == [10.0, 10.5]


def test_size_prepares_while_reading(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", count=5)
    small = read_media(path, size=32)
    np.testing.assert_array_equal(small.frames, prepare(read_media(path).frames, 32))
    np.testing.assert_array_equal(prepare(small.frames, 32), small.frames)


# --- damage and refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_truncated_film_is_read_as_far_as_it_goes(tmp_path: Path, name: str) -> None:
    whole = make_clip(tmp_path / f"whole_{name}", options={"x264-params": "keyint=20"})
    every = sequential(whole)
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    clip = read_media(tmp_path / name, frames=100)
    assert 20 < len(clip.frames) < 80
    np.testing.assert_array_equal(clip.frames[:20], every[:20])


def test_a_truncated_film_with_a_whole_index(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", (picture(index) for index in range(50)), 25)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    clip = read_media(tmp_path / "cut.mp4", frames=50)
    assert 5 < len(clip.frames) < 50


def test_garbled_bytes_never_leak_a_foreign_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name in ("clip.mp4", "clip.mkv", "clip.ts", "clip.gif", "clip.webp", "clip.avi"):
        if Path(name).suffix in VIDEO_SUFFIXES:
            write_video(tmp_path / name, (picture(index) for index in range(30)), 25)
        else:
            make_clip(tmp_path / name, count=30)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(10):
            garbled = content.copy()
            garbled[random.integers(0, len(content), 20)] = random.integers(0, 256, 20)
            (tmp_path / name).write_bytes(garbled.tobytes())
            with suppress(MediaError):
                assert len(read_media(tmp_path / name, frames=4).frames)
    assert capfd.readouterr() == ("", "")


def write_refused_files(folder: Path) -> dict[str, str]:
    """File name → a word that its refusal must contain."""
    (folder / "empty.png").touch()
    (folder / "text.mp4").write_text("This is a story.\n" * 100)
    (folder / "text.txt").write_text("This is a story.\n" * 100)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    Image.new("1", (12000, 12000)).save(folder / "large.png")
    with av.open(str(folder / "no_frame.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 64
        container.start_encoding()
    content = make_clip(folder / "whole.mp4", count=5).read_bytes()
    (folder / "head.mp4").write_bytes(content[:200])
    Image.fromarray(picture()).save(folder / "whole.bmp")
    (folder / "cut.bmp").write_bytes((folder / "whole.bmp").read_bytes()[:1000])
    return {
        "empty.png": "is empty",
        "text.mp4": "no picture or clip",
        "text.txt": "no picture or clip",
        "list.m3u8": "no picture or clip",
        "huge.png": "128 million pixels",
        "large.png": "128 million pixels",
        "no_frame.mp4": "no picture in it",
        "head.mp4": "cut off",
        "cut.bmp": "truncated",
    }


def test_refusals(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name, reason in write_refused_files(tmp_path).items():
        with subtests.test(name):
            with pytest.raises(MediaError, match=reason) as refusal:
                read_media(tmp_path / name)
            assert str(tmp_path / name) in str(refusal.value)


def test_what_is_no_file_is_a_usage_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nowhere.mp4", tmp_path / "pipe", Path("-"), "a\0b"):
        with pytest.raises(UsageError):
            read_media(path)


# --- pictures --------------------------------------------------------------------------------


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    rgb = np.stack([gray] * 3, axis=-1)
    half_clear = np.full_like(gray, 128)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "sixteen_bits.png")
    Image.fromarray(gray.astype(np.float32) / 255).save(tmp_path / "float.tiff")
    Image.fromarray(np.dstack([rgb, half_clear])).save(tmp_path / "alpha.png")
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(
        tmp_path / "palette.png", transparency=bytes(range(64))
    )
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tiff")
    paths = list(tmp_path.iterdir())
    assert len(paths) == 6
    for path in paths:
        np.testing.assert_array_equal(read_media(path).frames[0], rgb, err_msg=path.name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_media(tmp_path / "a.png").frames[0], expected)


def test_broken_metadata_does_not_hide_a_picture(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=b"garbage")
    np.testing.assert_array_equal(read_media(tmp_path / "a.png").frames, [picture()])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_have_their_times(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(picture(index)) for index in range(5)]
    path = tmp_path / f"a.{suffix}"
    durations = [50, 100, 150, 200, 250]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    clip = read_media(path)
    np.testing.assert_allclose(clip.times, [0, 0.05, 0.15, 0.3, 0.5])
    assert read_media(path, start=0.3).times.tolist() == pytest.approx([0.3, 0.5])
    middle = read_media(path, frames=1, start=0.2, end=0.4)
    np.testing.assert_array_equal(middle.frames[0], clip.frames[3])
    assert np.abs(clip.frames - np.stack(images).astype(float)).mean() < 8


def test_several_pages_are_no_film(tmp_path: Path) -> None:
    images = [Image.fromarray(picture(index)) for index in range(3)]
    images[0].save(tmp_path / "pages.tiff", save_all=True, append_images=images[1:])
    np.testing.assert_array_equal(read_media(tmp_path / "pages.tiff").frames, [picture(0)])


# --- shape -----------------------------------------------------------------------------------


def test_prepare_takes_any_shape() -> None:
    for height, width in ((1, 1), (1, 20000), (20000, 1), (7, 3)):
        frames = np.full((2, height, width, 3), 77, np.uint8)
        assert (prepare(frames, 64) == np.full((2, 64, 64, 3), 77)).all()


def test_upscale_only_enlarges() -> None:
    large = picture()[None]
    assert upscale(large, 64) is large
    assert upscale(large, 100).shape == (1, 100, 150, 3)
    assert (upscale(np.full((2, 1, 3, 3), 9, np.uint8), 8) == np.full((2, 8, 24, 3), 9)).all()


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (7, 3, 3)])
def test_grid(count: int, rows: int, columns: int) -> None:
    pictures = np.stack([picture(index + 1) for index in range(count)])
    tiled = grid(pictures)
    assert tiled.shape == (rows * 64, columns * 96, 3)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        cell = tiled[row * 64 : (row + 1) * 64, column * 96 : (column + 1) * 96]
        np.testing.assert_array_equal(cell, pictures[index] if index < count else 0 * cell)


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_pictures_survive_writing(tmp_path: Path, suffix: str) -> None:
    pixels = picture()[1:]
    write_image(tmp_path / f"a{suffix}", pixels)
    clip = read_media(tmp_path / f"a{suffix}")
    assert clip.frames.shape == (1, *pixels.shape)
    difference = np.abs(clip.frames[0].astype(int) - pixels)
    assert difference.mean() <= (0 if suffix == ".png" else 4)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("fps", [7, 12, 29.97])
def test_films_survive_writing(
    tmp_path: Path, suffix: str, fps: float, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = np.stack([upscale(picture(index)[None, 1:], 126)[0] for index in range(10)])
    write_video(tmp_path / f"a{suffix}", frames, fps)
    clip = read_media(tmp_path / f"a{suffix}", frames=10)
    assert clip.frames.shape == frames.shape
    assert np.abs(clip.frames.astype(int) - frames).mean() < 6
    np.testing.assert_allclose(clip.times, np.arange(10) / fps, atol=0.006)
    assert capfd.readouterr() == ("", "")


def test_mp4_is_made_for_players(tmp_path: Path) -> None:
    """Odd sizes are padded at the edge, the index comes first, colours are labelled."""
    color = np.array([200, 30, 60], np.uint8)
    write_video(tmp_path / "a.mp4", [np.full((33, 51, 3), color)], 8)
    clip = read_media(tmp_path / "a.mp4")
    assert clip.frames.shape == (1, 34, 52, 3)
    assert np.abs(clip.frames.astype(int) - color).max() <= 4
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == stream.codec_context.color_primaries == 1


class Stop(Exception):
    """Something goes wrong while frames are made."""


@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_nothing_is_left_when_writing_is_broken_off(
    tmp_path: Path, suffix: str, problem: type[BaseException]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("what was there")

    def frames() -> Iterator[np.ndarray]:
        for index in range(60):
            yield picture(index)
        raise problem

    with pytest.raises(problem):
        write_video(path, frames(), 8, force=True)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "what was there"


def test_no_frames_make_no_film(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"):
        write_video(tmp_path / "a.mp4", iter(()), 8)
    with pytest.raises(UsageError, match="fps"):
        write_video(tmp_path / "a.mp4", [picture()], 0)
    assert not list(tmp_path.iterdir())


def test_output_is_only_overwritten_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, picture(1))
    with pytest.raises(UsageError, match=r"exists.*--force"):
        write_image(path, picture(2))
    np.testing.assert_array_equal(read_media(path).frames[0], picture(1))
    (tmp_path / "link.png").symlink_to(path)
    write_image(tmp_path / "link.png", picture(3), force=True)
    np.testing.assert_array_equal(read_media(path).frames[0], picture(3))
    assert (tmp_path / "link.png").is_symlink()
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.bmp", r"\.mp4, \.gif or \.webp"),
        ("a", r"\.mp4, \.gif or \.webp"),
        ("folder.mp4", "directory"),
        ("nowhere/a.mp4", "no directory"),
        (f"{'a' * 300}.mp4", "too long"),
    ],
)
def test_impossible_outputs_are_refused_before_any_work(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match=reason):
        check_output(tmp_path / name, VIDEO_SUFFIXES)


def test_an_unwritable_place_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
        with pytest.raises(OutputError, match="permission"):
            check_output(tmp_path / "a.png", PICTURE_SUFFIXES)

    def full_disk(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_image(tmp_path / "a.png", picture())
    assert not list(tmp_path.iterdir())
