"""Conversion of decoded video frames to sRGB: matrix, range, transfer function and primaries of every frame.

SDR video with the primaries of BT.709 or BT.601 is shown as it is coded, as players do.  HDR (HLG and PQ of BT.2100)
and wide primaries are converted by a table (`telepresence.sources.colour_table`).  Numbers of matrices, transfer
functions and primaries are those of ITU-T H.273.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.sources.colour_table import HLG, LEVEL, PQ, PRIMARIES, colour_table

if TYPE_CHECKING:
    from av.filter.context import FilterContext
    from av.filter.graph import Graph
    from av.video.frame import VideoFrame

_UNSPECIFIED: Final = 2
_RESERVED: Final = (0, 3)
"""Transfer functions and primaries that H.273 reserves; taken as unspecified."""
_BT709: Final = 1
_BT2020: Final = 9
_IPT_C2: Final = 15

_MATRICES: Final = (0, 1, 2, 4, 5, 6, 7, 9)
"""Matrices that libswscale converts: RGB, BT.709, unspecified, FCC, both of BT.601, SMPTE 240M, BT.2020."""
_MATRIX_NAMES: Final = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "a matrix derived from the primaries",
    13: "a matrix derived from the primaries",
    14: "ICtCp",
    16: "YCgCo-R",
    17: "YCgCo-R",
}
_SDR_TRANSFERS: Final = (1, 2, 4, 5, 6, 7, 11, 12, 13, 14, 15)
"""Transfer functions of video that is shown as it is coded."""
_TRANSFER_NAMES: Final = {
    8: "linear",
    9: "logarithmic",
    10: "logarithmic",
    17: "SMPTE 428 (digital cinema)",
    256: "V-Log",
}
_USUAL_PRIMARIES: Final = (1, 2, 5, 6, 7, 22)
"""BT.709, unspecified, and those of BT.601 and its kin, whose difference from BT.709 is hardly visible."""

_ADVICE: Final = "export it as SDR video (BT.709), or record with HDR switched off"


class SrgbConverter:
    """Converts the decoded frames of one stream to sRGB.  One thread at a time."""

    def __init__(self, dolby_vision: bool = False) -> None:
        """``dolby_vision``: whether the container says that the stream is Dolby Vision."""
        self._dolby_vision = dolby_vision
        self._lookup: _TableLookup | None = None

    def convert(self, frame: VideoFrame, width: int | None = None, height: int | None = None) -> Bytes:
        """Convert a frame to (height, width, 3) uint8 sRGB; by default of the frame's own size.

        Raises UserError, without the name of the file, for colours that cannot be converted: linear or logarithmic
        transfer functions, constant luminance, ICtCp, and Dolby Vision without a compatible base layer.
        """
        width, height = width or frame.width, height or frame.height
        matrix, transfer, primaries = self._tags(frame)
        if transfer in _SDR_TRANSFERS and primaries in _USUAL_PRIMARIES:
            frame.colorspace = matrix
            return frame.to_ndarray(format="rgb24", width=width, height=height).astype(np.uint8, copy=False)
        if transfer in (PQ, HLG):
            matrix = _BT2020 if matrix == _UNSPECIFIED else matrix
            primaries = _BT2020 if primaries == _UNSPECIFIED else primaries
        primaries = _BT709 if primaries in _USUAL_PRIMARIES else primaries
        frame.colorspace = matrix
        coded = frame.reformat(format="rgb48le", width=width, height=height)
        if self._lookup is None or self._lookup.properties != (transfer, primaries, width, height):
            self._lookup = _TableLookup(transfer, primaries, width, height)
        return self._lookup.apply(coded)

    def _tags(self, frame: VideoFrame) -> tuple[int, int, int]:
        """Matrix, transfer function and primaries of a frame.  UserError if they cannot be converted."""
        matrix, transfer, primaries = frame.colorspace, frame.color_trc, frame.color_primaries
        matrix = _UNSPECIFIED if matrix == 3 else matrix
        transfer = _UNSPECIFIED if transfer in _RESERVED else transfer
        primaries = _UNSPECIFIED if primaries in _RESERVED else primaries
        untagged = matrix == transfer == _UNSPECIFIED
        if matrix == _IPT_C2 or (untagged and (self._dolby_vision or _has_dolby_metadata(frame))):
            raise UserError(f"it is Dolby Vision without a base layer that other programs can show: {_ADVICE}")
        if matrix not in _MATRICES:
            raise UserError(f"its colours are coded with {_MATRIX_NAMES.get(matrix, f'matrix {matrix}')}: {_ADVICE}")
        if transfer not in (*_SDR_TRANSFERS, PQ, HLG):
            name = _TRANSFER_NAMES.get(transfer, f"unknown (number {transfer})")
            raise UserError(f"the transfer function of its colours is {name}: {_ADVICE}")
        if primaries not in (*_USUAL_PRIMARIES, *PRIMARIES):
            raise UserError(f"the primaries of its colours are unknown (number {primaries}): {_ADVICE}")
        return matrix, transfer, primaries


class _TableLookup:
    """FFmpeg's filter ``haldclut`` with the table of one transfer function and primaries, for frames of one size."""

    def __init__(self, transfer: int, primaries: int, width: int, height: int) -> None:
        import av

        self.properties = transfer, primaries, width, height
        table = _untagged(av.VideoFrame.from_ndarray(colour_table(transfer, primaries), format="rgb48le"))
        table.pts, table.time_base = 0, Fraction(1, 30)
        self._graph: Graph = av.filter.Graph()
        self._frames = self._buffer(width, height)
        side = LEVEL**3
        lookup, tables = self._graph.add("haldclut", "interp=tetrahedral"), self._buffer(side, side)
        self._sink = self._graph.add("buffersink")
        self._frames.link_to(lookup, 0, 0)
        tables.link_to(lookup, 0, 1)
        lookup.link_to(self._sink)
        self._graph.configure()
        tables.push(table)
        tables.push(None)
        self._count = 0

    def _buffer(self, width: int, height: int) -> FilterContext:
        options = f"video_size={width}x{height}:pix_fmt=rgb48le:time_base=1/30:colorspace=gbr:range=pc"
        return self._graph.add("buffer", options)

    def apply(self, coded: VideoFrame) -> Bytes:
        """Look up the colours of a frame in rgb48le; (H, W, 3) uint8."""
        import av

        coded = _untagged(coded)
        coded.pts, coded.time_base = self._count, Fraction(1, 30)
        self._count += 1
        self._frames.push(coded)
        found = self._sink.pull()
        assert isinstance(found, av.VideoFrame)
        return found.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _untagged(frame: VideoFrame) -> VideoFrame:
    """``frame``, tagged as full-range RGB without transfer function and primaries."""
    frame.colorspace, frame.color_range = 0, 2
    frame.color_trc = frame.color_primaries = _UNSPECIFIED
    return frame


def _has_dolby_metadata(frame: VideoFrame) -> bool:
    """Whether a decoded frame carries metadata of Dolby Vision."""
    try:
        kinds = [str(getattr(item, "type", item)) for item in frame.side_data]
    except ValueError:  # PyAV does not know all kinds
        return False
    return any("DOVI" in kind for kind in kinds)
