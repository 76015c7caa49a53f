"""Procedural textures of the synthetic actor: skin with lips, brows, stubble and hair roots, and the eyeballs.

Textures are defined on the head at rest, so they move with the surface when the face moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from insta_runtime.head.model import HeadModel
from insta_runtime.render.raster import rasterise
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Camera
from telepresence.actor.hair import hairline
from telepresence.actor.surface import UV_HEIGHT, blob, linear, noise, sample, unroll

WIDTH, HEIGHT = 1024, 768
"""Width and height of the skin texture in pixels."""

HAIR_COLOUR = linear(74, 48, 34)
"""Linear colour (3,) of the hair."""


def paint_skin(head: HeadModel, rest: Tensor, eyes: Tensor, seed: int = 0) -> Tensor:
    """Skin texture (4, HEIGHT, WIDTH): linear albedo (red, green, blue) and gloss, on the map of `surface.unroll`.

    ``rest`` (V, 3): vertices at rest; ``eyes`` (2, 3): centres of the eyeballs; metres.
    """
    generator = torch.Generator().manual_seed(seed)
    names = ("eyes", "ears", "neck")
    masks = torch.stack([torch.from_numpy(head.masks[name]) for name in names], 1)
    distance = torch.cdist(rest, eyes).amin(1, keepdim=True)
    template = torch.from_numpy(head.template)
    position, values = _unrolled(head, rest, torch.cat([template, masks, distance], 1))
    where, (eyelids, ears, neck, to_eye) = position, values[..., 3:].unbind(-1)
    # From here on `position` is on the mean face, so that features lie at the same place for every identity.
    position = torch.where(values[..., :3].abs().sum(-1, keepdim=True) > 0, values[..., :3], position)
    x, y, z = position.unbind(-1)
    lips = _lips(position)
    mirrored = torch.stack([x.abs(), y, z], -1)

    def speckle(cells_y: int, cells_x: int) -> Tensor:
        return noise(generator, HEIGHT, WIDTH, cells_y, cells_x)

    def tint(colour: Tensor, towards: Tensor, amount: Tensor) -> Tensor:
        return colour + amount[..., None] * (towards - colour)

    eye_x, eye_y = float(head.joints[3, 0]), float(head.joints[3, 1])
    skin = linear(226, 178, 150).expand(HEIGHT, WIDTH, 3)
    ruddy, sallow, shade, beard = (
        linear(214, 134, 116), linear(232, 190, 150), linear(172, 122, 104), linear(150, 126, 116)
    )  # fmt: skip
    flush = 0.36 * blob(mirrored, (0.042, 0.004, 0.085), (0.026, 0.020, 0.06))
    flush += 0.40 * blob(position, (0.0, 0.004, 0.124), (0.017, 0.014, 0.02)) + 0.5 * ears
    flush += 0.25 * blob(position, (0.0, -0.058, 0.104), (0.018, 0.012, 0.03))
    skin = tint(skin, sallow, 0.6 * blob(position, (0.0, 0.095, 0.095), (0.05, 0.025, 0.06)))
    skin = tint(skin, ruddy, (flush * (1.0 + 0.18 * speckle(60, 90))).clamp(0.0, 1.0))
    under_eye = blob(mirrored, (eye_x - 0.004, eye_y - 0.016, 0.095), (0.013, 0.006, 0.03))
    skin = tint(skin, shade, 0.35 * under_eye + 0.30 * smoothstep(eyelids, 0.5, 1.0))
    jaw = smoothstep(y, -0.005, -0.035) * smoothstep(y, -0.10, -0.07) * smoothstep(z, 0.005, 0.04) * (1.0 - lips)
    jaw = torch.maximum(jaw, blob(mirrored, (0.012, -0.008, 0.115), (0.018, 0.006, 0.03)) * (1.0 - lips))
    dots = smoothstep(speckle(HEIGHT // 3, WIDTH // 3), 0.2, 1.4)
    skin = tint(skin, beard, 0.22 * jaw + 0.30 * jaw * dots)
    blotches = 0.020 * speckle(24, 34) + 0.018 * speckle(90, 120) + 0.022 * speckle(HEIGHT // 3, WIDTH // 3)
    skin = skin * (1.0 + blotches)[..., None]
    freckled = blob(mirrored, (0.022, 0.012, 0.105), (0.026, 0.012, 0.05))
    skin = tint(skin, linear(160, 100, 74), 0.5 * smoothstep(speckle(200, 300), 1.3, 2.0) * freckled)
    for mole in ((0.036, -0.022, 0.097), (-0.052, 0.010, 0.080), (-0.020, 0.088, 0.098), (0.026, -0.050, 0.093)):
        skin = tint(skin, linear(94, 60, 48), 0.85 * blob(position, mole, (0.0013, 0.0013, 0.01)))

    crease = 1.0 + 0.05 * speckle(40, WIDTH // 3)
    lip = linear(190, 112, 104) * crease[..., None]
    skin = tint(skin, lip, 0.80 * smoothstep(lips, 0.15, 0.60))
    skin = tint(skin, linear(120, 76, 64), 0.75 * smoothstep(to_eye, 0.0192, 0.0172))  # the rims of the lids
    skin = tint(skin, linear(62, 42, 32), _brows(position, eye_y, generator))
    strands = 0.5 + 0.5 * speckle(30, WIDTH // 2).tanh()
    rooted = smoothstep(hairline(where) + 0.0016 * speckle(120, 420), -0.002, 0.008)
    skin = tint(skin, HAIR_COLOUR * 0.55, rooted * (0.75 + 0.25 * strands))

    gloss = 0.30 + 0.35 * blob(position, (0.0, 0.03, 0.12), (0.014, 0.035, 0.04)) + 0.30 * smoothstep(lips, 0.15, 0.60)
    gloss += 0.20 * blob(position, (0.0, 0.095, 0.095), (0.04, 0.02, 0.06)) + 0.06 * speckle(HEIGHT // 3, WIDTH // 3)
    gloss = (gloss * (1.0 - rooted) * (1.0 - 0.4 * neck)).clamp(0.0, 1.0)
    return torch.cat([skin, gloss[..., None]], -1).clamp(0.0, 1.0).permute(2, 0, 1).contiguous()


def _unrolled(head: HeadModel, rest: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rest positions (HEIGHT, WIDTH, 3) and vertex values (HEIGHT, WIDTH, C) of the outermost skin, on the map."""
    faces = torch.from_numpy(head.faces[head.face_group == 0])
    uv = unroll(rest)
    corners = uv[faces][..., 0]
    faces = faces[corners.amax(1) - corners.amin(1) < 1.0]  # without the seam at the back
    # A distant camera makes the rasteriser's depth the distance from the axis, and its projection nearly orthographic.
    depth = 10.0 - rest[:, [0, 2]].norm(dim=1)
    screen = torch.stack([uv[:, 0] * depth, uv[:, 1] * depth, depth], 1)
    camera = Camera(WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    raster = rasterise(screen, faces, camera)
    painted = raster.interpolate(torch.cat([rest, values], 1))
    # Pixels covered by no triangle (the seam, above the crown) get a position on a cylinder.
    low, high = UV_HEIGHT
    y = low + (high - low) * (torch.arange(HEIGHT) + 0.5) / HEIGHT
    angle = math.pi * (2.0 * (torch.arange(WIDTH) + 0.5) / WIDTH - 1.0)
    plain = torch.stack(
        [
            0.08 * angle.sin().expand(HEIGHT, WIDTH),
            y[:, None].expand(HEIGHT, WIDTH),
            0.08 * angle.cos().expand(HEIGHT, WIDTH),
        ],
        -1,
    )
    position = torch.where(raster.mask[..., None], painted[..., :3], plain)
    found = painted[..., 3:]
    found[..., -1] = found[..., -1].where(raster.mask, 1.0)
    return position, found


def _lips(position: Tensor) -> Tensor:
    """Coverage (...) in [0, 1] of the lips at points (..., 3) of the mean face."""
    x, y, z = position.unbind(-1)
    t = (x / 0.0255).abs().clamp_max(1.0)
    bow = 0.0020 * torch.exp(-((x / 0.0035) ** 2)) - 0.0012 * torch.exp(-(((x.abs() - 0.0065) / 0.004) ** 2))
    upper = 0.0105 * (1.0 - t**1.7) - bow
    lower = 0.0125 * (1.0 - t**2.2)
    above = y + 0.0285
    inside = torch.where(above > 0, 1.0 - above / (upper + 1e-4), 1.0 + above / (lower + 1e-4))
    return (inside * 4.0).clamp(0.0, 1.0) * smoothstep(x.abs(), 0.0258, 0.0235) * (z > 0.06)


def _brows(position: Tensor, eye_y: float, generator: torch.Generator, strokes: int = 260) -> Tensor:
    """Coverage (HEIGHT, WIDTH) of the eyebrows: ``strokes`` hairs along an arch above each eye of the mean face."""
    height, width = 120, 168
    left, right, low, high = 0.004, 0.066, eye_y + 0.004, eye_y + 0.044
    ys = low + (high - low) * (torch.arange(height) + 0.5) / height
    xs = left + (right - left) * (torch.arange(width) + 0.5) / width
    pixel = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).flip(-1).reshape(-1, 1, 2)  # (x, y)
    brow = torch.zeros(position.shape[:2])
    x, y, z = position.unbind(-1)
    at = torch.stack([(x.abs() - left) / (right - left), (y - low) / (high - low)], -1) * 2.0 - 1.0
    for side in (1.0, -1.0):
        t = torch.rand(strokes, generator=generator)  # 0 at the inner, 1 at the outer end
        spread = (
            torch.randn(strokes, generator=generator) * (0.0019 - 0.0012 * t) * (0.35 + 0.65 * smoothstep(t, 0.0, 0.2))
        )
        arch = eye_y + 0.0195 + 0.0058 * torch.sin(math.pi * (0.05 + 0.80 * t)) - 0.0050 * t * t
        root = torch.stack([0.0115 + 0.0425 * t, arch + spread], 1)
        lean = torch.deg2rad(72.0 - 95.0 * t**0.8 + 10.0 * torch.randn(strokes, generator=generator))
        lean = lean - 9.0 * math.pi * spread  # lower hairs point up and upper ones down, towards a ridge
        length = 0.0062 * (1.0 - 0.35 * t) * (0.8 + 0.4 * torch.rand(strokes, generator=generator))
        along = torch.stack([lean.cos(), lean.sin()], 1)
        offset = pixel - root
        s = (offset * along).sum(-1).clamp(min=torch.zeros(strokes), max=length)
        distance = (offset - s[..., None] * along).norm(dim=-1)
        thickness = 0.00042 * (1.0 - 0.6 * s / length)
        ink = 1.0 - (1.0 - 0.55 * torch.exp(-((distance / thickness) ** 2))).prod(1)
        found = sample(ink.view(1, height, width), at.reshape(-1, 2)).view_as(x)
        inside = (at.abs() < 1.0).all(-1) & (x * side > 0) & (z > 0.03)
        brow = torch.where(inside, found, brow)
    return brow


