"""Images of a report as data URIs: frames, error maps, outlines of regions, and a film."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.evaluation.protocol import FrameComparison
from insta_runtime.types import Bytes

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY: Final = 92
"""JPEG quality of the frames that are shown large."""
FILM_QUALITY: Final = 80
"""WebP quality of the film."""

HEAT: Final = ("#000004", "#1f1147", "#51127c", "#832681", "#b73779", "#e75263", "#fc8961", "#fec488", "#fcfdbf")
"""Evenly spaced colours of errors from 0 to 1, from dark to light, so that they can be read without colour vision."""
OUTLINES: Final = {"head": "#2f7dff", "mouth": "#e0245e", "eyes": "#12a150"}
"""Colours of the outlined regions."""


def to_bytes(picture: torch.Tensor) -> Bytes:
    """Convert an image (H, W, 3) in [0, 1] to uint8."""
    rgb: Bytes = (picture.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).cpu().numpy()
    return rgb


def heat(error: torch.Tensor) -> Bytes:
    """Convert an error map (H, W) in [0, 1] to the colours of `HEAT`, (H, W, 3) uint8."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT], dtype=np.float64)
    table = np.stack([np.interp(np.linspace(0, len(HEAT) - 1, 256), range(len(HEAT)), anchors[:, i]) for i in range(3)])
    index: NDArray[np.uint8] = (error.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).cpu().numpy()
    coloured: Bytes = table.T.round().astype(np.uint8)[index]
    return coloured


def shrunk(picture: torch.Tensor, side: int) -> torch.Tensor:
    """Downsample an image (H, W, C) by area averaging to a longest side of at most ``side`` pixels."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = torch.nn.functional.interpolate(picture.permute(2, 0, 1)[None], size, mode="area")
    return small[0].permute(1, 2, 0)


def jpeg(rgb: Bytes) -> str:
    """Encode an image (H, W, 3) uint8 as a JPEG data URI."""
    return _uri(_image(rgb), "JPEG", quality=JPEG_QUALITY, subsampling=0)


def outlines(compared: FrameComparison) -> str:
    """Encode the outlines of a frame's regions as a transparent PNG data URI."""
    from PIL import Image, ImageDraw

    height, width = compared.truth.shape[:2]
    line = max(1, round(max(height, width) / 256))
    picture = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.bitmap((0, 0), Image.fromarray(_edge(compared.regions["head"], line)), fill=OUTLINES["head"])
    for name, boxes in compared.boxes.items():
        for box in boxes:
            draw.rectangle(box, outline=OUTLINES[name], width=line)
    return _uri(picture.quantize(8), "PNG", optimize=True)


def film(frames: Sequence[Bytes], fps: float) -> str:
    """Encode frames (H, W, 3) uint8 as a WebP animation that repeats, as a data URI."""
    first, *others = [_image(frame) for frame in frames]
    duration = max(1, round(1000.0 / fps))
    return _uri(
        first, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=FILM_QUALITY, method=2
    )


def _edge(region: torch.Tensor, line: int) -> Bytes:
    """Mask that is 255 on the pixels of a region (H, W) that are at most ``line`` pixels from its border."""
    outside = (~region).float()[None, None]
    near = torch.nn.functional.max_pool2d(outside, 2 * line + 1, stride=1, padding=line)[0, 0] > 0.5
    edge: Bytes = ((near & region).to(torch.uint8) * 255).cpu().numpy()
    return edge


def _image(rgb: Bytes) -> Image:
    from PIL import Image

    return Image.fromarray(rgb)


def _uri(image: Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
