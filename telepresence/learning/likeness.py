"""How good the avatar is: PSNR on pictures that were held back from learning, the newest and a few that differ.

A picture is measured at most at `SIDE` pixels, one at a time, so that whoever else needs the machine gets their turn.
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
"""Pictures are measured at this side at most, pixels."""
RECENT: Final = 4
"""How many of the newest held-back pictures count ..."""
OLDER: Final = 4
"""... and of older ones, chosen so that they differ."""


@dataclass(frozen=True)
class LikenessScore:
    """Mean PSNR (dB, head region) of the avatar and of the coloured mesh on held-back pictures, after ``steps``."""

    avatar_db: float
    mesh_db: float
    steps: int

    @property
    def gain_db(self) -> float:
        return self.avatar_db - self.mesh_db


@dataclass
class HeldBackFrame:
    """A picture that is measured on.  Belongs to the training thread.

    Attributes:
        camera: at the side that is measured at; truth: (H, W, 3) over white; mask: (H, W) bool of the head.
        shown_db: what was found, and of which publication. mesh_db: the same of ``mesh``.
    """

    state: HeadState
    camera: Camera
    truth: torch.Tensor
    mask: torch.Tensor
    shown_db: tuple[int, float] = (-1, math.nan)
    mesh: ColouredMesh | None = None
    mesh_db: float = math.nan

    @staticmethod
    def of(observation: Observation, side: int) -> HeldBackFrame:
        import torch

        from insta_runtime.evaluation.metrics import head_mask, over_white

        rgba, camera = observation.premultiplied(side)
        alpha = (rgba[..., 3] * 255.0).to(torch.uint8).numpy()
        return HeldBackFrame(observation.state, camera, over_white(rgba), head_mask(alpha))

    def psnr(self, picture: RenderedFrame) -> float:
        """Of a picture of this state by this camera, over white, in the head region."""
        from insta_runtime.evaluation.metrics import over_white, psnr

        return psnr(over_white(picture.rgba), self.truth, self.mask)


@dataclass
class HeldBackSet:
    """The pictures to measure on.  `pictures` belongs to the training thread, the rest may be called from any."""

    side: int = SIDE
    _new: list[Observation] = field(default_factory=list)
    _recent: list[HeldBackFrame] = field(default_factory=list)
    _older: list[HeldBackFrame] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _forget: bool = False

    def add(self, observation: Observation) -> None:
        with self._lock:
            self._new = [*self._new[1 - RECENT :], observation]

    def forget_older(self) -> None:
        """Measure on recent pictures alone: what was before is no measure any more (another light, other glasses)."""
        with self._lock:
            self._forget = True

    def pictures(self) -> list[HeldBackFrame]:
        """The older ones, then the newest."""
        with self._lock:
            new, self._new = self._new, []
            forget, self._forget = self._forget, False
        if forget:
            self._older.clear()
        for observation in new:
            self._recent.append(HeldBackFrame.of(observation, self.side))
            if len(self._recent) > RECENT:
                self._keep(self._recent.pop(0))
        return [*self._older, *self._recent]

    def _keep(self, held: HeldBackFrame) -> None:
        """Keep it among the older ones; where there is no room, of the two that are most alike the earlier one goes."""
        self._older.append(held)
        if len(self._older) > OLDER:
            looks = np.stack([look(held.state) for held in self._older])
            apart = np.linalg.norm(looks[:, None] - looks, axis=-1) + np.diag(np.full(len(looks), np.inf))
            del self._older[min(divmod(int(apart.argmin()), len(looks)))]


def look(state: HeadState) -> Float32:
    """What tells states apart, each number about one in size: pose and expression."""
    from insta_runtime.render.pose_refinement import PLACE, pose_features

    parts = [pose_features(state)[1 : 1 + PLACE], state.expression, state.jaw_pose * 4.0]
    return np.concatenate(parts).astype(np.float32)


class LikenessMeter:
    """Measures snapshots and the coloured mesh on held-back pictures.  Belongs to the training thread."""

    def __init__(self, model: AvatarModel, backend: Backend) -> None:
        from insta_runtime.backends import make_renderer

        self._renderer: AnyRenderer = make_renderer(model, backend, urgent=False)

    def load(self, snapshot: Snapshot) -> None:
        """Measure this one from now on."""
        self._renderer.load(snapshot)

    def avatar_db(self, held: HeldBackFrame) -> float:
        return held.psnr(self._renderer.render(held.state, held.camera))

    def mesh_db(self, held: HeldBackFrame, mesh: ColouredMesh) -> float:
        return held.psnr(mesh.render(held.state, held.camera))


def mean(values: list[float]) -> float | None:
    """Of those that are numbers; None if there are none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else None