def paint_eye(size: int = 192, seed: int = 0) -> Tensor:
    """Texture (3, size, size) of an eyeball from the front, linear albedo; [-1, 1] spans its diameter."""
    generator = torch.Generator().manual_seed(seed)
    axis = (torch.arange(size) + 0.5) / size * 2.0 - 1.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = torch.sqrt(x * x + y * y), torch.atan2(y, x)
    spokes = noise(generator, 8, 256, 3, 80)
    spokes = torch.cat([spokes, spokes[:, :1]], 1)
    column = (angle + math.pi) / (2.0 * math.pi) * 256.0
    row = (radius / _IRIS * 7.0).clamp(0.0, 6.99)
    fibre = spokes[row.long(), column.long().clamp_max(255)]
    iris = linear(96, 118, 104) * (1.0 + 0.28 * fibre)[..., None]
    iris = iris + smoothstep(radius, 0.62 * _IRIS, 0.35 * _IRIS)[..., None] * (linear(150, 108, 62) - iris) * 0.75
    iris = iris * (1.0 - 0.75 * smoothstep(radius, 0.82 * _IRIS, 1.02 * _IRIS))[..., None]
    iris = iris * smoothstep(radius, 0.36 * _IRIS, 0.44 * _IRIS)[..., None]
    white = linear(232, 224, 218) + smoothstep(x.abs(), 0.45, 0.95)[..., None] * (
        linear(214, 164, 152) - linear(232, 224, 218)
    )
    eye = iris + smoothstep(radius, 0.97 * _IRIS, 1.07 * _IRIS)[..., None] * (white - iris)
    return eye.clamp(0.0, 1.0).permute(2, 0, 1).contiguous()


_IRIS = 0.37
"""Radius of the iris as a share of the eyeball's radius."""
