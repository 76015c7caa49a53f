"""`telepresence render`: a video of an avatar, driven by any take or on a turntable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_renderer
from insta_runtime.errors import UserError
from insta_runtime.field.expression_stats import Repertoire
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import fingerprint, load_head
from insta_runtime.render.renderer import painted
from insta_runtime.torso.layer import TorsoLayer
from insta_runtime.torso.motion import POSE, seated
from insta_runtime.tracked import read_take
from insta_runtime.types import Bytes, Camera, HeadState, Take
from telepresence.config import Config
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.orbit import pitch_turn, turned, yaw_turn
from telepresence.drivers.transfer import Habits, Transfer

ORBIT_S = 4.0  # seconds of one swing of the turntable, there and back
FPS = 30.0
FILLED = 0.6  # part of the picture's height that the head takes on the turntable


def render(
    *,
    avatar: Path,
    driver: Path | None,
    out: Path | None,
    frames: Path | None,
    orbit: float | None,
    tilt: float,
    raw: bool,
    size: int,
    config: Config,
    head: Path | None,
) -> None:
    """Render ``avatar`` at ``size`` x ``size`` pixels, over ``run.background``, into the video ``out`` or ``frames``.

    ``driver`` is a take or a tracked folder of anybody with the same kind of head; without one a neutral face is
    shown.  Somebody else's expressions are mapped on this person's, around the place where the avatar was learned;
    ``raw`` takes them, and the take's camera, as they are.  ``orbit`` swings the camera by so many degrees to both
    sides, and by ``tilt`` up and down.  Raises UserError.
    """
    backgrounds = Backgrounds(config.run.background)
    loaded = Avatar.load(avatar, load_head(head), config.run.device)
    torso = loaded.part(TorsoLayer)
    if driver is None:
        camera, states, fps = *_portrait(loaded), FPS
        if torso is not None and torso.holds and backgrounds.chosen.torso:
            # The torso ends where the pictures did that it was learned from: the head is where it was in them.
            states = [seated(torso.motion.middle[:POSE], state, camera) for state in states]
    else:
        take = read_take(driver)
        camera, states, fps = take.camera, _states(take, loaded, driver), take.fps
        if not raw and fingerprint(take.shape) != fingerprint(loaded.model.shape):
            camera, states = loaded.camera, transferred(states, loaded)
    if orbit is not None:
        states = _orbited(states, math.radians(orbit), math.radians(tilt), fps)
    view = camera.scaled(size, size)
    renderer = make_renderer(loaded.model, choose_backend(config.run.backend, loaded.model))
    pictures = (
        renderer.render(state, view).over(painted(backgrounds.under(torso, state, view))) for state in _progress(states)
    )
    if frames is not None:
        _write_pictures(frames, pictures)
    elif out is not None:
        _write_video(out, pictures, fps, size)


def _portrait(avatar: Avatar) -> tuple[Camera, list[HeadState]]:
    """A camera that frames the head, and one swing of a neutral face."""
    model = avatar.model
    state = HeadState.neutral(len(model.head.expression_names))
    face = model.warp.canonical.vertices.cpu().numpy()
    centre, height = 0.5 * (face.min(0) + face.max(0)), float(np.ptp(face[:, 1]))
    side = max(avatar.camera.width, avatar.camera.height)
    camera = Camera(avatar.camera.fx, avatar.camera.fy, side / 2, side / 2, side, side)
    distance = camera.fy * height / (FILLED * side)
    translation = np.array([0.0, 0.0, distance]) - rotation_matrix(state.rotation) @ centre
    return camera, [replace(state, translation=translation.astype(np.float32))] * round(ORBIT_S * FPS)


def _states(take: Take, avatar: Avatar, path: Path) -> list[HeadState]:
    states = [state for state, valid in zip(take.states, take.valid, strict=True) if valid]
    expressions = len(avatar.model.head.expression_names)
    if not states or len(states[0].expression) != expressions:
        raise UserError(f"{path} does not fit the avatar: it needs states with {expressions} expression weights")
    return states


def transferred(states: list[HeadState], avatar: Avatar) -> list[HeadState]:
    """What the person of ``avatar`` does when somebody else does ``states``; head poses are before its camera."""
    head, learned = avatar.model.head, avatar.model.code.repertoire
    source = Repertoire(len(head.expression_names))
    for state in states:
        source.observe(state)
    # An avatar from before anybody took note of what was learned from knows nothing.
    unknown = Habits.unknown(head, _portrait(avatar)[1][0].translation)
    target = Habits.of(learned, head) if len(learned) else unknown
    transfer = Transfer(Habits.of(source, head), target, head)
    return [transfer(state) for state in states]


def _orbited(states: list[HeadState], yaw: float, pitch: float, fps: float) -> list[HeadState]:
    """The states seen by a camera that swings by ``yaw`` and ``pitch`` radians around the head, on a lying eight."""
    orbited = []
    for number, state in enumerate(states):
        phase = 2.0 * math.pi * number / (ORBIT_S * fps)
        turn = pitch_turn(pitch * math.sin(2.0 * phase)) @ yaw_turn(yaw * math.sin(phase))
        orbited.append(turned(state, turn))
    return orbited


def _progress(states: list[HeadState]) -> Iterator[HeadState]:
    from rich.console import Console
    from rich.progress import track

    yield from track(states, "rendering", console=Console(stderr=True))


def _write_pictures(folder: Path, pictures: Iterator[Bytes]) -> None:
    from PIL import Image

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{number:06d}.png")
    except OSError as error:
        raise UserError(f"the pictures cannot be written to {folder}: {error.strerror or error}") from None


def _write_video(path: Path, pictures: Iterator[Bytes], fps: float, size: int) -> None:
    import av
    from av.video.stream import VideoStream

    if size % 2:
        raise UserError(f"a video needs an even size, not {size}: try --size {size + 1}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
            assert isinstance(stream, VideoStream)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, av.FFmpegError, ValueError) as error:
        raise UserError(f"the video cannot be written to {path}: {error} (does its name end in .mp4?)") from None
