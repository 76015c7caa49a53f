"""Training resumes from a training state: from a copy in memory and from a file, on every backend."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from insta_runtime import avatar_file
from insta_runtime.avatar import FILE_NAME, Avatar
from insta_runtime.backends import choose_backend, make_trainer
from insta_runtime.config import ConditioningConfig
from insta_runtime.errors import UserError
from insta_runtime.learn.trainer_interface import Trainer
from insta_runtime.learn.training_state import TrainingState
from insta_runtime.types import Observation
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph

# The units of the codes change with every observation; here they must be the same in each run.
CONFIG = replace(
    SMALL,
    conditioning=ConditioningConfig(standardise=False, pull_in=False, pull_views=False),
    learn=replace(SMALL.learn, rays=128, size=32),
)


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 6), 32, paint(open_head()))


@pytest.fixture(params=["host", "torch", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return str(request.param)


def create(backend: str) -> Avatar:
    device = "cuda" if backend == "cuda" else "cpu"
    return Avatar.create(open_head(), neutral_shape(open_head()), camera(32), CONFIG, device)


def trainer_of(avatar: Avatar, backend: str) -> Trainer:
    return make_trainer(avatar.model, choose_backend(backend, avatar.model))


def steps(trainer: Trainer, count: int, pictures: list[Observation] | None = None) -> list[float]:
    """The losses of ``count`` steps, after ``pictures`` were offered."""
    for picture in pictures or ():
        trainer.add(picture)
    reports = [trainer.step() for _ in range(count)]
    assert all(report is not None for report in reports)
    return [report.loss for report in reports if report is not None]


def test_training_resumed_from_a_file_equals_uninterrupted_training(
    backend: str, pictures: list[Observation], tmp_path: Path
) -> None:
    """So many steps at once; and half of them, a file, and the other half."""
    half = 4 if backend == "torch" else 12
    through = trainer_of(create(backend), backend)
    whole = steps(through, 2 * half, pictures)

    first = create(backend)
    trainer = trainer_of(first, backend)
    begun = steps(trainer, half, pictures)
    state = trainer.state()
    first.update(state.shown, state.steps, 1.0)
    first.save(tmp_path)
    assert first.sha256 is not None
    file = tmp_path / "avatar.training.safetensors"
    avatar_file.write(file, *state.file_contents(first.sha256))

    second = Avatar.load(tmp_path, open_head(), first.model.device)
    known = TrainingState.read(file, second.sha256, second.model)
    assert (known.steps, known.updates) == (half, half)
    trainer = trainer_of(second, backend)
    trainer.resume(known)
    resumed = steps(trainer, half, pictures)
    assert trainer.steps == 2 * half
    if backend == "cuda":  # tells the losses of some steps ago
        assert resumed[-1] == pytest.approx(whole[-1], rel=0.3)
        return
    np.testing.assert_allclose(begun, whole[:half], rtol=0.05)
    if backend == "host":  # what a step draws is a function of its number
        np.testing.assert_allclose(resumed, whole[half:], rtol=0.1)
        cold = trainer_of(Avatar.load(tmp_path, open_head(), "cpu"), backend)
        cold.steps = half
        fresh, truth = np.array(steps(cold, half, pictures)), np.array(whole[half:])
        assert resumed[0] == pytest.approx(truth[0], rel=1e-4)
        apart = [np.abs(losses - truth)[:4].max() for losses in (resumed, fresh)]
        assert apart[0] < 0.5 * apart[1], "of weights without moments"


def test_resuming_from_memory_gives_bit_identical_weights(backend: str, pictures: list[Observation]) -> None:
    trainer = trainer_of(create(backend), backend)
    steps(trainer, 12 if backend == "host" else 4, pictures)
    state = trainer.state()
    before = {name: tensor.clone() for name, tensor in state.shown.items()}
    assert state.is_valid()
    steps(trainer, 3)
    for name, tensor in state.shown.items():
        assert torch.equal(tensor, before[name]), "a state is not written to"
    after = trainer.snapshot()
    assert not torch.equal(after["grid.table"], before["grid.table"])
    trainer.resume(state)
    assert trainer.steps == state.steps
    for name, tensor in trainer.snapshot().items():
        assert torch.equal(tensor, before[name]), name
    # A GPU tells the loss of some steps ago, now and then.
    assert math.isfinite(steps(trainer, 20 if backend == "cuda" else 2)[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
def test_invalid_numbers_are_detected(pictures: list[Observation], value: float) -> None:
    trainer = trainer_of(create("torch"), "torch")
    steps(trainer, 1, pictures)
    state = trainer.state()
    assert state.is_valid()
    for part in (state.weights, state.averaged) + ((state.first, state.second) if value != 1e5 else ()):
        name = "colour_net.0.bias"
        kept = part[name].clone()
        part[name][3] = value
        assert not state.is_valid()
        part[name].copy_(kept)
    assert state.is_valid()


def test_the_pace_multiplies_the_rate(backend: str, pictures: list[Observation]) -> None:
    moved = []
    for pace in (1.0, 0.1):
        trainer = trainer_of(create(backend), backend)
        before = trainer.state().weights["grid.table"]
        trainer.schedule.rate_factor = pace
        steps(trainer, 1, pictures)
        moved.append(float((trainer.state().weights["grid.table"] - before).abs().max()))
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=0.01)


def test_the_training_state_of_another_avatar_is_refused(pictures: list[Observation], tmp_path: Path) -> None:
    avatar = create("torch")
    trainer = trainer_of(avatar, "torch")
    steps(trainer, 1, pictures)
    avatar.update(trainer.snapshot(), 1)
    avatar.save(tmp_path)
    seal = str(avatar.sha256)
    header, tensors = trainer.state().file_contents(seal)
    file = tmp_path / "training.safetensors"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            TrainingState.read(file, seal, avatar.model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    avatar_file.write(file, header | {"avatar": "0" * 64}, tensors)
    assert "another avatar" in refusal()
    for changed in ({"version": 3}, {"steps": "many"}, {"updates": -1}, {"steps": None}):
        avatar_file.write(file, header | changed, tensors)
        assert "damaged" in refusal()
    for name in ("first.grid.table", "weights.grid.table"):
        avatar_file.write(file, header, {key: tensor for key, tensor in tensors.items() if key != name})
        assert "damaged" in refusal()
        avatar_file.write(file, header, tensors | {name: torch.zeros(3, 2)})
        assert "damaged" in refusal()
    avatar_file.write(file, header, tensors | {"second.grid.table": tensors["second.grid.table"] - 1.0})
    assert "damaged" in refusal()
    avatar_file.write(file, header, tensors | {"more": torch.zeros(3)})
    assert "damaged" in refusal()
    file.write_bytes((tmp_path / FILE_NAME).read_bytes())
    refusal()
    other = trainer_of(
        Avatar.create(
            open_head(),
            neutral_shape(open_head()),
            camera(32),
            replace(CONFIG, radiance=replace(CONFIG.radiance, hidden=32)),
            "cpu",
        ),
        "torch",
    )
    with pytest.raises(ValueError, match="belongs to another avatar model"):
        other.resume(trainer.state())
