"""Gaze estimation: the viewing ray through the iris centre is intersected with the eyeball."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64

from .head_fit import HeadFit, Pinhole
from .landmark_basis import Indices
from .landmarks import FaceLandmarks

IRISES = (473, 468)
"""Landmark numbers of the iris centres of the subject's left and right eye."""
CORNERS = ((362, 263), (133, 33))
"""Landmark numbers of the inner and outer corner of the subject's left, then right eye."""
RADIUS = 0.0135
"""Distance from the centre of the eyeball to the iris, in metres."""
CLOSED = 0.5
"""Blink score in [0, 1] above which an eye counts as closed and its iris landmark is ignored."""
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
"""Names of the blendshape scores that measure the closing of the left and right eye."""
LIMIT = 0.75
"""Largest yaw or pitch of an eye, in radians; greater estimates are clamped."""


@dataclass
class Gaze:
    """Gaze estimator of one subject: yaw and pitch of both eyes from iris landmarks and a head fit.

    eyes: (2, 3) centres of the left and right eyeball at rest, in head space, in metres.
    bias: (2, 2) gaze in radians that is measured while this subject looks into the camera, and is subtracted; rows:
        left, right eye; columns: yaw, pitch.
    """

    eyes: Float64
    bias: Float32
    _last: Float64 = field(default_factory=lambda: np.zeros((2, 2)))

    @staticmethod
    def of_head(head: HeadModel, shape: Float32, bias: Float32) -> Gaze:
        """Gaze estimator for the eyeballs of ``head`` with identity code ``shape`` (S,) and gaze ``bias`` (2, 2)."""
        joints = head.joints + np.tensordot(shape, head.joint_shape_dirs, 1)
        return Gaze(joints[3:5].astype(np.float64), bias)

    def angles(self, fit: HeadFit, face: FaceLandmarks, camera: Pinhole, indices: Indices) -> Float64:
        """Gaze (2, 2) in radians relative to the head, minus the bias; rows: left, right eye; columns: yaw, pitch.

        Yaw is positive to the subject's left, pitch upwards.  While an eye is closed, its last gaze is returned.
        ``indices`` (L,) are the landmark numbers of the rows of ``fit.residual``.
        """
        for eye in range(2):
            if face.scores.get(BLINKS[eye], 0.0) > CLOSED:
                continue
            # The residual at the eye's corners is an error of the head fit at this eye, not a movement of the iris.
            miss = fit.residual[np.isin(indices, CORNERS[eye])]
            iris = face.points[IRISES[eye], :2] - (miss.mean(0) if len(miss) else 0.0)
            ray = np.array([(iris[0] - camera.cx) / camera.focal, (iris[1] - camera.cy) / camera.focal, 1.0])
            direction = _intersect_eyeball(ray / np.linalg.norm(ray), fit.rotation @ self.eyes[eye] + fit.translation)
            look = direction @ fit.rotation
            yaw, pitch = np.arctan2(look[0], look[2]), np.arcsin(np.clip(look[1], -1.0, 1.0))
            self._last[eye] = np.clip(np.array([yaw, pitch]) - self.bias[eye], -LIMIT, LIMIT)
        return self._last.copy()


def _intersect_eyeball(ray: Float64, centre: Float64) -> Float64:
    """Unit vector (3,) from ``centre`` to the point where ``ray`` enters the eyeball, or passes it most closely."""
    along = float(ray @ centre)
    closest = along * ray - centre
    inside = RADIUS**2 - float(closest @ closest)
    point = closest - np.sqrt(max(inside, 0.0)) * ray
    return point / np.linalg.norm(point)
