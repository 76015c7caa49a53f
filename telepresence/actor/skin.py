"""The actor's paint: skin, lips, brows, stubble and the shadow of the hair, on the unrolled rest head; and eyes.

Everything is painted where the head is at rest, so it sticks to the surface when the face moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from insta_runtime.head.model import HeadModel
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera
from telepresence.actor.hair import hairline
from telepresence.actor.surface import UV_HEIGHT, blob, linear, noise, ramp, unroll

WIDTH, HEIGHT = 1280, 960

HAIR_COLOUR = linear(74, 48, 34)


def paint_skin(head: HeadModel, rest: Tensor, eyes: Tensor, seed: int = 0) -> Tensor:
    """Paint a head: (4, HEIGHT, WIDTH) light reflected (red, green, blue) and gloss, over `surface.unroll`.

    ``rest`` (V, 3) vertices at rest, ``eyes`` (2, 3) centres of the eyeballs, metres.
    """
    generator = torch.Generator().manual_seed(seed)
    names = ("lips", "eyes", "ears", "neck")
    masks = torch.stack([torch.from_numpy(head.masks[name]) for name in names], 1)
    distance = torch.cdist(rest, eyes).amin(1, keepdim=True)
    position, values = _unrolled(head, rest, torch.cat([masks, distance], 1))
    lips, eyelids, ears, neck, to_eye = values.unbind(-1)
    x, y, z = position.unbind(-1)
    mirrored = torch.stack([x.abs(), y, z], -1)

    def speckle(cells_y: int, cells_x: int) -> Tensor:
        return noise(generator, HEIGHT, WIDTH, cells_y, cells_x)

    def tint(colour: Tensor, towards: Tensor, amount: Tensor) -> Tensor:
        return colour + amount[..., None] * (towards - colour)

    eye_y, eye_x = float(eyes[0, 1]), float(eyes[0, 0])
    skin = linear(226, 178, 150).expand(HEIGHT, WIDTH, 3)
    ruddy, sallow, shade, beard = (
        linear(214, 134, 116), linear(232, 190, 150), linear(172, 122, 104), linear(150, 126, 116)
    )  # fmt: skip
    flush = 0.55 * blob(mirrored, (0.043, 0.002, 0.085), (0.020, 0.018, 0.05))
    flush += 0.55 * blob(position, (0.0, 0.004, 0.124), (0.015, 0.013, 0.02)) + 0.6 * ears
    flush += 0.25 * blob(position, (0.0, -0.058, 0.104), (0.018, 0.012, 0.03))
    skin = tint(skin, sallow, 0.6 * blob(position, (0.0, 0.095, 0.095), (0.05, 0.025, 0.06)))
    skin = tint(skin, ruddy, (flush * (1.0 + 0.25 * speckle(60, 90))).clamp(0.0, 1.0))
    under_eye = blob(mirrored, (eye_x - 0.004, eye_y - 0.016, 0.095), (0.013, 0.006, 0.03))
    skin = tint(skin, shade, 0.35 * under_eye + 0.30 * ramp(eyelids, 0.5, 1.0))
    jaw = ramp(y, -0.005, -0.035) * ramp(y, -0.10, -0.07) * ramp(z, 0.005, 0.04) * (1.0 - lips)
    jaw = torch.maximum(jaw, blob(mirrored, (0.012, -0.008, 0.115), (0.018, 0.006, 0.03)) * (1.0 - lips))
    dots = ramp(speckle(HEIGHT // 3, WIDTH // 3), 0.2, 1.4)
    skin = tint(skin, beard, 0.22 * jaw + 0.30 * jaw * dots)
    blotches = 0.020 * speckle(24, 34) + 0.018 * speckle(90, 120) + 0.022 * speckle(HEIGHT // 3, WIDTH // 3)
    skin = skin * (1.0 + blotches)[..., None]
    freckled = blob(mirrored, (0.022, 0.012, 0.105), (0.026, 0.012, 0.05))
    skin = tint(skin, linear(160, 100, 74), 0.5 * ramp(speckle(200, 300), 1.3, 2.0) * freckled)
    for mole in ((0.036, -0.022, 0.097), (-0.052, 0.010, 0.080), (-0.020, 0.088, 0.098), (0.026, -0.050, 0.093)):
        skin = tint(skin, linear(94, 60, 48), 0.85 * blob(position, mole, (0.0013, 0.0013, 0.01)))

    crease = 1.0 + 0.05 * speckle(40, WIDTH // 3)
    lip = linear(192, 104, 98) * crease[..., None]
    skin = tint(skin, lip, 0.85 * ramp(lips, 0.35, 0.75))
    skin = tint(skin, linear(120, 76, 64), 0.75 * ramp(to_eye, 0.0192, 0.0172))  # the rims of the lids
    skin = tint(skin, linear(62, 42, 32), _brows(position, eye_x, eye_y, generator))
    strands = 0.5 + 0.5 * speckle(30, WIDTH // 2).tanh()
    rooted = ramp(hairline(position) + 0.004 * speckle(60, 260), -0.004, 0.007)
    skin = tint(skin, HAIR_COLOUR * 0.55, rooted * (0.75 + 0.25 * strands))

    gloss = 0.30 + 0.35 * blob(position, (0.0, 0.03, 0.12), (0.014, 0.035, 0.04)) + 0.25 * ramp(lips, 0.35, 0.75)
    gloss += 0.20 * blob(position, (0.0, 0.095, 0.095), (0.04, 0.02, 0.06)) + 0.06 * speckle(HEIGHT // 3, WIDTH // 3)
    gloss = (gloss * (1.0 - rooted) * (1.0 - 0.4 * neck)).clamp(0.0, 1.0)
    return torch.cat([skin, gloss[..., None]], -1).clamp(0.0, 1.0).permute(2, 0, 1).contiguous()


def _unrolled(head: HeadModel, rest: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rest positions (HEIGHT, WIDTH, 3) and vertex values (HEIGHT, WIDTH, C) on the unrolled skin, the outermost."""
    faces = torch.from_numpy(head.faces[head.face_group == 0])
    uv = unroll(rest)
    corners = uv[faces][..., 0]
    faces = faces[corners.amax(1) - corners.amin(1) < 1.0]  # without the seam at the back
    # Seen from far away, so that the rasteriser's depth is 'how far from the axis' and its perspective is none.
    depth = 10.0 - rest[:, [0, 2]].norm(dim=1)
    screen = torch.stack([uv[:, 0] * depth, uv[:, 1] * depth, depth], 1)
    camera = Camera(WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    raster = rasterise(screen, faces, camera)
    painted = raster.interpolate(torch.cat([rest, values], 1))
    # What no triangle covers (the seam, above the crown) still needs a place.
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


def _brows(position: Tensor, eye_x: float, eye_y: float, generator: torch.Generator) -> Tensor:
    """Coverage (HEIGHT, WIDTH) of the brows: short strokes along an arch above each eye."""
    x, y = position[..., 0], position[..., 1]
    across = (x.abs() - (eye_x - 0.019)) / 0.043  # 0 at the inner end, 1 at the outer end
    arch = eye_y + 0.0195 + 0.0065 * torch.sin(math.pi * (0.12 + 0.72 * across.clamp(0.0, 1.0))) - 0.004 * across**2
    thick = 0.0047 * (1.0 - 0.62 * across.clamp(0.0, 1.0))
    body = torch.exp(-(((y - arch) / thick) ** 2)) * ramp(across, -0.08, 0.12) * ramp(across, 1.05, 0.8)
    # Strokes lean outwards: noise that is stretched along (1, 1) near the nose and along the arch further out.
    fine = noise(generator, HEIGHT, WIDTH, HEIGHT // 6, WIDTH // 4)
    lean = torch.where(x > 0, torch.roll(fine, 1, 1), torch.roll(fine, -1, 1)) + fine
    brow: Tensor = ((body * (1.25 + 0.35 * lean)).clamp(0.0, 1.0) * 0.9) * (position[..., 2] > 0.03)
    return brow


def paint_eye(size: int = 192, seed: int = 0) -> Tensor:
    """Paint an eyeball seen from the front: (3, size, size) light reflected; [-1, 1] spans its diameter."""
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
    iris = iris + ramp(radius, 0.62 * _IRIS, 0.35 * _IRIS)[..., None] * (linear(150, 108, 62) - iris) * 0.75
    iris = iris * (1.0 - 0.75 * ramp(radius, 0.82 * _IRIS, 1.02 * _IRIS))[..., None]
    iris = iris * ramp(radius, 0.36 * _IRIS, 0.44 * _IRIS)[..., None]
    white = linear(232, 224, 218) + ramp(x.abs(), 0.45, 0.95)[..., None] * (
        linear(214, 164, 152) - linear(232, 224, 218)
    )
    eye = iris + ramp(radius, 0.97 * _IRIS, 1.07 * _IRIS)[..., None] * (white - iris)
    return eye.clamp(0.0, 1.0).permute(2, 0, 1).contiguous()


_IRIS = 0.37
"""Radius of the iris as a part of that of the eyeball."""
