"""Learning: it learns, alike for the same seed, and nothing that is observed makes it break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.avatar import Avatar
from insta_runtime.evaluation.protocol import Scores, score
from insta_runtime.head import HeadModel
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.learn.trainer_interface import StepReport
from insta_runtime.render.renderer import Renderer
from insta_runtime.types import Observation
from tests.support.small_person import (
    CPU,
    SMALL,
    camera,
    flame_head,
    neutral_shape,
    open_head,
    paint,
    performance,
    photograph,
    pose,
    small_model,
)


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 8), 48, paint(open_head()))


def learned(pictures: list[Observation], steps: int, seed: int = 0) -> tuple[TorchTrainer, list[StepReport]]:
    trainer = TorchTrainer(small_model(config=replace(SMALL, learn=replace(SMALL.learn, seed=seed))))
    for picture in pictures:
        trainer.add(picture)
    reports = [report for _ in range(steps) if (report := trainer.step()) is not None]
    return trainer, reports


def test_without_pictures_there_is_nothing_to_do() -> None:
    trainer = TorchTrainer(small_model())
    assert trainer.step() is None
    assert trainer.steps == 0


def test_learning_lowers_the_loss_and_raises_the_head_psnr(pictures: list[Observation]) -> None:
    """40 steps; the last two of eight pictures are not learned from."""

    def judge(trainer: TorchTrainer) -> Scores:
        renderer = Renderer(trainer.model)
        renderer.load(trainer.snapshot())
        return score(renderer.render, pictures[6:], 48)

    before = judge(learned(pictures[:6], 0)[0])
    trainer, reports = learned(pictures[:6], 40)
    after = judge(trainer)
    losses = [report.loss for report in reports]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert after.head_psnr_db > before.head_psnr_db + 3.0
    assert after.psnr_db > before.psnr_db + 3.0
    assert [report.step for report in reports] == list(range(1, 41))
    assert all(report.rays == SMALL.learn.rays for report in reports)
    assert reports[-1].samples < reports[0].samples, "space empties"


def test_the_same_seed_learns_the_same(pictures: list[Observation]) -> None:
    (first, reports), (second, same), (_, others) = (learned(pictures, 5, seed) for seed in (3, 3, 4))
    assert reports == same
    assert reports != others
    one, two = first.snapshot(), second.snapshot()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_field_receives_the_expression(pictures: list[Observation]) -> None:
    (told, _), (untold, _) = learned(pictures, 1), learned(pictures, 1)
    for frame in untold.replay.frames:
        frame.code = torch.zeros_like(frame.code)
    first, second = told.step(), untold.step()
    assert first is not None
    assert second is not None
    assert first.samples == second.samples
    assert first.loss != second.loss


def test_a_snapshot_is_the_average_of_the_weights(pictures: list[Observation]) -> None:
    trainer, _ = learned(pictures, 3)
    snapshot, now = trainer.snapshot(), trainer.model.field.state_dict()
    assert not torch.equal(snapshot["grid.table"], now["grid.table"])
    kept = snapshot["grid.table"].clone()
    trainer.step()
    assert torch.equal(snapshot["grid.table"], kept), "a copy, which later steps leave alone"


def no_matte(o: Observation) -> Observation:
    return replace(o, alpha=np.zeros_like(o.alpha))


def head_out_of_sight(o: Observation) -> Observation:
    return replace(no_matte(o), camera=camera(48).cropped(5000.0, 0.0, 48, 48))


def all_matte(o: Observation) -> Observation:
    return replace(o, alpha=np.full_like(o.alpha, 255))


def wide_picture(o: Observation) -> Observation:
    return Observation(o.frame_id, o.rgb[8:40], o.alpha[8:40], o.camera.cropped(0, 8, 48, 32), o.state)


def behind_the_camera(o: Observation) -> Observation:
    return replace(o, state=replace(o.state, translation=np.array([0, 0, -0.6], np.float32)))


@pytest.mark.parametrize("odd", [no_matte, head_out_of_sight, all_matte, wide_picture, behind_the_camera])
def test_an_odd_picture_does_no_harm(pictures: list[Observation], odd) -> None:
    trainer, alone = learned([odd(pictures[0])], 3)
    assert all(np.isfinite(report.loss) for report in alone)
    for picture in (pictures[1], odd(pictures[2])):
        trainer.add(picture)
    reports = [trainer.step() for _ in range(4)]
    assert all(report is not None and np.isfinite(report.loss) for report in reports)
    snapshot = trainer.snapshot()
    assert all(bool(tensor.isfinite().all()) for tensor in snapshot.values())
    renderer = Renderer(trainer.model)
    renderer.load(snapshot)
    assert np.isfinite(renderer.render(pictures[0].state, camera(16)).rgba).all()


def test_a_step_whose_loss_is_not_finite_is_left_out(pictures: list[Observation]) -> None:
    trainer, _ = learned(pictures, 1)
    before = trainer.snapshot()
    code = trainer.replay.frames[0].code
    for frame in trainer.replay.frames:
        frame.code = code * torch.nan
    report = trainer.step()
    assert report is not None
    assert np.isnan(report.loss)
    assert torch.equal(before["grid.table"], trainer.snapshot()["grid.table"])
    for frame in trainer.replay.frames:
        frame.code = code
    report = trainer.step()
    assert report is not None
    assert np.isfinite(report.loss)


@pytest.mark.parametrize("head", [open_head(), flame_head()], ids=["open", "flame"])
def test_an_avatar_on_any_kind_of_head_learns_is_saved_and_shown(head: HeadModel, tmp_path) -> None:
    avatar = Avatar.create(head, neutral_shape(head), camera(48), SMALL, CPU)
    trainer = TorchTrainer(avatar.model)
    for picture in photograph(head, performance(head, 2), 48, paint(head)):
        trainer.add(picture)
    reports = [trainer.step() for _ in range(2)]
    assert all(report is not None and np.isfinite(report.loss) and report.samples > 100 for report in reports)
    avatar.update(trainer.snapshot(), trainer.steps, 1.5)
    avatar.save(tmp_path)
    shown = Renderer(Avatar.load(tmp_path, head, CPU).model).render(pose(head, jaw=0.5, blink=1.0), camera(24)).rgba
    assert shown[..., 3].max() > 0.05
    assert np.isfinite(shown).all()


def test_the_learning_rate_warms_up_then_falls_with_steps_or_with_given_progress() -> None:
    config = replace(SMALL, learn=replace(SMALL.learn, learning_rate=0.01, final_rate=0.1, decay_steps=100))
    trainer = TorchTrainer(small_model(config=config))

    def rate(steps: int, progress: float | None = None) -> float:
        trainer.steps, trainer.schedule.progress = steps, progress
        trainer._set_rates()
        return float(trainer._optimiser.param_groups[0]["lr"])

    assert rate(0) == pytest.approx(0.01 / 20)
    assert rate(50) == pytest.approx(0.01 * 0.1**0.5)
    assert rate(100) == rate(5000) == pytest.approx(0.001)
    assert rate(5000, 0.5) == pytest.approx(0.01 * 0.1**0.5)
