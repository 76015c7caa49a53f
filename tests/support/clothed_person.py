"""A person made of cloth and a neck who shifts in the seat, with a head in front that moves on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from insta_runtime.torso.motion import Similarity
from insta_runtime.types import Camera, Float32, HeadState, Observation

SIDE = 128
CAMERA = Camera(1.2 * SIDE, 1.2 * SIDE, SIDE / 2, SIDE / 2, SIDE, SIDE)
SKIN = np.array([0.8, 0.6, 0.5], np.float32)
HAIR = np.array([0.1, 0.9, 0.1], np.float32)
"""Of the head: a colour that nothing else has, so that a ghost of it would be seen."""


def body_at(x: Float32, y: Float32) -> tuple[Float32, Float32]:
    """Colour (..., 3) and matte (...) of the torso at places in picture units, in its reference place."""
    cloth = np.stack([0.4 + 0.3 * np.sin(14.0 * x), 0.1 + 0.0 * x, 0.5 + 0.3 * np.cos(17.0 * y + 6.0 * x)], -1)
    shoulders = _inside(y - 0.45 - 0.35 * x * x)
    neck = _inside(0.3 - np.abs(x)) * _inside(y + 0.15)
    colour = np.where((y < 0.5 + 0.3 * x * x)[..., None] & (np.abs(x) < 0.3)[..., None], SKIN, cloth)
    return colour.astype(np.float32), np.maximum(shoulders, neck).astype(np.float32)


def observe(number: int, head: tuple[float, float], shift: Similarity, wall: float = 0.9) -> Observation:
    """Picture ``number``: the head's middle at ``head`` in picture units, the torso moved by ``shift``."""
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) * 2.0 / SIDE - 1.0
    x, y = np.meshgrid(axis, axis)
    back = shift.inverse().matrix()
    colour, body = body_at(back[0, 0] * x + back[0, 1] * y + back[0, 2], back[1, 0] * x + back[1, 1] * y + back[1, 2])
    covered = _inside(0.42 - np.hypot(x - head[0], (y - head[1]) / 1.2))[..., None]
    person = np.maximum(body, covered[..., 0])
    seen = colour * body[..., None] + wall * (1.0 - body[..., None])
    picture = seen * (1.0 - covered) + HAIR * covered
    state = replace(
        HeadState.neutral(52),
        translation=np.array([0.6 * head[0] / 2.4, 0.6 * head[1] / 2.4, 0.6], np.float32),
        t_capture_ns=200_000_000 * number,
    )
    rgb, alpha, matte = ((255.0 * part + 0.5).astype(np.uint8) for part in (picture, covered[..., 0], person))
    return Observation(number, rgb, alpha, CAMERA, state, matte)


def shoulders_of(head: tuple[float, float]) -> Similarity:
    """How this person's torso goes along with the head: two fifths of the way."""
    return Similarity(0.4 * head[0], 0.4 * (head[1] + 0.3), 0.05 * head[0], 0.0)


def head_at(number: int) -> tuple[float, float]:
    """Where the head is in picture ``number``: it sways slowly."""
    return 0.22 * float(np.sin(0.11 * number)), -0.3 + 0.07 * float(np.cos(0.17 * number))


def performance(count: int = 120) -> list[Observation]:
    """The person, five pictures a second."""
    return [observe(n, head_at(n), shoulders_of(head_at(n))) for n in range(count)]


def _inside(distance: Float32) -> Float32:
    """1 where ``distance`` (picture units) is positive, with an edge of two pixels."""
    return np.clip(0.5 + distance * SIDE / 4.0, 0.0, 1.0)
