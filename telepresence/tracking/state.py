"""From a head fit to a head state: the units become expression and eyelids, the irises become gaze."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from insta_runtime.geometry import axis_angle
from insta_runtime.head import HeadModel
from insta_runtime.types import Float64, HeadState

from .basis import LandmarkBasis
from .calibration import Calibration
from .embedding import embedding_for
from .fit import HeadFit
from .gaze import Gaze, eye_pose
from .landmarks import FaceLandmarks
from .models import landmarker_path

MAX_GAZE_BIAS = np.array([0.1, 0.2])  # rad of yaw, pitch; beyond it the person did look elsewhere


class StateBuilder:
    """Makes the head states of one person."""

    def __init__(self, head: HeadModel, calibration: Calibration, basis: LandmarkBasis) -> None:
        self._units = len(head.expression_names)
        self._eyelids = head.basis == "flame"
        self._camera = calibration.camera
        self._indices = basis.indices
        self._gaze = Gaze.of_head(head, calibration.shape, calibration.gaze)

    def gaze(self, fit: HeadFit, face: FaceLandmarks) -> Float64:
        """(2, 2) rad: yaw and pitch of the left, right eye."""
        return self._gaze.angles(fit, face, self._camera, self._indices)

    def build(self, fit: HeadFit, face: FaceLandmarks, t_capture_ns: int) -> HeadState:
        """The state of the fitted head at its capture time."""
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


def with_gaze(head: HeadModel, calibration: Calibration, faces: Sequence[FaceLandmarks]) -> Calibration:
    """``calibration`` with the gaze that this person shows most of the time taken for a look at the camera."""
    fitter = calibration.fitter(head)
    states = StateBuilder(head, calibration, fitter.basis)
    step = max(1, len(faces) // 60)
    angles = [states.gaze(fitter.fit(face, None), face) for face in faces[::step]]
    usual = np.clip(np.median(angles, axis=0), -MAX_GAZE_BIAS, MAX_GAZE_BIAS)
    return replace(calibration, gaze=usual.astype(np.float32))


def trackable(head: HeadModel, models: Path | None, progress: Callable[[float], None] | None = None) -> HeadModel:
    """``head`` with a landmark embedding; one that has none gets it now (a minute or two, then cached).

    ``progress`` is called with the part done, in [0, 1].
    """
    if head.embedding is not None:
        return head
    return replace(head, embedding=embedding_for(head, landmarker_path(models), progress))
