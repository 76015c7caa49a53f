"""Recordings that avatars are learned from and measured on: tracked folders, videos, and the synthetic actor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import split
from insta_runtime.head import HeadModel, load_head
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Float32, Float64, HeadState, Observation
from telepresence.config import Config
from telepresence.display.orbit import pitch, pitch_turn, turned, yaw, yaw_turn

if TYPE_CHECKING:
    from telepresence.actor.actor import Actor

ACTOR_FRAMES: Final = 320
"""Number of frames of the recording of the synthetic actor."""
ACTOR_FPS: Final = 10.0
"""Frames per second of the recording of the synthetic actor."""
MIN_ACTOR_SIDE: Final = 256
"""Smallest side in pixels at which the synthetic actor is rendered."""
UNSEEN_VIEWS: Final = 16
"""Number of views rendered for each kind of unseen view."""
MAX_FACT_CHARS: Final = 200
"""Maximum number of characters of one fact that is copied from the metadata of a tracked folder."""

UNSEEN: Final = {
    "unseen_yaw20": "the camera moved around the head to 20 degrees of yaw beyond the outermost learned view, to "
    "both sides in turn",
    "unseen_yaw30": "the camera moved around the head by 30 degrees of yaw from the frame's own view, to the side "
    "to which the face is turned already, and at least to the outermost learned yaw",
    "unseen_pitch15": "the camera moved around the head by 15 degrees of pitch from the frame's own view, up or "
    "down as the face is inclined already, and at least to the outermost learned pitch",
}
"""Kinds of views of held-out frames of the actor that lie outside all learned views; light, clothes and room do not
move with the camera."""


@dataclass(frozen=True)
class Recording:
    """Tracked frames of one subject, to learn an avatar from and to measure it on.

    Attributes:
        name: name of the clip.
        head: the head model of the states.
        shape: identity code of the subject, (S,).
        observations: the frames in which a face was tracked, in order of time.
        fps: frames per second of the recording.
        facts: crop, tracker and smoothing in words, for the protocol of the figures.
        calibration: calibration of subject and camera as plain JSON; None where the states are exact.
        unseen: views outside all learned views, by their kind in `UNSEEN`.
    """

    name: str
    head: HeadModel
    shape: Float32
    observations: list[Observation]
    fps: float
    facts: dict[str, str]
    calibration: dict[str, Any] | None = None
    unseen: dict[str, list[Observation]] = field(default_factory=dict)


def open_recording(
    source: str, size: int, holdout: float, config: Config, head: Path | None, models: Path | None
) -> Recording:
    """Open a recording: a tracked folder, a video (which is tracked first), or ``synthetic``.

    ``size`` and ``holdout`` (side in pixels, fraction of frames held back) are used for the synthetic actor, ``config``
    and ``models`` for a video.  Raises UserError for a source that does not exist or cannot be tracked.
    """
    if source == "synthetic":
        return _synthetic(size, holdout)
    path = Path(source)
    if path.is_dir():
        return tracked_recording(path, head)
    if not path.is_file():
        raise UserError(f"there is no video or tracked folder at {source}")
    from telepresence.measure.offline.video_tracking import track_in_memory

    return _recording_of(track_in_memory(path, config=config, head=head, models=models), head)


def tracked_recording(path: Path, head: Path | None) -> Recording:
    """Read all tracked frames of a tracked folder.  Raises UserError, also for another head model than ``head``."""
    return _recording_of(TrackedFolder.open(path), head)


def _recording_of(folder: TrackedFolder, head: Path | None) -> Recording:
    path = folder.path
    model = load_head(head or folder.head_file)
    if model.sha256 != folder.take.head_sha256:
        raise UserError(f"{path} was tracked with another head model than {model.name}: pass that one with --head")
    observations = read_observations(folder, folder.frames)
    facts = tracking_facts(folder)
    return Recording(path.name, model, folder.take.shape, observations, folder.take.fps, facts, _calibration(folder))


def read_observations(folder: TrackedFolder, indices: Iterable[int]) -> list[Observation]:
    """Read frames of a tracked folder by their numbers, decoded in parallel threads."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda index: folder.observation(int(index)), indices))


