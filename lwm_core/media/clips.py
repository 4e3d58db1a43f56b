"""Films through PyAV: the wanted frames, upright, without decoding the rest.

One pass over the packets (read, not decoded) gives the exact time of every frame and where
the keyframes are, whatever the container says or leaves out about rate, count and duration.
Then a seek is worth it exactly when a keyframe lies well ahead on the way to the next
wanted frame. Of what is decoded on the way there, H.264 marks what nothing else needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, dropwhile
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lwm_core.errors import MediaError
from lwm_core.media.pictures import MAX_PIXELS, check_pixels

# Containers of pictures, films and sound. FFmpeg also knows playlists and scripts that make it
# open other files or the network, and would draw a text file letter by letter.
CONTAINERS = (
    "mov,matroska,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,ogg,rm,dv,mxf,nut,"
    "wtv,swf,yuv4mpegpipe,mjpeg,mp3,flac,wav,aac,aiff,caf"
)
CONTAINER_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}  # a stream can change its size half-way

WORTH_A_SEEK = 12  # frames: fewer are decoded sooner than a decoder has started anew
UNKNOWN_RATE = 25  # frames a second, for a bare stream without any clock
END = (sys.maxsize, None)  # what follows the last decoded frame


class Video:
    """A film: `times` float64 `[n]` (s from its first frame) and the frames at given indices."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _open(path) as (container, stream):
            self._timeline = _scan(container, stream)
        self._aims = list(self._timeline.aims)
        self.times = self._timeline.times

    def read(self, indices: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds, uint8 `[height, width, 3]`) for increasing indices.

        A frame that can't be decoded gives way to the next that can, of those that others are
        decoded from; past the last that can, the iteration ends early. All pictures have the size
        of the first.
        """
        size: tuple[int, int] | None = None
        for index, frame in self._frames_at(indices):
            size = size or (frame.width, frame.height)
            picture = frame.reformat(*size, format="rgb24").to_ndarray()
            yield float(self.times[index]), _upright(picture, frame)

    def _frames_at(self, indices: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        keyframes = self._timeline.keyframes
        with _open(self._path) as (container, stream):
            timeline = self._timeline
            decoded = _decode(_packets(container, stream), stream, timeline, indices)
            here, frame, given = -1, None, -1
            for position, wanted in enumerate(indices):
                nearest = np.searchsorted(keyframes, wanted, "right") - 1
                if self._aims and keyframes[nearest] - here > WORTH_A_SEEK:
                    with suppress(FFmpegError):  # can't seek: decode on from here
                        container.seek(int(self._aims[0][nearest]), stream=stream)
                        packets = _after_seek(container, stream, timeline)
                        decoded = _decode(packets, stream, timeline, indices)
                        here, frame = next(decoded, END)
                    if here > wanted:  # landed beyond or nowhere: this aim does not work here
                        del self._aims[0]
                        yield from self._frames_at(indices[position:])
                        return
                while here < wanted:
                    here, frame = next(decoded, END)
                if frame is None:
                    return
                if here > given:
                    yield here, frame
                    given = here


@dataclass(frozen=True)
class Timeline:
    """Where the `n` frames of a film are, in the order in which they are shown.

    times: float64 `[n]` s from the first frame; ticks: int64 `[n]`, the file's own clock.
    keyframes: int64 `[k]` indices; aims: ticks `[k]` to seek to in order to land on each,
    to be tried in turn: when it is shown or, in MPEG streams, when it is sent.
    Without aims the file does not tell its frames' times: they are counted from the beginning.
    """

    times: np.ndarray
    ticks: np.ndarray
    keyframes: np.ndarray
    aims: tuple[np.ndarray, ...]


def _scan(container: InputContainer, stream: VideoStream) -> Timeline:
    """Read all packets, decode none. Raises MediaError if there is no frame."""
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe)
        for packet in _packets(container, stream)
        if packet.size and not packet.is_discard
    ]
    if not packets:
        raise MediaError("there is no frame in it")
    shown = [pts for pts, _, _ in packets if pts is not None]
    if len(shown) < len(packets) or _shown_is_guessed(container, stream, shown):
        index = np.arange(len(packets))
        times = index / float(stream.average_rate or UNKNOWN_RATE)
        return Timeline(times, ticks=index, keyframes=index[:1], aims=())
    sent = [pts if dts is None else dts for pts, dts, _ in packets]
    order = np.argsort(shown)
    ticks, sending = np.array(shown)[order], np.array(sent)[order]
    keyframes = np.union1d([0], np.flatnonzero([packets[i][2] for i in order]))
    times = (ticks - ticks[0]) * float(stream.time_base or 1)
    return Timeline(times, ticks, keyframes, aims=(ticks[keyframes], sending[keyframes]))


def _shown_is_guessed(container: InputContainer, stream: VideoStream, shown: list[int]) -> bool:
    """AVI stores only the order of sending; where frames are reordered FFmpeg may pass it on."""
    reorders = container.format.name == "avi" and stream.codec_context.has_b_frames
    return reorders and shown == sorted(shown)


def _decode(
    packets: Iterator[Packet], stream: VideoStream, timeline: Timeline, wanted: np.ndarray
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (index, frame), leaving out what is damaged, and what neither is wanted nor needed.

    Only H.264 says of every frame whether any other needs it; HEVC says it of layers of frames.
    """
    last = len(timeline.ticks) - 1
    counter = count()
    may_skip = timeline.aims and stream.codec_context.name == "h264"
    ticks = {None, *timeline.ticks[wanted].tolist()}
    for packet in chain(packets, [None]):  # None: hand out the rest
        if may_skip and packet is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in ticks else "NONREF"
        try:
            frames = stream.decode(packet)
        except FFmpegError:
            continue
        for frame in frames:
            tick = frame.pts if timeline.aims else next(counter)
            if tick is not None:
                yield min(int(np.searchsorted(timeline.ticks, tick)), last), frame


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the film in a file; raises MediaError if there is none."""
    try:
        container = av.open(f"file:{path}", container_options=CONTAINER_OPTIONS)
    except OSError:  # the disk, not the content
        raise
    except FFmpegError as problem:
        raise MediaError("it is no picture or clip, or one that is cut off") from problem
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            holds = "there is no picture in it"
            raise MediaError(f"{holds}, only sound" if container.streams.audio else holds)
        if stream.codec_context is None:
            raise MediaError("its video codec is unknown here; convert it to H.264 first")
        if stream.disposition & Disposition.dependent:
            raise MediaError("its picture is stored in tiles; convert it to JPEG or PNG first")
        check_pixels(stream.width, stream.height)
        stream.codec_context.options = DECODER_OPTIONS
        stream.thread_type = "AUTO"
        yield container, stream


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of the stream; a file that is cut off or garbled just ends earlier.

    IndexError: PyAV does not expect the further streams that garbled data can seem to begin.
    """
    with suppress(FFmpegError, IndexError):
        yield from container.demux(stream)


def _after_seek(
    container: InputContainer, stream: VideoStream, timeline: Timeline
) -> Iterator[Packet]:
    """The packets from the next keyframe on; none if that is not where the timeline has one.

    Between keyframes a decoder can invent gray pictures, and MPEG program streams number
    their frames differently when read from the middle.
    """
    packets = dropwhile(lambda packet: not packet.is_keyframe, _packets(container, stream))
    keyframe = next(packets, None)
    if keyframe is None or keyframe.pts not in timeline.ticks[timeline.keyframes]:
        return iter(())
    return chain([keyframe], packets)


def _upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror as the display matrix (a b u, c d v, x y w) asks: x' = ax + cy, y' = bx + dy.

    A player does the same; angles between the quarter turns are rounded to the nearest.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
