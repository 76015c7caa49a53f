"""Where the eyes look: the iris centre's ray of sight meets the eyeball."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64

from .basis import Indices
from .fit import HeadFit, Pinhole
from .landmarks import FaceLandmarks

IRISES = (473, 468)  # the subject's left, right
CORNERS = ((362, 263), (133, 33))  # inner and outer corner of the left, right eye
RADIUS = 0.0135  # m from the middle of the eyeball to the iris
CLOSED = 0.5  # eyeBlink score above which the iris is not to be trusted
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
LIMIT = 0.75  # rad


@dataclass
class Gaze:
    """Follows the gaze of one person.

    eyes: (2, 3) m, middle of the left, right eyeball at rest in head space.
    bias: (2, 2) rad, yaw and pitch that this person shows when looking at the camera, taken off.
    """

    eyes: Float64
    bias: Float32
    _last: Float64 = field(default_factory=lambda: np.zeros((2, 2)))

    @staticmethod
    def of_head(head: HeadModel, shape: Float32, bias: Float32) -> Gaze:
        joints = head.joints + np.tensordot(shape, head.joint_shape_dirs, 1)
        return Gaze(joints[3:5].astype(np.float64), bias)

    def angles(self, fit: HeadFit, face: FaceLandmarks, camera: Pinhole, indices: Indices) -> Float64:
        """(2, 2) rad: yaw (to the subject's left) and pitch (up) of the left, right eye, bias taken off.

        ``indices`` (L,) names the landmarks of ``fit.residual``.  While an eye is closed its last gaze is held.
        """
        for eye in range(2):
            if face.scores.get(BLINKS[eye], 0.0) > CLOSED:
                continue
            # The eye's corners say by how much the head fit misses this eye: that is no gaze.
            miss = fit.residual[np.isin(indices, CORNERS[eye])]
            iris = face.points[IRISES[eye], :2] - (miss.mean(0) if len(miss) else 0.0)
            ray = np.array([(iris[0] - camera.cx) / camera.focal, (iris[1] - camera.cy) / camera.focal, 1.0])
            look = _meet(ray / np.linalg.norm(ray), fit.rotation @ self.eyes[eye] + fit.translation) @ fit.rotation
            yaw, pitch = np.arctan2(look[0], look[2]), np.arcsin(np.clip(look[1], -1.0, 1.0))
            self._last[eye] = np.clip(np.array([yaw, pitch]) - self.bias[eye], -LIMIT, LIMIT)
        return self._last.copy()


def eye_pose(angles: Float64) -> Float32:
    """(2, 2) yaw and pitch to (2, 3) axis-angle: the shortest turn from straight ahead (Listing's law)."""
    yaw, pitch = angles[:, 0], angles[:, 1]
    look = np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], 1)
    axis = np.stack([-look[:, 1], look[:, 0], np.zeros(len(look))], 1)  # z x look
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.arctan2(sine[:, 0], look[:, 2])[:, None]
    return (axis * (angle / np.maximum(sine, 1e-9))).astype(np.float32)


def _meet(ray: Float64, centre: Float64) -> Float64:
    """Unit vector (3,) from ``centre`` to where a ray from the camera enters the eyeball, or passes it most closely."""
    along = float(ray @ centre)
    closest = along * ray - centre
    inside = RADIUS**2 - float(closest @ closest)
    point = closest - np.sqrt(max(inside, 0.0)) * ray
    return point / np.linalg.norm(point)
