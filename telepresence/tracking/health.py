"""Plausibility check of head fits, which decides from frame to frame whether the head is tracked or lost."""

from __future__ import annotations

from collections import deque

import numpy as np

from .head_fit import HeadFit, Pinhole

IPD = 0.063
"""Typical distance between the pupils of an adult, in metres."""
ERROR_RATIO = 2.5
"""A fit is rejected if its error exceeds both this multiple of the usual error and the limit `ERROR_IPD`."""
ERROR_IPD = 0.03
"""Reprojection error, as a fraction of the projected pupil distance, above which a fit can be rejected."""
DEPTH_JUMP = 0.15
"""Relative change of the head's distance from one frame to the next above which a fit is rejected."""
ROTATION_JUMP = np.deg2rad(25.0)
"""Rotation of the head from one frame to the next, in radians, above which a fit is rejected."""
MAX_YAW = np.deg2rad(60.0)
"""Largest yaw of the head, in radians, at which a fit is accepted."""
GOOD_FRAMES = 3
"""Number of good fits in a row after which a lost face counts as tracked again."""
ERROR_HISTORY = 90
"""Number of recent plausible fits whose median error is the usual error."""


class TrackingHealth:
    """Classifies head fits as accepted or rejected; after a rejection, several good fits in a row are required.

    Args:
        camera: camera of the frames.
        usual_error: typical error of a fit (`HeadFit.error`), used until fits have been added.
    """

    def __init__(self, camera: Pinhole, usual_error: float) -> None:
        self._camera = camera
        self._errors = deque([usual_error], maxlen=ERROR_HISTORY)
        self._before: HeadFit | None = None
        self._good = GOOD_FRAMES

    @property
    def lost(self) -> bool:
        """Whether the head is lost: one of the last `GOOD_FRAMES` fits was not plausible."""
        return self._good < GOOD_FRAMES

    @property
    def usual_error(self) -> float:
        """Median error of the recent plausible fits, in px of an image whose longest side is 512."""
        return float(np.median(self._errors))

    def update(self, fit: HeadFit | None) -> bool:
        """Add the fit of the next frame (None: no face was found); returns True if the head is tracked, not lost."""
        plausible = fit is not None and self._is_plausible(fit)
        if plausible and fit is not None:
            self._good = min(self._good + 1, GOOD_FRAMES)
            self._errors.append(fit.error)
        else:
            self._good = 0
        self._before = fit
        return not self.lost

    def _is_plausible(self, fit: HeadFit) -> bool:
        depth = float(fit.translation[2])
        if not (np.isfinite(fit.error) and depth > 0.05):
            return False
        pupils = IPD * self._camera.focal / depth / self._camera.scale
        wrong = fit.error > ERROR_RATIO * self.usual_error and fit.error > ERROR_IPD * pupils
        yaw = np.arctan2(fit.rotation[0, 2], -fit.rotation[2, 2])
        jumped = False
        if self._before is not None:
            turn = self._before.rotation.T @ fit.rotation
            angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0))
            jumped = bool(angle > ROTATION_JUMP or abs(depth / self._before.translation[2] - 1) > DEPTH_JUMP)
        return not wrong and not jumped and abs(float(yaw)) <= MAX_YAW