def tracking_facts(folder: TrackedFolder) -> dict[str, str]:
    """Source, crop, tracker, smoothing and head model of a tracked folder, in words, from its metadata."""
    tracker = folder.meta.get("tracker")
    known = tracker if isinstance(tracker, dict) else {}

    def words(value: object) -> str:
        return " ".join(str(value).split())[:MAX_FACT_CHARS] if value is not None else "unknown"

    exact = folder.meta.get("calibration") is None
    return {
        "source": words(folder.meta.get("source")),
        "crop": words(folder.meta.get("crop_policy")),
        "tracker": "none" if exact else words(known.get("version", "telepresence track")),
        "smoothing": words(known.get("smoothing")),
        "head_model": words(folder.meta["head"].get("name")),
    }


def evenly_spaced(observations: Sequence[Observation], count: int) -> list[Observation]:
    """At most ``count`` of the observations, evenly spaced from the first to the last."""
    picked = np.linspace(0, len(observations) - 1, min(count, len(observations))).round().astype(int)
    return [observations[i] for i in picked]


def _calibration(folder: TrackedFolder) -> dict[str, Any] | None:
    """Calibration of subject and camera, for later calls with the same avatar; None where the states are exact."""
    from telepresence.tracking.calibration import Calibration

    text = folder.meta.get("calibration")
    return None if text is None else json.loads(Calibration.from_json(str(text)).to_json())


def _synthetic(size: int, holdout: float) -> Recording:
    """Performance of the synthetic actor with exact states, and its held-out frames in the views of `UNSEEN`."""
    from telepresence.actor.actor import Actor
    from telepresence.actor.performance import Performance

    actor = Actor()
    performance = Performance(actor.head.expression_names, 0)
    states = [performance(number / ACTOR_FPS) for number in range(ACTOR_FRAMES)]
    train, held = split(len(states), holdout)
    chosen = np.linspace(0, len(held) - 1, min(UNSEEN_VIEWS, len(held))).round().astype(int)
    turns = unseen_turns([states[i] for i in train], [states[held[i]] for i in chosen])
    views = [(number, state, np.eye(3)) for number, state in enumerate(states)]
    for rotations in turns.values():
        views += [(held[i], turned(states[held[i]], turn), turn) for i, turn in zip(chosen, rotations, strict=True)]
    rendered = iter(_render_actor(actor, views, max(size, MIN_ACTOR_SIDE)))
    observations = [next(rendered) for _ in states]
    unseen = {name: [next(rendered) for _ in rotations] for name, rotations in turns.items()}
    facts = {
        "source": "synthetic",
        "crop": "none",
        "tracker": "none",
        "smoothing": "none: exact states",
        "head_model": actor.head.name,
    }
    return Recording("synthetic", actor.head, actor.shape, observations, ACTOR_FPS, facts, unseen=unseen)


def _render_actor(actor: Actor, views: Sequence[tuple[int, HeadState, Float64]], side: int) -> list[Observation]:
    """Render the actor at ``side`` pixels in parallel; a view is frame id, state, and rotation (3, 3) of the room."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    camera = actor.camera(side)

    def draw(view: tuple[int, HeadState, Float64]) -> Observation:
        number, state, turn = view
        rgb, alpha, body = actor.layers(state, camera, room=turn)
        return Observation(number, rgb, alpha, camera, state, body)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        observations = list(pool.map(draw, views))
    torch.set_num_threads(threads)
    return observations


def unseen_turns(learned: Sequence[HeadState], moments: Sequence[HeadState]) -> dict[str, list[Float64]]:
    """Rotations (3, 3) in camera space that turn each state of ``moments`` out of the learned views, by kind."""
    outermost = max(abs(yaw(state)) for state in learned)
    both_sides = [
        yaw_turn((outermost + math.radians(20.0)) * (1 if n % 2 else -1) - yaw(state))
        for n, state in enumerate(moments)
    ]
    farther = partial(_farther, learned, moments)
    return {
        "unseen_yaw20": both_sides,
        "unseen_yaw30": [yaw_turn(angle) for angle in farther(yaw, math.radians(30.0))],
        "unseen_pitch15": [pitch_turn(angle) for angle in farther(pitch, math.radians(15.0))],
    }


def _farther(
    learned: Sequence[HeadState],
    moments: Sequence[HeadState],
    angle_of: Callable[[HeadState], float],
    turn: float,
) -> list[float]:
    """Angles in radians to add to each moment, away from the frontal view.

    ``turn``, or more where that would not reach the outermost learned angle.
    """
    angles = [angle_of(state) for state in learned]
    added = []
    for state in moments:
        own = angle_of(state)
        side = -1.0 if own < 0.0 else 1.0
        outermost = max(side * angle for angle in angles)
        added.append(side * max(turn, outermost - side * own))
    return added
