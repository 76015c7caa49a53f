"""Generative replay: a loaded avatar renders frames of its stored states, and training does not forget them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from insta_runtime.avatar import Avatar
from insta_runtime.backends import Backend, choose_backend, make_renderer, make_trainer
from insta_runtime.evaluation.protocol import score_psnr
from insta_runtime.learn.generative_replay import FRAME_ID, GenerativeReplay, diverse_states
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.learn.trainer_interface import Trainer
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.types import Observation
from tests.support.small_person import (
    CPU,
    SMALL,
    camera,
    neutral_shape,
    open_head,
    paint,
    performance,
    photograph,
    pose,
    small_model,
)

HEAD = open_head()
KNOWN = performance(HEAD, 24)  # states of the first call
COUNT = 12  # a quarter of the replay budget


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(HEAD, KNOWN, 48, paint(HEAD))


@pytest.fixture(scope="module")
def now() -> list[Observation]:
    """Frames of the second call, in which the face is neutral and the light is dimmer."""
    dimmed = 0.8 * paint(HEAD)
    return photograph(HEAD, [pose(HEAD, yaw=0.005 * i) for i in range(4)], 48, dimmed)


@pytest.fixture(scope="module")
def saved(pictures: list[Observation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    avatar = Avatar.create(HEAD, neutral_shape(HEAD), camera(48), SMALL, CPU)
    trainer = make_trainer(avatar.model, choose_backend("host", avatar.model))
    for picture in pictures:
        trainer.add(picture)
        trainer.take_in()
    for _ in range(100):
        trainer.step()
    avatar.update(trainer.snapshot(), trainer.steps, 1.0)
    path = tmp_path_factory.mktemp("learned")
    avatar.save(path)
    return path


def resumed(saved: Path, backend: str) -> tuple[Avatar, Backend, Trainer, GenerativeReplay]:
    avatar = Avatar.load(saved, HEAD, CPU)
    chosen = choose_backend(backend, avatar.model)
    trainer = make_trainer(avatar.model, chosen)
    trainer.steps = avatar.steps
    return (
        avatar,
        chosen,
        trainer,
        GenerativeReplay(avatar.model, avatar.camera, partial(make_renderer, backend=chosen), COUNT),
    )


def psnr(avatar: Avatar, backend: Backend, trainer: Trainer, pictures: list[Observation]) -> float:
    renderer = make_renderer(avatar.model, backend)
    renderer.load(trainer.snapshot())
    return score_psnr(renderer.render, pictures, 48)[1]


def test_known_expressions_are_not_forgotten(saved: Path, pictures: list[Observation], now: list[Observation]) -> None:
    """PSNR of the first call's frames after a second call with a neutral face, with and without generative replay."""
    lost = {}
    for remembers in (False, True):
        avatar, backend, trainer, recall = resumed(saved, "host")
        before = psnr(avatar, backend, trainer, pictures)
        for picture in now:
            trainer.add(picture)
        trainer.step()
        while remembers and recall.add_next(trainer):
            trainer.step()
        while trainer.steps < avatar.steps + 80:
            trainer.step()
        lost[remembers] = before - psnr(avatar, backend, trainer, pictures)
        assert (trainer.replay.composition.recalled > COUNT // 2) == remembers
    assert lost[False] > 0.5, lost
    assert lost[True] < 0.7 * lost[False], lost


@pytest.mark.parametrize("backend", ["host", "torch"])
def test_recalled_frames_leave_silhouettes_and_poses(saved: Path, now: list[Observation], backend: str) -> None:
    """They train colours and opacity; silhouettes and pose refinement are only learned from real frames."""
    _, _, trainer, recall = resumed(saved, backend)
    trainer.add(now[0])
    trainer.step()
    seen = trainer.model.occupancy.view_count.clone()
    assert len(recall) == COUNT
    given = 0
    while recall.add_next(trainer):
        given += 1
    assert given == trainer.replay.composition.recalled > 4
    assert not recall.add_next(trainer)

    def motions() -> torch.Tensor:
        if isinstance(trainer, NativeTrainer):
            return trainer.pose_motions.motions[sorted(trainer.replay.recalled)].clone()
        assert isinstance(trainer, TorchTrainer)
        return torch.stack([m.motion.now for m in trainer.replay.frames if m.recalled])

    before = motions()
    trainer.steps = 500  # pose refinement starts before this step
    for _ in range(8):
        trainer.step()
    assert torch.equal(trainer.model.occupancy.view_count, seen)
    assert torch.equal(motions(), before)
    assert len(before) == given


def test_a_recalled_frame_shows_the_avatar_as_it_was_loaded(saved: Path, now: list[Observation]) -> None:
    avatar, backend, trainer, recall = resumed(saved, "host")
    shown = make_renderer(avatar.model, backend)
    given: list[Observation] = []

    class Replay:
        def lacks(self, state: object) -> bool:
            return True

        add_recalled = staticmethod(given.append)

    for picture in now:
        trainer.add(picture)
    while recall.add_next(Replay()):
        for _ in range(3):  # further training changes nothing
            trainer.step()
    assert len(given) == COUNT
    for picture in given:
        rgba = shown.render(picture.state, picture.camera).rgba
        assert picture.frame_id == FRAME_ID
        assert (picture.camera.width, picture.camera.height) == (48, 48)
        colour = picture.rgb / 255.0 * (picture.alpha / 255.0)[..., None]
        np.testing.assert_allclose(picture.alpha / 255.0, rgba[..., 3], atol=0.003)
        np.testing.assert_allclose(colour, rgba[..., :3], atol=0.006)


def test_states_are_chosen_in_turn_from_all_cells() -> None:
    model = small_model()
    for i in range(300):
        model.code.observe(pose(HEAD, yaw=0.01 * (i % 3)))
        if i % 100 == 50:
            model.code.observe(pose(HEAD, smile=1.0))
    model.code.observe(pose(HEAD, yaw=0.8))
    chosen = diverse_states(model, 5)
    smile = HEAD.expression_names.index("mouthSmileLeft")
    assert len(chosen) == 5
    assert any(state.expression[smile] == 1.0 for state in chosen)
    assert any(abs(float(state.rotation[2])) > 0.5 for state in chosen)
    assert len(diverse_states(model, 1000)) == len(model.code.reservoir)
    assert diverse_states(small_model(), 5) == []
