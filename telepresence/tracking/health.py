"""Is the tracked head to be believed?  And what a face does while it is not."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import HeadState

from .fit import HeadFit, Pinhole

IPD = 0.063  # m between the pupils of a grown-up
ERROR_RATIO = 2.5  # times the usual error ...
ERROR_IPD = 0.03  # ... and part of the distance between the pupils: a fit with a larger error is wrong
DEPTH_JUMP = 0.15  # part of the depth a frame
ROTATION_JUMP = np.deg2rad(25.0)  # a frame
MAX_YAW = np.deg2rad(60.0)
GOOD_FRAMES = 3  # that end a loss
MEMORY = 90  # frames that say what error is usual
HOLD, EASE = 0.15, 0.5  # s that a lost face stays as it is, then takes to relax


class Health:
    """Judges fit after fit.  After a loss it wants three good ones in a row."""

    def __init__(self, camera: Pinhole, usual_error: float) -> None:
        self._camera = camera
        self._errors = deque([usual_error], maxlen=MEMORY)
        self._before: HeadFit | None = None
        self._good = GOOD_FRAMES

    @property
    def lost(self) -> bool:
        return self._good < GOOD_FRAMES

    @property
    def usual_error(self) -> float:
        """Median error of the fits so far, px of a picture whose longest side is 512."""
        return float(np.median(self._errors))

    def judge(self, fit: HeadFit | None) -> bool:
        """Whether the head is tracked; ``fit`` is None where no face was found."""
        sound = fit is not None and self._sound(fit)
        if sound and fit is not None:
            self._good = min(self._good + 1, GOOD_FRAMES)
            self._errors.append(fit.error)
        else:
            self._good = 0
        self._before = fit
        return not self.lost

    def _sound(self, fit: HeadFit) -> bool:
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


def relaxed(last: HeadState, lost_for: float) -> HeadState:
    """What a face that was last seen in state ``last`` does ``lost_for`` seconds later: hold, then ease to neutral."""
    share = smoothstep(lost_for, HOLD + EASE, HOLD)
    moving = ("expression", "jaw_pose", "eye_pose", "eyelids")
    return replace(last, **{name: getattr(last, name) * np.float32(share) for name in moving})
