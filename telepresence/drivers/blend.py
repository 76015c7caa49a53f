"""Between two states: how one driver hands a face over to the next."""

from __future__ import annotations

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Camera, Float32, HeadState


def blend(start: HeadState, end: HeadState, part: float) -> HeadState:
    """The state that is ``part`` (0 to 1) of the way, with the later one's time; the head turns at a steady rate."""
    weight = np.float32(part)
    mixed: dict[str, Float32] = {}
    theirs = end.arrays()
    for name, mine in start.arrays().items():
        mixed[name] = np.asarray(mine + weight * (theirs[name] - mine), dtype=np.float32)
    first = rotation_matrix(start.rotation)
    way = axis_angle(first.T @ rotation_matrix(end.rotation))
    mixed["rotation"] = axis_angle(first @ rotation_matrix(part * way)).astype(np.float32)
    return HeadState(**mixed, t_capture_ns=max(start.t_capture_ns, end.t_capture_ns))


def blend_cameras(start: Camera, end: Camera, part: float) -> Camera:
    """The view that is ``part`` of the way from one to the other, for a picture of the later one's size."""
    first = start.scaled(end.width, end.height)

    def between(one: float, other: float) -> float:
        return one + part * (other - one)

    return Camera(
        between(first.fx, end.fx),
        between(first.fy, end.fy),
        between(first.cx, end.cx),
        between(first.cy, end.cy),
        end.width,
        end.height,
    )
