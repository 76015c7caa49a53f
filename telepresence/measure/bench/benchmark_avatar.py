"""Avatar that a benchmark measures, with the tracked folder that moves it and that it is trained on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.measure.bench.timing import synchronise

if TYPE_CHECKING:
    import torch

    from insta_runtime.avatar import Avatar
    from insta_runtime.learn.trainer_interface import Trainer
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.tracked import TrackedFolder
    from insta_runtime.types import Camera, HeadState, Observation

REPLAY_FRAMES = 1000
"""Number of frames in the replay buffer while training is measured, as after a few minutes of a call."""


@dataclass(frozen=True)
class BenchmarkAvatar:
    """A saved avatar, the tracked folder that moves it, its head states, and the camera of the rendered frames."""

    avatar: Avatar
    folder: TrackedFolder
    states: list[HeadState]
    camera: Camera

    @property
    def model(self) -> AvatarModel:
        """The avatar's model."""
        return self.avatar.model

    @property
    def device(self) -> torch.device:
        """Device of the avatar's model."""
        return self.avatar.model.device

    def observations(self, count: int = REPLAY_FRAMES) -> Iterator[Observation]:
        """Yield ``count`` tracked frames, starting again from the first if the take is shorter."""
        frames = self.folder.frames
        read = {}
        for number in range(count):
            index = int(frames[number % len(frames)])
            if index not in read:
                read[index] = self.folder.observation(index)
            yield read[index]

    def untouched_model(self) -> AvatarModel:
        """Copy of the model with its own field and occupancy grid, so that training leaves this avatar unchanged."""
        model = copy.copy(self.model)
        model.field = copy.deepcopy(self.model.field)
        model.occupancy = copy.deepcopy(self.model.occupancy, {id(model.warp): model.warp})
        return model


def fill_replay(trainer: Trainer, subject: BenchmarkAvatar, count: int) -> int:
    """Add up to ``count`` frames to a trainer's replay buffer, until it is full; returns how many it holds then."""
    held = 0
    synchronise(subject.device)  # frames are added on the stream of this thread, steps run on the stream of the trainer
    for observation in subject.observations(count):
        trainer.add(observation)
        trainer.take_in()
        if len(trainer.replay) == held:
            break
        held = len(trainer.replay)
    synchronise(subject.device)
    return held


def open_benchmark_avatar(avatar: Path, tracked: Path, size: int, device: str) -> BenchmarkAvatar:
    """Load an avatar and its tracked folder onto ``device`` (``cpu``, ``cuda``), to render ``size`` x ``size`` pixels.

    Raises UserError for an odd ``size``, for files that cannot be read, and if the head models differ.
    """
    from insta_runtime.avatar import Avatar
    from insta_runtime.head import load_head
    from insta_runtime.tracked import TrackedFolder

    if size % 2:
        raise UserError(f"video frames need an even number of pixels, not {size}: pass an even --size")
    folder = TrackedFolder.open(tracked)
    loaded = Avatar.load(avatar, load_head(folder.head_file), device)
    states = [folder.take.states[int(i)] for i in folder.frames]
    if len(states) < 2:
        raise UserError(f"{tracked} has {len(states)} frames with a face: give a folder with at least two")
    return BenchmarkAvatar(loaded, folder, states, folder.take.camera.scaled(size, size))
