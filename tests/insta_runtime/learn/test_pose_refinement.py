"""Pose refinement: tracked head poses with an error are corrected by training, on both trainers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import Kernels
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.pose_refinement import move_head
from insta_runtime.render.renderer import load_snapshot, take_snapshot
from insta_runtime.types import Observation
from insta_runtime.warp.warp import MOTION, TURN_RADIUS
from tests.support.small_person import CPU, SMALL, camera, neutral_shape, open_head, paint, performance, photograph

STEPS, TWIN_STEPS, PICTURES = 420, 180, 24
CONFIG = replace(
    SMALL,
    learn=replace(SMALL.learn, rays=1024, decay_steps=STEPS),
    pose_refinement=replace(SMALL.pose_refinement, rate=1e-3, ridge=0.1),
)


@pytest.fixture(scope="module")
def mistracked() -> tuple[list[Observation], np.ndarray]:
    """Frames whose tracked head positions have an error proportional to the smile; and the errors."""
    head = open_head()
    states = performance(head, PICTURES)
    smile = np.array([s.expression[head.expression_names.index("mouthSmileLeft")] for s in states])
    error = np.zeros((PICTURES, 6), np.float32)
    error[:, 0], error[:, 1] = 0.04 * (smile - smile.mean()), -0.03 * (smile - smile.mean())
    pictures = photograph(head, states, 48, paint(head))
    wrong = [replace(p, state=move_head(p.state, -e)) for p, e in zip(pictures, error, strict=True)]
    return wrong, error


def displacement(motions: np.ndarray) -> np.ndarray:
    """Displacement (N, 2) in metres along x and y of the face, 8 cm before the origin, by motions (N, MOTIONS)."""
    return np.asarray(motions[:, :2] + 0.08 / TURN_RADIUS * np.stack([motions[:, 4], -motions[:, 3]], axis=1))


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Correlation of the displacements of the face by two sets of motions."""
    return float(np.corrcoef(displacement(found).ravel(), displacement(wanted).ravel())[0, 1])


def test_kernels_find_true_positions(device: torch.device, mistracked: tuple[list[Observation], np.ndarray]) -> None:
    pictures, error = mistracked
    model = AvatarModel(open_head(), neutral_shape(open_head()), CONFIG, device, 0)
    trainer = NativeTrainer(model, Kernels(device, avatar_constants(CONFIG)))
    for picture in pictures:
        trainer.add(picture)
        trainer.take_in()
    for _ in range(STEPS):
        trainer.step()
    found = trainer.pose_motions.motions[:PICTURES, :MOTION].cpu().numpy()
    assert agreement(found, error) > 0.7
    left = displacement(found - found.mean(axis=0) - error)
    assert np.square(left).mean() < 0.5 * np.square(error[:, :2]).mean()


def test_learned_corrections_are_rendered_and_saved(
    mistracked: tuple[list[Observation], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The torch trainer learns them, too; snapshots and files contain them."""
    pictures, error = mistracked
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), pictures[0].camera, CONFIG, CPU)
    trainer = TorchTrainer(avatar.model)
    for picture in pictures:
        trainer.add(picture)
        trainer.take_in()
    for _ in range(TWIN_STEPS):
        trainer.step()
    found = np.stack([frame.motion.now.numpy() for frame in trainer.replay.frames])
    assert agreement(found, error) > 0.6
    avatar.update(trainer.snapshot(), trainer.steps, 1.0)
    path = tmp_path_factory.mktemp("avatar")
    avatar.save(path)
    loaded = Avatar.load(path, head, CPU)
    shown = [loaded.model.refine_pose(p.state)[0] for p in pictures]
    nose = np.array([0.0, 0.0, 0.08])
    before, after = (
        np.stack([rotation_matrix(s.rotation) @ nose + s.translation for s in states])
        for states in ([p.state for p in pictures], shown)
    )
    ahead = np.array([1.0, -1.0])  # head space to camera space of a face that looks ahead
    assert float(np.corrcoef(((after - before)[:, :2] * ahead).ravel(), error[:, :2].ravel())[0, 1]) > 0.6


def test_tables_without_columns_for_mouth_and_eyes_are_loaded() -> None:
    """In old tables mouth and eyes have no motions of their own: they follow the head."""
    model = AvatarModel(open_head(), neutral_shape(open_head()), CONFIG, CPU, 0)
    snapshot = take_snapshot(model)
    old = snapshot["pose_refinement"][:, : 4 + MOTION].clone()
    old[:, 4:] = 1e-3
    load_snapshot(model, snapshot | {"pose_refinement": old})
    tables = torch.from_numpy(model.pose_refinement.table).split([4, MOTION, MOTION, MOTION], dim=1)
    for part, wanted in zip(tables, (old[:, :4], *[old[:, 4:]] * 3), strict=True):
        assert torch.equal(part, wanted)


def test_a_damaged_pose_refinement_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), camera(48), CONFIG, CPU)
    path = tmp_path_factory.mktemp("damaged")
    avatar.save(path)
    file = next(path.glob("*.safetensors"))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    for damage in (torch.full_like(load_file(file)["pose_refinement"], -1.0), torch.zeros(3, 3)):
        save_file(load_file(file) | {"pose_refinement": damage}, file, metadata)
        with pytest.raises(UserError, match="damaged"):
            Avatar.load(path, head, CPU)
