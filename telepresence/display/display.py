"""The picture of this moment: a card, the coloured mesh or the avatar, at the size that the machine can hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.smoothstep import smoothstep
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.cards import card
from telepresence.display.orbit import pitch_turn, turned, yaw_turn
from telepresence.runtime.frames import Drawn, ShownFrame
from telepresence.runtime.scheduling import Resolution, largest_side

if TYPE_CHECKING:
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.types import Bytes, Camera, Float32, HeadState
    from telepresence.learning.learner import Learner

MESH_SIDE: Final = 256
"""Largest side at which the coloured mesh is rendered: its edges are hard, and enlarging softens them."""
HOLD_S: Final = 0.5
"""A face that is gone keeps its last pose for so long ..."""
RELAX_S: Final = 1.5
"""... and eases to neutral in this time."""


@dataclass(frozen=True)
class Scene:
    """All that the picture of one moment depends on.

    ``state`` is what the face does, in ``camera``; None while there is no face to show.  ``absent_s`` is how long
    the face has been gone.  ``mesh`` is the head in the colours of the camera's pictures, ``good`` says that the
    avatar of ``learner`` is good enough to show instead.  ``raw`` is the camera's
    picture if viewers may see it.  ``title`` and ``hint`` are for the card that fills in for all of these.
    """

    state: HeadState | None
    camera: Camera | None
    learner: Learner | None
    good: bool
    absent_s: float
    raw: Bytes | None
    title: str
    hint: str
    mesh: ColouredMesh | None = None


class Display:
    """Makes pictures of ``side`` x ``side`` pixels within ``budget_ms`` each.  Belongs to the render thread.

    ``orbit`` is how the head is turned on top of its own motion: radians to the right in the picture and up; any thread
    may replace it.
    """

    def __init__(self, side: int, budget_ms: float, backgrounds: Backgrounds) -> None:
        self.side, self.budget_ms, self.backgrounds = side, budget_ms, backgrounds
        largest = largest_side(side)
        self.avatar = Resolution(min(Resolution().side, largest), largest=largest)
        self.mesh = Resolution(MESH_SIDE, largest=MESH_SIDE)
        self.orbit = 0.0, 0.0
        self._frame_id = 0
        self._last: tuple[object, ...] | None = None
        self._fresh = False  # weights were taken over that no picture shows yet

    def picture(self, scene: Scene) -> ShownFrame | None:
        """The picture of ``scene``, or None if it would be the same as the last one."""
        learner, orbit = scene.learner, self.orbit
        state, camera = scene.state, scene.camera
        if state is not None and scene.absent_s > 0.0:
            state = relaxed(state, scene.absent_s)
        if state is not None and any(orbit):
            state = turned(state, pitch_turn(-orbit[1]) @ yaw_turn(orbit[0]))
        subject: tuple[object, ...]
        if state is not None and camera is not None and (scene.good or scene.mesh):
            subject = (
                learner,
                scene.good or scene.mesh,
                scene.raw is None,
                self.backgrounds.chosen,
                state.t_capture_ns,
                min(scene.absent_s, HOLD_S + RELAX_S),
                orbit,
            )
            moves = self._fresh or (scene.good and learner is not None and learner.display.fading)
            if not moves and subject == self._last:
                return None
            self._last, self._fresh = subject, False
            if scene.good or scene.raw is None:
                # A face that is gone has no capture time that a latency could be counted from.
                stamp = state.t_capture_ns if scene.absent_s == 0.0 else time.monotonic_ns()
                return self._head(scene, state.at(stamp), camera)
        if scene.raw is not None:
            self._last = None
            return self._shown(time.monotonic_ns(), resized(scene.raw, self.side), False)
        if (scene.title, scene.hint) == self._last:
            return None
        self._last = (scene.title, scene.hint)
        return self._shown(time.monotonic_ns(), card(scene.title, scene.hint, self.side), False)

    def refresh(self, learner: Learner) -> None:
        """Take over the newest weights; call it after a picture, while nobody waits for one."""
        snapshot = learner.exchange.take()
        if snapshot is not None:
            learner.display.load(snapshot)
            self._fresh = True

    def _head(self, scene: Scene, state: HeadState, camera: Camera) -> ShownFrame:
        from insta_runtime.render.renderer import painted

        learner = scene.learner
        avatar = learner if scene.good else None
        resolution = self.mesh if avatar is None else self.avatar
        began = time.monotonic()
        view = camera.scaled(resolution.side, resolution.side)
        background = self.backgrounds.under(learner.torso if learner is not None else None, state, view)
        if avatar is not None:
            rgb = avatar.display.picture(state, view, background)
        else:
            assert scene.mesh is not None
            rgb = scene.mesh.render(state, view).over(painted(background))
        ms = 1000.0 * (time.monotonic() - began)
        measured = resolution.after(ms, self.budget_ms)
        if avatar is not None:
            self.avatar = measured
            avatar.make_room(ms / self.budget_ms)
        else:
            self.mesh = measured
        weights, shape = (learner.exchange.taken, learner.avatar.model.shape) if learner is not None else (0, None)
        drawn = Drawn(state, view, weights, began, shape)
        return self._shown(state.t_capture_ns, resized(rgb, self.side), avatar is not None, drawn)

    def _shown(self, t_capture_ns: int, rgb: Bytes, is_avatar: bool, drawn: Drawn | None = None) -> ShownFrame:
        self._frame_id += 1
        return ShownFrame(self._frame_id, t_capture_ns, rgb, is_avatar, drawn)


def resized(rgb: Bytes, side: int) -> Bytes:
    """``rgb`` (H, W, 3) uint8 at ``side`` x ``side``, bicubic."""
    if rgb.shape[:2] == (side, side):
        return rgb
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC))


def relaxed(state: HeadState, absent_s: float) -> HeadState:
    """``state`` held for `HOLD_S`, then eased over `RELAX_S` to a neutral face that looks ahead from where it was."""
    t = min(max((absent_s - HOLD_S) / RELAX_S, 0.0), 1.0)
    if t == 0.0:
        return state
    weight = np.float32(smoothstep(t))
    ahead = np.array([np.pi, 0.0, 0.0], dtype=np.float32)
    start = _nearest_turn(state.rotation, ahead)
    kept = np.float32(1.0) - weight
    return replace(
        state,
        expression=state.expression * kept,
        jaw_pose=state.jaw_pose * kept,
        neck_pose=state.neck_pose * kept,
        eye_pose=state.eye_pose * kept,
        eyelids=state.eyelids * kept,
        rotation=start + weight * (ahead - start),
    )


def _nearest_turn(rotation: Float32, target: Float32) -> Float32:
    """The axis-angle vector of the same rotation that lies nearest to ``target``: near pi there are two."""
    angle = float(np.linalg.norm(rotation))
    if angle < 1e-6:
        return rotation
    other = rotation * np.float32(1.0 - 2.0 * np.pi / angle)
    return min(rotation, other, key=lambda vector: float(np.linalg.norm(vector - target)))
