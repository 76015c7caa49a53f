"""The one switch: what it chooses, what it refuses, and that learning and drawing work with what it chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from insta_runtime.avatar import Avatar
from insta_runtime.backends import NAMES, choose_backend, make_renderer, make_trainer
from insta_runtime.errors import UserError
from insta_runtime.field.tcnn import TCNN_WEIGHTS, TcnnMissing
from insta_runtime.render.renderer import take_snapshot
from telepresence.config import settings
from tests.support.small_person import (
    CPU,
    SMALL,
    camera,
    neutral_shape,
    open_head,
    paint,
    performance,
    photograph,
    small_model,
)


def test_auto_takes_the_kernels_of_the_device() -> None:
    backend = choose_backend("auto", small_model())
    assert backend.kind == "host"
    assert backend.kernels is not None
    assert "processor" in backend.reason


def test_torch_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "nothing-of-that-name")
    assert choose_backend("torch", small_model()).kernels is None


def test_auto_falls_back_if_kernels_cannot_be_compiled_and_a_named_backend_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "nothing-of-that-name")
    monkeypatch.setenv("TELEPRESENCE_KERNEL_CACHE", str(tmp_path_factory.mktemp("cache")))
    backend = choose_backend("auto", small_model())
    assert backend.kind == "torch"
    assert "install g++" in backend.reason
    with pytest.raises(UserError, match="host backend cannot be used"):
        choose_backend("host", small_model())


@pytest.mark.parametrize(("name", "says"), [("cuda", "run.device=cuda"), ("tcnn", "run.device=cuda"), ("tpu", "auto")])
def test_unavailable_backends_are_refused_with_what_to_do(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        choose_backend(name, small_model())


def test_the_configuration_offers_every_backend() -> None:
    (setting,) = (s for s in settings() if s.key == "run.backend")
    assert set(setting.choices) == set(NAMES)
    assert setting.default == "auto"


@pytest.mark.parametrize("name", ["host", "torch"])
def test_a_backend_trains_renders_and_saves_for_the_other(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), camera(48), replace(SMALL), CPU)
    backend = choose_backend(name, avatar.model)
    trainer, renderer = make_trainer(avatar.model, backend), make_renderer(avatar.model, backend)
    observations = photograph(head, performance(head, 4), 48, paint(head))
    for observation in observations:
        trainer.add(observation)
    for _ in range(6):
        report = trainer.step()
        assert report is not None
        assert report.samples > 0
    renderer.load(trainer.snapshot())
    picture = renderer.render(observations[0].state, camera(48)).rgba
    avatar.update(trainer.snapshot(), trainer.steps)
    path = tmp_path_factory.mktemp("avatar")
    avatar.save(path)

    loaded = Avatar.load(path, head, CPU)
    other = make_renderer(loaded.model, choose_backend("torch" if name == "host" else "host", loaded.model))
    again = other.render(observations[0].state, camera(48)).rgba
    error = torch.as_tensor(picture - again).square().mean()
    assert error < 1e-4  # 40 dB: the two choose among a coarse cell's triangles differently
    assert picture[..., 3].max() > 0.05


def test_an_avatar_of_tiny_cuda_nn_is_not_called_damaged(tmp_path: Path) -> None:
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), camera(48), SMALL, CPU)
    snapshot = {name: t for name, t in take_snapshot(avatar.model).items() if name.startswith("occupancy.")}
    avatar.update(snapshot | {TCNN_WEIGHTS: torch.zeros(8)}, 10)
    avatar.save(tmp_path)
    with pytest.raises(TcnnMissing, match="tiny-cuda-nn") as refusal:
        Avatar.load(tmp_path, head, CPU)
    assert "damaged" not in str(refusal.value)
