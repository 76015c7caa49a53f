"""Pictures to H.264, for every viewer at once."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from insta_runtime.types import Bytes

if TYPE_CHECKING:
    import av

CLOCK_RATE = 90_000  # of RTP video (RFC 3551); every pts of the stream counts in it


def to_yuv420p(rgb: Bytes, size: int) -> av.VideoFrame:
    """(H, W, 3) uint8 sRGB to a ``size`` x ``size`` frame with BT.601 limited-range colour, as VP8 assumes."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    return frame.reformat(
        width=size,
        height=size,
        format="yuv420p",
        interpolation=Interpolation.BICUBIC,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU601,
    )


class H264Encoder:
    """x264 without delay: constrained baseline, constant bitrate, a keyframe only when asked for.

    Every keyframe is an IDR picture with SPS and PPS before it, so that a viewer can start at any of them.  The VBV
    holds a quarter of a second, which bounds the burst that an IDR picture makes.
    """

    def __init__(self, size: int, fps: int, bitrate: int, preset: str) -> None:
        """``size`` in pixels (even), ``fps`` the real rate (rate control trusts it), ``bitrate`` in bit/s."""
        from av import CodecContext

        codec = CodecContext.create("libx264", "w")
        codec.width = codec.height = size
        codec.pix_fmt = "yuv420p"
        codec.framerate = Fraction(fps)
        codec.time_base = Fraction(1, CLOCK_RATE)
        codec.bit_rate = bitrate
        codec.gop_size = 3000
        codec.thread_count = 1  # half the latency of two threads would cost the tracker a core
        codec.profile = "Baseline"
        codec.options = {
            "preset": preset,
            "tune": "zerolatency",
            "level": "31" if size <= 512 else "42",
            "maxrate": str(bitrate),
            "bufsize": str(bitrate // 4),
            "forced-idr": "1",
            "x264-params": "scenecut=0:colorprim=smpte170m:transfer=iec61966-2-1:colormatrix=smpte170m:range=tv",
        }
        codec.open()
        self._codec = codec

    def encode(self, frame: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        """One yuv420p frame in, one access unit (Annex B) out; ``pts`` in 1/90000 s, growing."""
        from av.video.frame import PictureType

        frame.pts = pts
        frame.time_base = Fraction(1, CLOCK_RATE)
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        (packet,) = self._codec.encode(frame)
        return packet
