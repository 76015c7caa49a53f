"""What is measured: a saved avatar and the tracked folder that moves it and that it goes on learning from."""

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
    from insta_runtime.learn.trainer import Trainer
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.tracked import TrackedFolder
    from insta_runtime.types import Camera, HeadState, Observation

REPLAY_FRAMES = 1000
"""Pictures that learning draws from while it is measured, as after a few minutes of a call."""


@dataclass(frozen=True)
class BenchmarkAvatar:
    """An avatar, the states of a moving take, and the camera at the size of the pictures."""

    avatar: Avatar
    folder: TrackedFolder
    states: list[HeadState]
    camera: Camera

    @property
    def model(self) -> AvatarModel:
        return self.avatar.model

    @property
    def device(self) -> torch.device:
        return self.avatar.model.device

    def observations(self, count: int = REPLAY_FRAMES) -> Iterator[Observation]:
        """The tracked pictures, ``count`` of them, from the beginning again if the take is shorter."""
        frames = self.folder.frames
        read = {}
        for number in range(count):
            index = int(frames[number % len(frames)])
            if index not in read:
                read[index] = self.folder.observation(index)
            yield read[index]

    def untouched_model(self) -> AvatarModel:
        """The model with a field and an occupancy of its own: what learns here leaves the subject as it is."""
        model = copy.copy(self.model)
        model.field = copy.deepcopy(self.model.field)
        model.occupancy = copy.deepcopy(self.model.occupancy, {id(model.warp): model.warp})
        return model


def fill_replay(trainer: Trainer, subject: BenchmarkAvatar, count: int) -> int:
    """Let a trainer take in ``count`` pictures, or as many as it has room for; how many it holds then."""
    held = 0
    synchronise(subject.device)  # pictures are taken in on this thread's stream, steps run on the trainer's
    for observation in subject.observations(count):
        trainer.add(observation)
        trainer.take_in()
        if len(trainer.replay) == held:
            break
        held = len(trainer.replay)
    synchronise(subject.device)
    return held


def open_benchmark_avatar(avatar: Path, tracked: Path, size: int, device: str) -> BenchmarkAvatar:
    """Load ``avatar`` onto ``device`` (``cpu``, ``cuda``) with pictures of ``size`` x ``size`` pixels to be drawn.

    Raises UserError for an odd ``size``, and for an avatar and a folder that cannot be used together.
    """
    from insta_runtime.avatar import Avatar
    from insta_runtime.head import load_head
    from insta_runtime.tracked import TrackedFolder

    if size % 2:
        raise UserError(f"pictures of {size} x {size} pixels cannot be made into video frames: give an even --size")
    folder = TrackedFolder.open(tracked)
    loaded = Avatar.load(avatar, load_head(folder.head_file), device)
    states = [folder.take.states[int(i)] for i in folder.frames]
    if len(states) < 2:
        raise UserError(f"{tracked} has {len(states)} pictures of a face: give a take in which one moves")
    return BenchmarkAvatar(loaded, folder, states, folder.take.camera.scaled(size, size))
