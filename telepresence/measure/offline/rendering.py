"""Rendering of a saved avatar to a video or to images: moved by a take, or seen from a moving camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_renderer
from insta_runtime.errors import UserError
from insta_runtime.field.state_reservoir import StateReservoir
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
from telepresence.drivers.expression_transfer import ExpressionStats, ExpressionTransfer
from telepresence.runtime.media_paths import media_target
from telepresence.runtime.scratch_folder import ScratchFolder

ORBIT_PERIOD_S: Final = 4.0
"""Seconds of one swing of the moving camera, from the middle to both sides and back."""
ORBIT_FPS: Final = 30.0
"""Frames per second of a video without a take."""
VIDEO_FORMATS: Final = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's format of a video, by the ending of its name; each is one file that holds H.264."""
HEAD_HEIGHT: Final = 0.6
"""Height of the head in a video without a take, as a fraction of the frame's height."""


def render_avatar(
    avatar: Path,
    *,
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
    """Render an avatar over ``run.background`` to a video or a folder of images.

    Args:
        avatar: the avatar's folder or file.
        driver: take or tracked folder that moves the face, of any person with the same head model; None renders a
            neutral face.  Expressions and head poses of another person are mapped to the range of this one.
        out: video to write; None if ``frames`` is given.
        frames: folder for numbered images; None if ``out`` is given.
        orbit: degrees by which the camera moves around the head to both sides; None for a fixed camera.
        tilt: degrees by which the camera also moves up and down.
        raw: use expressions, poses and camera of another person's take unchanged.
        size: side of the frames in pixels.
        config: ``run.background``, ``run.device`` and ``run.backend`` are used.
        head: FLAME head model; None for the open default head.

    Raises UserError for files that cannot be read, do not fit together, or cannot be written.
    """
    if out is not None:
        check_video(out, size)
    backgrounds = Backgrounds(config.run.background)
    loaded = Avatar.load(avatar, load_head(head), config.run.device)
    torso = loaded.part(TorsoLayer)
    if driver is None:
        camera, states, fps = *_portrait(loaded), ORBIT_FPS
        if torso is not None and torso.is_visible and backgrounds.chosen.torso:
            # The torso layer ends where the learned frames ended: keep the head at its place in those frames.
            states = [seated(torso.motion.middle[:POSE], state, camera) for state in states]
    else:
        take = read_take(driver)
        camera, states, fps = take.camera, _states(take, loaded, driver), take.fps
        if not raw and fingerprint(take.shape) != fingerprint(loaded.model.shape):
            camera, states = loaded.camera, map_to_avatar(states, loaded)
    if orbit is not None:
        states = _orbited(states, math.radians(orbit), math.radians(tilt), fps)
    view = camera.scaled(size, size)
    renderer = make_renderer(loaded.model, choose_backend(config.run.backend, loaded.model))
    rendered = (
        renderer.render(state, view).over(painted(backgrounds.compose(torso, state, view)))
        for state in _progress(states)
    )
    if frames is not None:
        _write_images(frames, rendered)
    elif out is not None:
        _write_video(out, rendered, fps, size)


def check_video(path: Path, size: int) -> None:
    """Check the name and the frames' side in pixels of a video to be written.  Raises UserError."""
    if path.suffix.lower() not in VIDEO_FORMATS:
        raise UserError(f"{path}: the format of a video follows from its name: end it in {', '.join(VIDEO_FORMATS)}")
    if size % 2:
        raise UserError(f"a video needs an even size, not {size}: try --size {size + 1}")


def _portrait(avatar: Avatar) -> tuple[Camera, list[HeadState]]:
    """Camera that shows the whole head, and the states of a neutral face for one period of the moving camera."""
    model = avatar.model
    state = HeadState.neutral(len(model.head.expression_names))
    face = model.warp.canonical.vertices.cpu().numpy()
    centre, height = 0.5 * (face.min(0) + face.max(0)), float(np.ptp(face[:, 1]))
    side = max(avatar.camera.width, avatar.camera.height)
    camera = Camera(avatar.camera.fx, avatar.camera.fy, side / 2, side / 2, side, side)
    distance = camera.fy * height / (HEAD_HEIGHT * side)
    translation = np.array([0.0, 0.0, distance]) - rotation_matrix(state.rotation) @ centre
    return camera, [replace(state, translation=translation.astype(np.float32))] * round(ORBIT_PERIOD_S * ORBIT_FPS)


def _states(take: Take, avatar: Avatar, path: Path) -> list[HeadState]:
    states = [state for state, valid in zip(take.states, take.valid, strict=True) if valid]
    expressions = len(avatar.model.head.expression_names)
    if not states or len(states[0].expression) != expressions:
        raise UserError(
            f"{path} does not fit the avatar, which needs states with {expressions} expression weights: "
            "give a take of the same head model"
        )
    return states


def map_to_avatar(states: list[HeadState], avatar: Avatar) -> list[HeadState]:
    """Map head states of another person to the expression range and the head position of the avatar's subject."""
    head, learned = avatar.model.head, avatar.model.code.reservoir
    source = StateReservoir(len(head.expression_names))
    for state in states:
        source.observe(state)
    # Avatars saved by early versions hold no learned states.
    unknown = ExpressionStats.unknown(head, _portrait(avatar)[1][0].translation)
    target = ExpressionStats.of_states(learned, head) if len(learned) else unknown
    transfer = ExpressionTransfer(ExpressionStats.of_states(source, head), target, head)
    return [transfer(state) for state in states]


def _orbited(states: list[HeadState], yaw: float, pitch: float, fps: float) -> list[HeadState]:
    """States seen from a camera that moves by ``yaw`` and ``pitch`` radians around the head, in a figure of eight."""
    orbited = []
    for number, state in enumerate(states):
        phase = 2.0 * math.pi * number / (ORBIT_PERIOD_S * fps)
        turn = pitch_turn(pitch * math.sin(2.0 * phase)) @ yaw_turn(yaw * math.sin(phase))
        orbited.append(turned(state, turn))
    return orbited


def _progress(states: list[HeadState]) -> Iterator[HeadState]:
    from rich.console import Console
    from rich.progress import track

    yield from track(states, "rendering", console=Console(stderr=True))


def _write_images(folder: Path, rendered: Iterator[Bytes]) -> None:
    from PIL import Image

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(folder) as scratch:
            names = []
            for number, rgb in enumerate(rendered):
                names.append(f"{number:06d}.png")
                Image.fromarray(rgb).save(scratch.path / names[-1])
            for name in names:
                (scratch.path / name).replace(folder / name)
    except OSError as error:
        raise UserError(f"the images cannot be written to {folder}: {error.strerror or error}") from None


def _write_video(path: Path, rendered: Iterator[Bytes], fps: float, size: int) -> None:
    import av
    from av.video.stream import VideoStream

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(path) as scratch:
            part = scratch.path / path.name
            with av.open(media_target(part), "w", VIDEO_FORMATS[path.suffix.lower()]) as container:
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
                assert isinstance(stream, VideoStream)
                stream.width = stream.height = size
                stream.pix_fmt = "yuv420p"
                for rgb in rendered:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
                container.mux(stream.encode(None))
            part.replace(path)
    except (OSError, av.FFmpegError, ValueError) as error:
        raise UserError(f"the video cannot be written to {path}: {error}") from None
