"""Interpolation between two head states and cameras, for the transition from one driver to the next."""

from __future__ import annotations

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Camera, Float32, HeadState


def blend_states(start: HeadState, end: HeadState, part: float) -> HeadState:
    """Interpolate from ``start`` to ``end`` by ``part`` in [0, 1]; the result has the later capture time.

    The head rotation is interpolated along the shortest arc, all other fields linearly.
    """
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
    """Interpolate intrinsics linearly from ``start`` to ``end`` by ``part`` in [0, 1], at the size of ``end``."""
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
