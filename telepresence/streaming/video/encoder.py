"""Pictures to H.264 and VP8: x264, NVENC where there is one, libvpx."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from insta_runtime.types import Bytes

if TYPE_CHECKING:
    import av

CLOCK_RATE = 90_000  # of RTP video (RFC 3551); every pts of the stream counts in it

VBV_S, VBV_FRAMES = 0.1, 3  # at the highest rate, the longer of both: what a keyframe's burst may be; a smaller one
# costs likeness, a larger one delay
REOPEN = 1.25  # libvpx cannot change its rate while it runs: beyond this factor it is opened anew, with a keyframe

PROBE_SIDE = 256  # pixels; NVENC refuses much smaller pictures


class Codec(StrEnum):
    """What a viewer decodes; the values are the names in SDP."""

    H264 = "H264"
    VP8 = "VP8"


class Encoder(Protocol):
    """One stream of pictures of one size."""

    name: str

    def set_rate(self, bitrate: int) -> None:
        """Aim at ``bitrate`` bit/s from the next picture on, at most at the rate that it was opened with."""

    def encode(self, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        """One yuv420p frame in, one packet out; ``pts`` in 1/90000 s, growing.  Writes into ``frame``."""


class Converter:
    """RGB pictures to yuv420p frames with BT.601 limited-range colour, as VP8 assumes.

    It keeps the scaler's tables, which would cost more than the conversion itself; use one from one thread.
    """

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._scalers: defaultdict[tuple[str, int], VideoReformatter] = defaultdict(VideoReformatter)

    def convert(self, rgb: Bytes, size: int) -> av.VideoFrame:
        """(H, W, 3) uint8 sRGB to a ``size`` x ``size`` frame."""
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        return self._scalers["rgb", size].reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), format="rgb24"),  # read before this returns
            width=size,
            height=size,
            format="yuv420p",
            interpolation=Interpolation.BICUBIC,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601,
        )

    def shrink(self, frame: av.VideoFrame, size: int) -> av.VideoFrame:
        """A yuv420p frame to a ``size`` x ``size`` one."""
        from av.video.reformatter import Interpolation

        return self._scalers["yuv", size].reformat(frame, width=size, height=size, interpolation=Interpolation.AREA)


class H264Encoder:
    """H.264 without delay: constrained baseline, constant bitrate, a keyframe when asked for, or after 3000 pictures
    without one.

    Every keyframe is an IDR picture with SPS and PPS before it, so that a viewer can start at any of them.  The rate
    changes from one picture to the next without a keyframe: x264 does that only if it was opened at a constant rate,
    and below it.
    """

    def __init__(self, size: int, fps: int, bitrate: int, preset: str = "superfast", nvenc: bool = False) -> None:
        """``size`` in pixels (even), ``fps`` the real rate (rate control trusts it), ``bitrate`` the highest, in bit/s.

        ``preset`` is x264's; ``nvenc`` asks for NVIDIA's encoder instead.  av.FFmpegError if it cannot be opened.
        """
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        codec = _open_soon("h264_nvenc" if nvenc else "libx264", size, fps, bitrate)
        codec.profile = "Baseline"
        codec.color_range = ColorRange.MPEG
        codec.colorspace = Colorspace.ITU601
        codec.color_primaries = ColorPrimaries.SMPTE170M
        codec.color_trc = ColorTrc.IEC61966_2_1
        nvidia = {"preset": "p3", "tune": "ull", "rc": "cbr", "zerolatency": "1", "delay": "0", "bf": "0"}
        software = {
            "preset": preset,
            "tune": "zerolatency",
            "level": "31" if size <= 512 else "42",
            "x264-params": "scenecut=0",
        }
        codec.options = {
            **(nvidia if nvenc else software),
            "maxrate": str(bitrate),
            "bufsize": str(round(max(VBV_S, VBV_FRAMES / fps) * bitrate)),
            "forced-idr": "1",
        }
        codec.open()
        self.name = "nvenc" if nvenc else "x264"
        self._codec = codec
        self._highest = bitrate

    def set_rate(self, bitrate: int) -> None:
        self._codec.bit_rate = min(bitrate, self._highest)

    def encode(self, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        return _encode(self._codec, frame, pts, keyframe)


class Vp8Encoder:
    """VP8 without delay, for peers that have no H.264; a change of the rate by a quarter costs a keyframe."""

    def __init__(self, size: int, fps: int, bitrate: int) -> None:
        """``size`` in pixels (even), ``bitrate`` the highest, in bit/s."""
        self.name = "vp8"
        self._size, self._fps, self._highest = size, fps, bitrate
        self._wanted = self._rate = bitrate
        self._codec = self._open()

    def set_rate(self, bitrate: int) -> None:
        self._wanted = min(bitrate, self._highest)

    def encode(self, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        if not self._rate / REOPEN <= self._wanted <= self._rate * REOPEN:
            self._rate = self._wanted
            self._codec = self._open()
        return _encode(self._codec, frame, pts, keyframe)

    def _open(self) -> Any:
        codec = _open_soon("libvpx", self._size, self._fps, self._rate)
        codec.qmin, codec.qmax = 2, 56
        codec.options = {
            "deadline": "realtime",
            "cpu-used": "-8",
            "lag-in-frames": "0",
            "noise-sensitivity": "0",  # a denoiser for cameras, which smears what was rendered
            "static-thresh": "1",
            "undershoot-pct": "100",
            "overshoot-pct": "15",
            "minrate": str(self._rate),  # with maxrate: at a constant rate
            "maxrate": str(self._rate),
            "bufsize": str(self._rate // 2),
        }
        codec.open()
        return codec


@cache
def nvenc_trouble() -> str | None:
    """Why NVIDIA's encoder cannot be used on this machine, in one line; None where it has encoded a frame.

    That PyAV lists it says nothing, nor that there is a GPU: data-centre GPUs have no encoder.
    """
    return _trouble(nvenc=True)


@cache
def x264_trouble() -> str | None:
    """Why x264 cannot be used with this PyAV, in one line; None where it has encoded a frame."""
    return _trouble(nvenc=False)


def _trouble(nvenc: bool) -> str | None:
    import av

    grey = np.full((PROBE_SIDE, PROBE_SIDE, 3), 128, dtype=np.uint8)
    try:
        encoder = H264Encoder(PROBE_SIDE, 30, 500_000, "ultrafast", nvenc)
        packets = [encoder.encode(Converter().convert(grey, PROBE_SIDE), 3000 * i, i == 1) for i in range(2)]
    except (av.FFmpegError, ValueError) as error:  # ValueError: unknown codec, or not one packet for one frame
        return getattr(error, "strerror", None) or str(error)
    return None if all(packet.is_keyframe for packet in packets) else "it makes no keyframes on demand"


def _open_soon(name: str, size: int, fps: int, bitrate: int) -> Any:
    """A codec of ``name`` with what all of them share, not yet open."""
    from av import CodecContext

    codec: Any = CodecContext.create(name, "w")
    codec.width = codec.height = size
    codec.pix_fmt = "yuv420p"
    codec.framerate = Fraction(fps)
    codec.time_base = Fraction(1, CLOCK_RATE)
    codec.bit_rate = bitrate
    codec.gop_size = 3000
    codec.thread_count = 1  # half the latency of two threads would cost the tracker a core
    return codec


def _encode(codec: Any, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
    from av.video.frame import PictureType

    frame.pts = pts
    frame.time_base = Fraction(1, CLOCK_RATE)
    frame.pict_type = PictureType.I if keyframe else PictureType.NONE
    (packet,) = codec.encode(frame)
    return packet
