"""Migration of avatar files of older format versions, built here by the old layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from insta_runtime.avatar import FILE_NAME, Avatar
from insta_runtime.avatar_file import read, seal
from insta_runtime.avatar_migration import RENAMED_TABLES, RENAMED_TENSORS, VERSION
from insta_runtime.errors import UserError
from insta_runtime.field.expression_code import HEAD_WIDTH, REGION_WIDTH
from insta_runtime.field.radiance import CODE_LAYER
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.learn.training_state import TrainingState
from tests.support.small_person import CPU, SMALL, camera, neutral_shape, open_head, paint, performance, photograph

HEAD = open_head()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Avatar, TorchTrainer, Path]:
    """An avatar after a few training steps, and its file of the present version."""
    avatar = Avatar.create(HEAD, neutral_shape(HEAD), camera(48), SMALL, CPU)
    trainer = TorchTrainer(avatar.model)
    for observation in photograph(HEAD, performance(HEAD, 4), 48, paint(HEAD)):
        trainer.add(observation)
    for _ in range(12):
        trainer.step()
    avatar.update(trainer.snapshot(), trainer.steps, 1.0)
    path = tmp_path_factory.mktemp("avatar")
    avatar.save(path)
    return avatar, trainer, path / FILE_NAME


def old_layout(file: Path, target: Path, version: int) -> Path:
    """Write the contents of ``file`` as format version 1, 2 or 3 did, with the names and widths of that time."""
    with safe_open(file, "pt") as content:
        header: dict[str, Any] = json.loads(content.metadata()["header"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    header["version"] = version
    del header["config"]["conditioning"]["head_part"]
    tensors |= {name: narrow(tensors[name]) for name in (CODE_LAYER, "expression.mean", "expression.spread")}
    if version < 3:
        old_tensor = {new: old for old, new in RENAMED_TENSORS.items()}
        old_table = {new: old for old, new in RENAMED_TABLES.items()}
        header["config"] = {old_table.get(name, name): table for name, table in header["config"].items()}
        tensors = {old_tensor.get(name, name): tensor for name, tensor in tensors.items()}
    if version == 1:
        del header["consent"], header["person"], tensors["occupancy.lit"]
    text = json.dumps(header)
    save_file(tensors, target, {"header": text} | ({"sha256": seal(text, tensors)} if version > 1 else {}))
    return target


def narrow(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` without the inputs or numbers of the head part of the expression code."""
    return tensor[..., :-HEAD_WIDTH].contiguous()


def test_old_names_are_those_of_the_old_layout(trained: tuple[Avatar, TorchTrainer, Path], tmp_path: Path) -> None:
    contents = read(old_layout(trained[2], tmp_path / "old.safetensors", 2))
    assert {"registration", "occupancy.seen", "occupancy.inside", "occupancy.lit"} <= set(contents.tensors)
    assert "registration" in contents.header["config"]
    assert "pose_refinement" not in contents.header["config"]
    assert len(contents.tensors["expression.mean"]) == REGION_WIDTH


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_avatar_of_an_older_version_loads_and_trains_on(
    trained: tuple[Avatar, TorchTrainer, Path], tmp_path: Path, version: int
) -> None:
    avatar, trainer, file = trained
    old = old_layout(file, tmp_path / FILE_NAME, version)
    untouched = old.read_bytes()
    loaded = Avatar.load(old, HEAD, CPU)
    assert old.read_bytes() == untouched, "loading does not change the file"
    assert loaded.model.config == avatar.model.config
    assert loaded.steps == avatar.steps
    stored = trainer.snapshot()
    for name, tensor in loaded.model.occupancy.state().items():
        expected = torch.ones_like(tensor) if version == 1 and name == "visibility" else stored[f"occupancy.{name}"]
        assert torch.equal(tensor, expected), name
    assert torch.equal(torch.from_numpy(loaded.model.pose_refinement.table), stored["pose_refinement"])
    again = TorchTrainer(loaded.model)
    again.add(photograph(HEAD, performance(HEAD, 1), 48, paint(HEAD))[0])
    assert again.step() is not None
    loaded.save(tmp_path)
    assert read(old).header["version"] == VERSION
    Avatar.load(old, HEAD, CPU)


def test_codes_without_a_head_part_render_as_before_and_get_statistics_of_one(
    trained: tuple[Avatar, TorchTrainer, Path], tmp_path: Path
) -> None:
    avatar, trainer, file = trained
    model = Avatar.load(old_layout(file, tmp_path / FILE_NAME, 3), HEAD, CPU).model
    weights, trained_weights = model.field.state_dict()[CODE_LAYER], trainer.snapshot()[CODE_LAYER]
    assert torch.equal(narrow(weights), narrow(trained_weights))
    assert not weights[:, -HEAD_WIDTH:].any(), "a new head part changes nothing before it is trained"
    ours, theirs = model.code.range, avatar.model.code.range
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-6)
    np.testing.assert_allclose(ours.spread, theirs.spread, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_the_training_state_beside_an_older_avatar_is_resumed(
    trained: tuple[Avatar, TorchTrainer, Path], tmp_path: Path, version: int
) -> None:
    from insta_runtime import avatar_file

    _, trainer, file = trained
    old = old_layout(file, tmp_path / FILE_NAME, version)
    training = tmp_path / "avatar.training.safetensors"
    header, tensors = trainer.state().file_contents(read(old).sha256 or "")
    tensors |= {name: narrow(tensor) for name, tensor in tensors.items() if name.endswith(CODE_LAYER)}
    avatar_file.write(training, header | {"version": 1}, tensors)
    loaded = Avatar.load(old, HEAD, CPU)
    state = TrainingState.read(training, loaded.sha256, loaded.model)
    again = TorchTrainer(loaded.model)
    again.add(photograph(HEAD, performance(HEAD, 1), 48, paint(HEAD))[0])
    again.resume(state)
    assert again.steps == trainer.steps
    assert again.step() is not None


@pytest.mark.parametrize("version", [0, VERSION + 1, None, "2", True])
def test_unknown_versions_are_refused_with_the_versions_that_can_be_read(
    trained: tuple[Avatar, TorchTrainer, Path], tmp_path: Path, version: object
) -> None:
    old = old_layout(trained[2], tmp_path / FILE_NAME, 2)
    with safe_open(old, "pt") as content:
        header = json.loads(content.metadata()["header"]) | {"version": version}
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    text = json.dumps(header)
    save_file(tensors, old, {"header": text, "sha256": seal(text, tensors)})
    with pytest.raises(UserError, match=rf"this program reads 1 to {VERSION}"):
        Avatar.load(old, HEAD, CPU)
