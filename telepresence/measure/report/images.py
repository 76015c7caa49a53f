"""Pictures of a report, as data URIs: pictures, error maps, outlines of regions, and a film."""

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

JPEG_QUALITY = 92
FILM_QUALITY = 80

HEAT: Final = ("#000004", "#1f1147", "#51127c", "#832681", "#b73779", "#e75263", "#fc8961", "#fec488", "#fcfdbf")
"""Colours of errors from 0 to 1, evenly apart: dark to light, so that they can be read without colour, too."""
OUTLINES: Final = {"head": "#2f7dff", "mouth": "#e0245e", "eyes": "#12a150"}


def to_bytes(picture: torch.Tensor) -> Bytes:
    """A picture (H, W, 3) in [0, 1] as uint8."""
    rgb: Bytes = (picture.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).cpu().numpy()
    return rgb


def heat(error: torch.Tensor) -> Bytes:
    """A map (H, W) in [0, 1] in the colours of `HEAT`, (H, W, 3) uint8."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT], dtype=np.float64)
    table = np.stack([np.interp(np.linspace(0, len(HEAT) - 1, 256), range(len(HEAT)), anchors[:, i]) for i in range(3)])
    index: NDArray[np.uint8] = (error.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).cpu().numpy()
    coloured: Bytes = table.T.round().astype(np.uint8)[index]
    return coloured


def shrunk(picture: torch.Tensor, side: int) -> torch.Tensor:
    """A picture (H, W, C) at a longest side of ``side`` pixels at most, by area averaging."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = torch.nn.functional.interpolate(picture.permute(2, 0, 1)[None], size, mode="area")
    return small[0].permute(1, 2, 0)


def jpeg(rgb: Bytes) -> str:
    """(H, W, 3) uint8 as the source of an ``<img>``."""
    return _uri(_image(rgb), "JPEG", quality=JPEG_QUALITY, subsampling=0)


def outlines(compared: FrameComparison) -> str:
    """The regions of a picture, as a transparent picture of their outlines."""
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
    """Pictures (H, W, 3) uint8, played over and over."""
    first, *others = [_image(frame) for frame in frames]
    duration = max(1, round(1000.0 / fps))
    return _uri(
        first, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=FILM_QUALITY, method=2
    )


def _edge(region: torch.Tensor, line: int) -> Bytes:
    """255 on the pixels of a region (H, W) at most ``line`` from its border."""
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
