"""Likeness of the avatar: the PSNR on held-out frames, the newest ones and a few older ones that differ in pose.

Frames are measured at `SIDE` pixels at most and one at a time, so that the display never waits long for the machine.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import torch

    from insta_runtime.backends import AnyRenderer, Backend
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.render.renderer import Snapshot
    from insta_runtime.types import Camera, Float32, HeadState, Observation, RenderedFrame

SIDE: Final = 256
"""Maximum width and height in pixels at which held-back frames are measured."""
RECENT: Final = 4
"""Number of the newest held-back frames that are measured."""
OLDER: Final = 4
"""Number of older held-back frames that are measured, chosen to differ in pose and expression."""


@dataclass(frozen=True)
class LikenessScore:
    """Mean PSNR (dB, head region) of avatar and coloured mesh on frames held back from training.

    ``steps`` is the number of training steps of the measured snapshot.
    """

    avatar_db: float
    mesh_db: float
    steps: int

    @property
    def gain_db(self) -> float:
        """PSNR gain (dB) of the avatar over the coloured mesh; negative if the mesh is better."""
        return self.avatar_db - self.mesh_db


@dataclass
class HeldBackFrame:
    """One frame held back from training (a validation frame), resized for measuring.  Used by the training thread.

    Attributes:
        state: head state of the frame.
        camera: camera of the frame at the measured size.
        truth: (H, W, 3) colours of the frame composited over white.
        mask: (H, W) bool, the head region.
        published_db: (number, PSNR in dB) of the published snapshot that was measured last; (-1, NaN) if none was.
        mesh: coloured mesh that was measured last; None if none was.
        mesh_db: PSNR (dB) of that mesh; NaN if none was measured.
    """

    state: HeadState
    camera: Camera
    truth: torch.Tensor
    mask: torch.Tensor
    published_db: tuple[int, float] = (-1, math.nan)
    mesh: ColouredMesh | None = None
    mesh_db: float = math.nan

    @staticmethod
    def of(observation: Observation, side: int) -> HeldBackFrame:
        """Prepare an observation for measuring, reduced to at most ``side`` pixels in width and height."""
        import torch

        from insta_runtime.evaluation.metrics import head_mask, over_white

        rgba, camera = observation.premultiplied(side)
        alpha = (rgba[..., 3] * 255.0).to(torch.uint8).numpy()
        return HeldBackFrame(observation.state, camera, over_white(rgba), head_mask(alpha))

    def psnr(self, frame: RenderedFrame) -> float:
        """PSNR (dB) of a frame rendered with `state` and `camera`, in the head region and over white."""
        from insta_runtime.evaluation.metrics import over_white, psnr

        return psnr(over_white(frame.rgba), self.truth, self.mask)


@dataclass
class HeldBackSet:
    """Bounded set of the frames held back from training to measure the avatar's PSNR.

    `frames` may be called only by the training thread, the other methods by any thread.  ``side`` is the maximum width
    and height in pixels at which frames are measured.
    """

    side: int = SIDE
    _new: list[Observation] = field(default_factory=list)
    _recent: list[HeldBackFrame] = field(default_factory=list)
    _older: list[HeldBackFrame] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _drop: bool = False

    def add(self, observation: Observation) -> None:
        """Add a frame; the next call of `frames` includes it."""
        with self._lock:
            self._new = [*self._new[1 - RECENT :], observation]

    def drop_older(self) -> None:
        """Drop the older frames, after a change of light or glasses, so that only recent ones are measured."""
        with self._lock:
            self._drop = True

    def frames(self) -> list[HeldBackFrame]:
        """The held-back frames: up to `OLDER` older ones, then up to `RECENT` newest ones."""
        with self._lock:
            new, self._new = self._new, []
            drop, self._drop = self._drop, False
        if drop:
            self._older.clear()
        for observation in new:
            self._recent.append(HeldBackFrame.of(observation, self.side))
            if len(self._recent) > RECENT:
                self._add_older(self._recent.pop(0))
        return [*self._older, *self._recent]

    def _add_older(self, held: HeldBackFrame) -> None:
        """Add an older frame; if there are too many, of the two most similar ones the earlier is dropped."""
        self._older.append(held)
        if len(self._older) > OLDER:
            features = np.stack([state_features(held.state) for held in self._older])
            apart = np.linalg.norm(features[:, None] - features, axis=-1) + np.diag(np.full(len(features), np.inf))
            del self._older[min(divmod(int(apart.argmin()), len(features)))]


def state_features(state: HeadState) -> Float32:
    """Feature vector (F,) of a head state for comparing poses and expressions; each entry is of about unit size."""
    from insta_runtime.render.pose_refinement import PLACE, pose_features

    parts = [pose_features(state)[1 : 1 + PLACE], state.expression, state.jaw_pose * 4.0]
    return np.concatenate(parts).astype(np.float32)


class LikenessMeter:
    """Measures the PSNR of snapshots and of the coloured mesh on held-back frames.  Used by the training thread."""

    def __init__(self, model: AvatarModel, backend: Backend) -> None:
        from insta_runtime.backends import make_renderer

        self._renderer: AnyRenderer = make_renderer(model, backend, urgent=False)

    def load(self, snapshot: Snapshot) -> None:
        """Use the weights of ``snapshot`` in later calls of `avatar_db`."""
        self._renderer.load(snapshot)

    def avatar_db(self, held: HeldBackFrame) -> float:
        """PSNR (dB) of the loaded snapshot on a held-back frame."""
        return held.psnr(self._renderer.render(held.state, held.camera))

    def mesh_db(self, held: HeldBackFrame, mesh: ColouredMesh) -> float:
        """PSNR (dB) of the coloured mesh on a held-back frame."""
        return held.psnr(mesh.render(held.state, held.camera))


def finite_mean(values: list[float]) -> float | None:
    """Mean of the finite values; None if there are none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else None
