"""Conversion of a head fit to a head state: face units to expression and eyelids, iris landmarks to gaze."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from insta_runtime.geometry import axis_angle, eye_pose
from insta_runtime.head import HeadModel
from insta_runtime.types import Float64, HeadState

from .calibration import Calibration
from .face_models import FaceModels
from .gaze import Gaze
from .head_fit import HeadFit
from .landmark_basis import LandmarkBasis
from .landmark_embedding import embedding_for
from .landmarks import FaceLandmarks

MAX_GAZE_BIAS = np.array([0.1, 0.2])
"""Largest gaze bias (yaw, pitch), in radians; greater estimates are clamped, being partly a real glance elsewhere."""


class StateBuilder:
    """Converts head fits and face landmarks of one subject to head states.

    Args:
        head: the head model.
        calibration: calibration of the subject.
        basis: landmark basis with which the head is fitted.
    """

    def __init__(self, head: HeadModel, calibration: Calibration, basis: LandmarkBasis) -> None:
        self._units = len(head.expression_names)
        self._eyelids = head.basis == "flame"
        self._camera = calibration.camera
        self._indices = basis.indices
        self._gaze = Gaze.of_head(head, calibration.shape, calibration.gaze)

    def gaze(self, fit: HeadFit, face: FaceLandmarks) -> Float64:
        """Gaze (2, 2) in radians, minus the calibrated bias; rows: left, right eye; columns: yaw, pitch."""
        return self._gaze.angles(fit, face, self._camera, self._indices)

    def build(self, fit: HeadFit, face: FaceLandmarks, t_capture_ns: int) -> HeadState:
        """Head state of the frame that was captured at ``t_capture_ns``, from its head fit and landmarks."""
        expression = np.zeros(self._units, np.float32)
        eyelids = np.zeros(2, np.float32)
        units = fit.units.astype(np.float32)
        if self._eyelids:
            units, eyelids = units[:-2], units[-2:]
        expression[: len(units)] = units
        return HeadState(
            expression=expression,
            jaw_pose=fit.jaw.astype(np.float32),
            eye_pose=eye_pose(self.gaze(fit, face)),
            eyelids=eyelids,
            rotation=axis_angle(fit.rotation).astype(np.float32),
            translation=fit.translation.astype(np.float32),
            t_capture_ns=t_capture_ns,
        )


def calibrate_gaze(head: HeadModel, calibration: Calibration, faces: Sequence[FaceLandmarks]) -> Calibration:
    """Return ``calibration`` with the gaze bias set to the median gaze in ``faces``, clamped to `MAX_GAZE_BIAS`.

    It is assumed that the subject mostly looks into the camera.  The previous bias in ``calibration`` must be zero.
    """
    fitter = calibration.fitter(head)
    states = StateBuilder(head, calibration, fitter.basis)
    step = max(1, len(faces) // 60)
    angles = [states.gaze(fitter.fit(face, None), face) for face in faces[::step]]
    usual = np.clip(np.median(angles, axis=0), -MAX_GAZE_BIAS, MAX_GAZE_BIAS)
    return replace(calibration, gaze=usual.astype(np.float32))


def with_landmark_embedding(
    head: HeadModel, models: FaceModels | None, progress: Callable[[float], None] | None = None
) -> HeadModel:
    """Return ``head`` with a landmark embedding, which is computed if missing (a minute or two, then cached).

    ``models`` are the face models; None: the default ones.  ``progress`` is called with the completed fraction, in
    [0, 1].  Raises UserError if the face landmarker is not available.
    """
    if head.embedding is not None:
        return head
    return replace(head, embedding=embedding_for(head, models or FaceModels(), progress))
