"""Rendering of output frames: the avatar, the coloured mesh or a card, at a size adapted to the machine's speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.smoothstep import smoothstep
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.cards import card
from telepresence.display.orbit import pitch_turn, turned, yaw_turn
from telepresence.display.render_size import RenderSize, largest_side
from telepresence.runtime.frames import OutputFrame, RenderInputs
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.types import Bytes, Camera, Float32, HeadState
    from telepresence.learning.learner import Learner

MESH_SIDE: Final = 256
"""Maximum side in pixels at which the coloured mesh is rendered; upscaling it softens its hard edges."""
HOLD_S: Final = 0.5
"""Seconds for which the last pose is held after the face is lost."""
RELAX_S: Final = 1.5
"""Seconds after `HOLD_S` in which the head of a lost face eases to the neutral pose."""


@dataclass(frozen=True)
class Scene:
    """Inputs of one output frame.

    Attributes:
        state: head state to render; None while there is no face to render.
        camera: camera to render ``state`` with; None if unknown.
        learner: learner of the avatar; None before there is one.
        good: whether the avatar is good enough to be rendered instead of ``mesh``.
        absent_s: seconds since the face was lost; 0 while it is tracked.
        raw: cropped camera frame (H, W, 3) uint8, displayed until the avatar is good; None if viewers may not see it.
        title, hint: text of the card that is displayed if there is neither a head nor a camera frame.
        mesh: head mesh coloured from camera frames; None before there is one.
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


@owned_by("render")
class Display:
    """Renders output frames of ``side`` x ``side`` pixels, each within about ``budget_ms`` milliseconds.

    Attributes:
        backgrounds: backgrounds of the head.
        avatar, mesh: adaptive render sizes of the avatar and of the coloured mesh.
        orbit: angles (yaw, pitch) in radians by which the head is turned: to the right of the image, and up.
    """

    def __init__(self, side: int, budget_ms: float, backgrounds: Backgrounds) -> None:
        self.side, self.budget_ms, self.backgrounds = side, budget_ms, backgrounds
        largest = largest_side(side)
        self.avatar = RenderSize(min(RenderSize().side, largest), largest=largest)
        self.mesh = RenderSize(MESH_SIDE, largest=MESH_SIDE)
        self.orbit = 0.0, 0.0
        self._frame_id = 0
        self._last: tuple[object, ...] | None = None  # what the last frame was rendered from
        self._fresh = False  # weights were loaded that no frame was rendered with yet

    @any_thread
    def set_orbit(self, yaw: float, pitch: float) -> None:
        """Turn the head by ``yaw`` to the right of the image and ``pitch`` up, in radians, from the next frame on."""
        self.orbit = yaw, pitch

    def render(self, scene: Scene) -> OutputFrame | None:
        """Render ``scene``; None if the frame would be the same as the last one."""
        learner, orbit = scene.learner, self.orbit
        state, camera = scene.state, scene.camera
        if state is not None and scene.absent_s > 0.0:
            state = relaxed(state, scene.absent_s)
        if state is not None and any(orbit):
            state = turned(state, pitch_turn(-orbit[1]) @ yaw_turn(orbit[0]))
        if state is not None and camera is not None and (scene.good or scene.mesh):
            inputs: tuple[object, ...] = (
                learner,
                scene.good or scene.mesh,
                scene.raw is None,
                self.backgrounds.chosen,
                state.t_capture_ns,
                min(scene.absent_s, HOLD_S + RELAX_S),
                orbit,
            )
            moves = self._fresh or (scene.good and learner is not None and learner.display_renderer.fading)
            if not moves and inputs == self._last:
                return None
            self._last, self._fresh = inputs, False
            if scene.good or scene.raw is None:
                # A face that is gone has no capture time from which a latency could be counted.
                stamp = state.t_capture_ns if scene.absent_s == 0.0 else time.monotonic_ns()
                return self._head(scene, state.at(stamp), camera)
        if scene.raw is not None:
            self._last = None
            return self._finished(time.monotonic_ns(), resized(scene.raw, self.side), False)
        if (scene.title, scene.hint) == self._last:
            return None
        self._last = (scene.title, scene.hint)
        return self._finished(time.monotonic_ns(), card(scene.title, scene.hint, self.side), False)

    def refresh(self, learner: Learner) -> None:
        """Load the newest published weights, if there are any; call it between two frames, as it takes time."""
        snapshot = learner.exchange.take()
        if snapshot is not None:
            learner.display_renderer.load(snapshot)
            self._fresh = True

    def _head(self, scene: Scene, state: HeadState, camera: Camera) -> OutputFrame:
        from insta_runtime.render.renderer import painted

        learner = scene.learner
        avatar = learner if scene.good else None
        size = self.mesh if avatar is None else self.avatar
        began = time.monotonic()
        view = camera.scaled(size.side, size.side)
        background = self.backgrounds.compose(learner.torso if learner is not None else None, state, view)
        if avatar is not None:
            rgb = avatar.display_renderer.picture(state, view, background)
        else:
            assert scene.mesh is not None
            rgb = scene.mesh.render(state, view).over(painted(background))
        ms = 1000.0 * (time.monotonic() - began)
        measured = size.after(ms, self.budget_ms)
        if avatar is not None:
            self.avatar = measured
            avatar.set_display_load(ms / self.budget_ms)
        else:
            self.mesh = measured
        weights, shape = (learner.exchange.taken, learner.avatar.model.shape) if learner is not None else (0, None)
        inputs = RenderInputs(state, view, weights, began, shape)
        return self._finished(state.t_capture_ns, resized(rgb, self.side), avatar is not None, inputs)

    def _finished(
        self, t_capture_ns: int, rgb: Bytes, is_avatar: bool, inputs: RenderInputs | None = None
    ) -> OutputFrame:
        self._frame_id += 1
        return OutputFrame(self._frame_id, t_capture_ns, rgb, is_avatar, inputs)


def resized(rgb: Bytes, side: int) -> Bytes:
    """Resize ``rgb`` (H, W, 3) uint8 to ``side`` x ``side`` pixels by bicubic interpolation."""
    if rgb.shape[:2] == (side, side):
        return rgb
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC))


def relaxed(state: HeadState, absent_s: float) -> HeadState:
    """State to render ``absent_s`` seconds after a face was lost in ``state``.

    The state is held for `HOLD_S`, then eased over `RELAX_S` to a neutral face that looks straight ahead at the same
    position.
    """
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
    """Axis-angle vector of the same rotation that is nearest to ``target``; near an angle of pi there are two."""
    angle = float(np.linalg.norm(rotation))
    if angle < 1e-6:
        return rotation
    other = rotation * np.float32(1.0 - 2.0 * np.pi / angle)
    return min(rotation, other, key=lambda vector: float(np.linalg.norm(vector - target)))
