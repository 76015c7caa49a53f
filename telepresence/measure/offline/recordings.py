"""What an avatar is learned from and measured on: tracked folders, videos, and the synthetic actor."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

ACTOR_FRAMES = 320
ACTOR_FPS = 10.0
UNSEEN_VIEWS = 16  # of each kind

UNSEEN = {
    "unseen_yaw20": "the camera moved around the head to 20 degrees of yaw beyond the outermost learned view, to "
    "both sides in turn",
    "unseen_yaw30": "the camera moved around the head by 30 degrees of yaw from the moment's own view, to the side "
    "to which the face is turned already, and at least to the outermost learned yaw",
    "unseen_pitch15": "the camera moved around the head by 15 degrees of pitch from the moment's own view, up or "
    "down as the face is inclined already, and at least to the outermost learned pitch",
}
"""Views of held-out moments of the actor that nobody saw; light, clothes and room stay where they are."""


@dataclass(frozen=True)
class Recording:
    """What there is to learn from.

    Attributes:
        name: of the clip.
        head, shape: the head model, and the identity code (S,) of the person.
        observations: in time.
        fps: of the recording.
        facts: crop, tracker and smoothing, in words, for the protocol.
        calibration: what tracking learned of person and camera, JSON-able; None of exact states.
        unseen: views nobody saw, by their names in `UNSEEN`.
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
    """The recording ``source``: a tracked folder, a video, or ``synthetic``.  Raises UserError."""
    if source == "synthetic":
        return _synthetic(size, holdout)
    path = Path(source)
    if path.is_dir():
        return tracked_recording(path, head)
    if not path.is_file():
        raise UserError(f"there is no video or tracked folder at {source}")
    from telepresence.commands.track import track

    with tempfile.TemporaryDirectory(prefix="telepresence-") as folder:
        tracked = Path(folder) / "tracked"
        track(path, tracked, config=config, head=head, models=models, focal=None)
        return replace(tracked_recording(tracked, head), name=path.name)


def tracked_recording(path: Path, head: Path | None) -> Recording:
    """All of a tracked folder.  Raises UserError."""
    folder = TrackedFolder.open(path)
    model = load_head(head or folder.head_file)
    if model.sha256 != folder.take.head_sha256:
        raise UserError(f"{path} was tracked with another head model than {model.name}: give that one with --head")
    observations = read_observations(folder, folder.frames)
    facts = tracking_facts(folder)
    return Recording(path.name, model, folder.take.shape, observations, folder.take.fps, facts, _calibration(folder))


def read_observations(folder: TrackedFolder, indices: Iterable[int]) -> list[Observation]:
    """Pictures of a tracked folder, decoded by as many threads as there are cores."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda index: folder.observation(int(index)), indices))


def tracking_facts(folder: TrackedFolder) -> dict[str, str]:
    """What a tracked folder tells of its making, in words."""
    tracker = folder.meta.get("tracker")
    told = tracker if isinstance(tracker, dict) else {}

    def words(value: object) -> str:
        return " ".join(str(value).split())[:200] if value is not None else "not told"

    exact = folder.meta.get("calibration") is None
    return {
        "source": words(folder.meta.get("source")),
        "crop": words(folder.meta.get("crop_policy")),
        "tracker": "none" if exact else words(told.get("version", "telepresence track")),
        "smoothing": words(told.get("smoothing")),
        "head_model": words(folder.meta["head"].get("name")),
    }


def spread(observations: Sequence[Observation], count: int) -> list[Observation]:
    """At most ``count`` of them, evenly spread."""
    picked = np.linspace(0, len(observations) - 1, min(count, len(observations))).round().astype(int)
    return [observations[i] for i in picked]


def _calibration(folder: TrackedFolder) -> dict[str, Any] | None:
    """What tracking learned of person and camera, for the calls that go on with this avatar; None of exact states."""
    from telepresence.tracking.calibration import Calibration

    text = folder.meta.get("calibration")
    return None if text is None else json.loads(Calibration.from_json(str(text)).to_json())


def _synthetic(size: int, holdout: float) -> Recording:
    """The actor's performance, exact, and held-out moments seen from where nobody looked."""
    from telepresence.actor.actor import Actor
    from telepresence.actor.performance import Performance

    actor = Actor()
    performance = Performance(actor.head.expression_names, 0)
    states = [performance(number / ACTOR_FPS) for number in range(ACTOR_FRAMES)]
    train, held = split(len(states), holdout)
    moments = np.linspace(0, len(held) - 1, min(UNSEEN_VIEWS, len(held))).round().astype(int)
    turns = unseen_turns([states[i] for i in train], [states[held[i]] for i in moments])
    views = [(number, state, np.eye(3)) for number, state in enumerate(states)]
    for some in turns.values():
        views += [(held[i], turned(states[held[i]], turn), turn) for i, turn in zip(moments, some, strict=True)]
    pictures = iter(_photograph(actor, views, max(size, 256)))
    observations = [next(pictures) for _ in states]
    unseen = {name: [next(pictures) for _ in some] for name, some in turns.items()}
    facts = {
        "source": "synthetic",
        "crop": "none",
        "tracker": "none",
        "smoothing": "none: exact states",
        "head_model": actor.head.name,
    }
    return Recording("synthetic", actor.head, actor.shape, observations, ACTOR_FPS, facts, unseen=unseen)


def _photograph(actor: Actor, views: Sequence[tuple[int, HeadState, Float64]], side: int) -> list[Observation]:
    """The actor in states, the room turned by a rotation (3, 3), drawn by as many threads as there are cores."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    camera = actor.camera(side)

    def draw(view: tuple[int, HeadState, Float64]) -> Observation:
        number, state, turn = view
        rgb, alpha, body = actor.layers(state, camera, room=turn)
        return Observation(number, rgb, alpha, camera, state, body)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pictures = list(pool.map(draw, views))
    torch.set_num_threads(threads)
    return pictures


def unseen_turns(learned: Sequence[HeadState], moments: Sequence[HeadState]) -> dict[str, list[Float64]]:
    """For each name in `UNSEEN` the (3, 3) rotations in camera space that take ``moments`` out of the learned views."""
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
    """Angles to add, away from the frontal view: ``turn``, or more if that is not beyond the learned angles."""
    angles = [angle_of(state) for state in learned]
    added = []
    for state in moments:
        own = angle_of(state)
        side = -1.0 if own < 0.0 else 1.0
        outermost = max(side * angle for angle in angles)
        added.append(side * max(turn, outermost - side * own))
    return added
