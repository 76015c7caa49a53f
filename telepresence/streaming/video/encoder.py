"""Video encoders: H.264 by x264 or NVENC, VP8 by libvpx, and the conversion of RGB images to YUV frames."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from insta_runtime.types import Bytes

if TYPE_CHECKING:
    import av

CLOCK_RATE: Final = 90_000
"""Clock rate of RTP video in Hz (RFC 3551), the unit of all video time stamps (pts)."""

VBV_S: Final = 0.1
"""Size of the H.264 rate-control buffer (VBV) in seconds at the maximum bitrate.

It limits the size of a keyframe: a smaller buffer costs quality, a larger one delay.
"""
VBV_FRAMES: Final = 3
"""Minimum size of the H.264 rate-control buffer (VBV) in frame periods."""
REOPEN: Final = 1.25
"""Factor of a bitrate change above which the VP8 encoder is opened again, with a keyframe; libvpx cannot change it."""

PROBE_SIDE: Final = 256
"""Side in pixels of the test frames that find out whether an encoder works; NVENC refuses much smaller frames."""


class Codec(StrEnum):
    """Video codec of a viewer; the values are the names in SDP."""

    H264 = "H264"
    VP8 = "VP8"


class Encoder(Protocol):
    """Encoder of one video stream of a constant frame size.

    Attributes:
        name: ``x264``, ``nvenc`` or ``vp8``.
    """

    name: str

    def set_rate(self, bitrate: int) -> None:
        """Set the target bitrate in bit/s from the next frame on, at most that of opening the encoder."""

    def encode(self, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        """Encode a yuv420p frame to one packet; ``pts`` is in 1/90000 s and must grow.  Writes into ``frame``."""


class Converter:
    """Converts RGB images to yuv420p frames with BT.601 limited-range colour, which VP8 requires, and scales frames.

    It caches the scaler's tables, which cost more than the conversion itself.  For one thread only.
    """

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._scalers: defaultdict[tuple[str, int], VideoReformatter] = defaultdict(VideoReformatter)

    def convert(self, rgb: Bytes, size: int) -> av.VideoFrame:
        """Convert an (H, W, 3) uint8 sRGB image to a frame of ``size`` x ``size`` pixels."""
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        return self._scalers["rgb", size].reformat(
            av.VideoFrame.from_numpy_buffer(
                np.ascontiguousarray(rgb), format="rgb24"
            ),  # its buffer is read before this returns
            width=size,
            height=size,
            format="yuv420p",
            interpolation=Interpolation.BICUBIC,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601,
        )

    def shrink(self, frame: av.VideoFrame, size: int) -> av.VideoFrame:
        """Scale a yuv420p frame to ``size`` x ``size`` pixels."""
        from av.video.reformatter import Interpolation

        return self._scalers["yuv", size].reformat(frame, width=size, height=size, interpolation=Interpolation.AREA)


class H264Encoder:
    """H.264 encoder without delay: constrained baseline, constant bitrate, keyframes on request or after 3000 frames.

    Every keyframe is an IDR picture preceded by SPS and PPS, so that a viewer can start at any of them.  The bitrate
    changes from one frame to the next without a keyframe: x264 allows that only in constant-bitrate mode, and only
    below the bitrate that it was opened with.
    """

    def __init__(self, size: int, fps: int, bitrate: int, preset: str = "superfast", nvenc: bool = False) -> None:
        """Open an encoder; av.FFmpegError if that fails.

        ``size``: side in pixels, even.  ``fps``: actual frame rate, which rate control relies on.  ``bitrate``: maximum
        in bit/s.  ``preset``: that of x264.  ``nvenc``: use NVIDIA's hardware encoder.
        """
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        codec = _create_codec("h264_nvenc" if nvenc else "libx264", size, fps, bitrate)
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
    """VP8 encoder without delay, for peers without H.264; a bitrate change by more than a quarter causes a keyframe."""

    def __init__(self, size: int, fps: int, bitrate: int) -> None:
        """``size``: side in pixels, even.  ``fps``: frame rate.  ``bitrate``: maximum in bit/s."""
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
        codec = _create_codec("libvpx", self._size, self._fps, self._rate)
        codec.qmin, codec.qmax = 2, 56
        codec.options = {
            "deadline": "realtime",
            "cpu-used": "-8",
            "lag-in-frames": "0",
            "noise-sensitivity": "0",  # its denoiser is made for cameras and blurs rendered frames
            "static-thresh": "1",
            "undershoot-pct": "100",
            "overshoot-pct": "15",
            "minrate": str(self._rate),  # equal to maxrate: constant bitrate
            "maxrate": str(self._rate),
            "bufsize": str(self._rate // 2),
        }
        codec.open()
        return codec


@cache
def nvenc_error() -> str | None:
    """Why NVENC, NVIDIA's hardware encoder, cannot be used on this machine, in one line; None if it works.

    It is tried with two frames: neither PyAV's list of codecs nor the presence of a GPU proves that it works, as GPUs
    for data centres have no encoder.
    """
    return _try_h264(nvenc=True)


@cache
def x264_error() -> str | None:
    """Why x264 cannot be used with the installed PyAV, in one line; None if it works."""
    return _try_h264(nvenc=False)


def _try_h264(nvenc: bool) -> str | None:
    """Encode two frames, the second as a keyframe; returns an error message, or None if that works."""
    import av

    grey = np.full((PROBE_SIDE, PROBE_SIDE, 3), 128, dtype=np.uint8)
    try:
        encoder = H264Encoder(PROBE_SIDE, 30, 500_000, "ultrafast", nvenc)
        packets = [encoder.encode(Converter().convert(grey, PROBE_SIDE), 3000 * i, i == 1) for i in range(2)]
    except (av.FFmpegError, ValueError) as error:  # ValueError: unknown codec, or not one packet a frame
        return getattr(error, "strerror", None) or str(error)
    return None if all(packet.is_keyframe for packet in packets) else "it makes no keyframes on demand"


def _create_codec(name: str, size: int, fps: int, bitrate: int) -> Any:
    """FFmpeg encoder ``name`` with the settings that all encoders share, not yet opened."""
    from av import CodecContext

    codec: Any = CodecContext.create(name, "w")
    codec.width = codec.height = size
    codec.pix_fmt = "yuv420p"
    codec.framerate = Fraction(fps)
    codec.time_base = Fraction(1, CLOCK_RATE)
    codec.bit_rate = bitrate
    codec.gop_size = 3000
    codec.thread_count = 1  # two threads halve the encode time, but take a core from the tracker
    return codec


def _encode(codec: Any, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
    from av.video.frame import PictureType

    frame.pts = pts
    frame.time_base = Fraction(1, CLOCK_RATE)
    frame.pict_type = PictureType.I if keyframe else PictureType.NONE
    (packet,) = codec.encode(frame)
    return packet
