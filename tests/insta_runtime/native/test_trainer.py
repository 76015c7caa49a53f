"""Training by kernels: it learns as the torch trainer does, and no observation breaks it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.config import AvatarConfig
from insta_runtime.evaluation.protocol import Scores, score
from insta_runtime.head import HeadModel
from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.learn.trainer_interface import StepReport
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import Kernels
from insta_runtime.native.posing import PosedHeads
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.native.training_poses import CachedPoses
from insta_runtime.render.model import AvatarModel
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
)


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 8), 48, paint(open_head()))


def model_on(device: torch.device, config: AvatarConfig = SMALL, head: HeadModel | None = None) -> AvatarModel:
    head = head or open_head()
    return AvatarModel(head, neutral_shape(head), config, device, 0)


def native(device: torch.device, config: AvatarConfig = SMALL, head: HeadModel | None = None) -> NativeTrainer:
    return NativeTrainer(model_on(device, config, head), Kernels(device, avatar_constants(config)))


def learned(
    trainer: NativeTrainer | TorchTrainer, pictures: list[Observation], steps: int
) -> tuple[NativeTrainer | TorchTrainer, list[StepReport]]:
    for picture in pictures:
        trainer.add(picture)
    return trainer, [report for _ in range(steps) if (report := trainer.step()) is not None]


def judge(trainer: NativeTrainer | TorchTrainer, pictures: list[Observation]) -> Scores:
    renderer = Renderer(trainer.model)
    renderer.load(trainer.snapshot())
    return score(renderer.render, pictures, 48)


def test_without_observations_a_step_does_nothing(device: torch.device) -> None:
    trainer = native(device)
    assert trainer.step() is None
    assert trainer.steps == 0


def test_it_learns_as_well_as_the_torch_trainer(device: torch.device, pictures: list[Observation]) -> None:
    """40 steps; the last two of eight frames are held back."""
    torch.manual_seed(0)
    twin, _ = learned(TorchTrainer(model_on(CPU)), pictures[:6], 40)
    trainer, reports = learned(native(device), pictures[:6], 40)
    before, after, wanted = (judge(t, pictures[6:]) for t in (native(device), trainer, twin))
    assert after.head_psnr_db > before.head_psnr_db + 3.0
    assert after.head_psnr_db > wanted.head_psnr_db - 0.5, "after the same number of steps"
    assert after.psnr_db > wanted.psnr_db - 1.0
    assert [report.step for report in reports] == list(range(1, 41))
    assert all(report.rays == SMALL.learn.rays for report in reports)
    losses = [report.loss for report in reports]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert 0 < reports[-1].samples < reports[0].samples, "cells become empty"


def test_the_first_loss_is_that_of_the_torch_trainer(pictures: list[Observation]) -> None:
    """Means over many different draws of rays, with the same untrained field."""
    config = replace(SMALL, learn=replace(SMALL.learn, learning_rate=1e-6, rays=4096))
    mine = [r.loss for r in learned(native(CPU, config), pictures, 3)[1]]
    twins = [r.loss for r in learned(TorchTrainer(model_on(CPU, config)), pictures, 3)[1]]
    assert np.mean(mine) == pytest.approx(np.mean(twins), rel=0.1)


def test_a_snapshot_is_a_copy_of_the_average(device: torch.device, pictures: list[Observation]) -> None:
    trainer, _ = learned(native(device), pictures, 3)
    snapshot = trainer.snapshot()
    model = trainer.model
    grid = {f"occupancy.{name}" for name in model.occupancy.state()} | {"underlay"}
    assert set(snapshot) == set(model.field.state_dict()) | grid | {"pose_refinement"}
    kept = {name: tensor.clone() for name, tensor in snapshot.items()}
    for _ in range(2):
        trainer.step()
    later = trainer.snapshot()
    assert all(torch.equal(kept[name], snapshot[name]) for name in kept), "later steps do not change it"
    assert not torch.equal(later["grid.table"], snapshot["grid.table"])
    assert 2 <= snapshot["occupancy.view_count"].max() <= len(pictures), "silhouettes were used for carving"


def test_a_step_with_a_non_finite_loss_is_skipped(pictures: list[Observation]) -> None:
    trainer = native(CPU, replace(SMALL, learn=replace(SMALL.learn, mask_weight=float("inf"))))
    before = trainer.snapshot()
    _, reports = learned(trainer, pictures, 3)
    assert not any(np.isfinite(report.loss) for report in reports)
    assert [report.step for report in reports] == [1, 2, 3]
    after = trainer.snapshot()
    for name in before:
        if not name.startswith("occupancy"):
            assert torch.equal(before[name], after[name])
    assert not trainer._gradients.any(), "no gradients are left for the next step"


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


def not_a_number(o: Observation) -> Observation:
    return replace(o, state=replace(o.state, expression=o.state.expression * np.nan))


@pytest.mark.parametrize("odd", [no_matte, head_out_of_sight, all_matte, wide_picture, behind_the_camera, not_a_number])
def test_an_unusual_observation_does_not_break_training(pictures: list[Observation], odd) -> None:
    trainer, alone = learned(native(CPU), [odd(pictures[0])], 3)
    assert all(np.isfinite(report.loss) for report in alone)
    for picture in (pictures[1], odd(pictures[2])):
        trainer.add(picture)
    reports = [trainer.step() for _ in range(4)]
    assert all(report is not None and np.isfinite(report.loss) for report in reports)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.snapshot().values())


def test_a_smaller_ray_share_draws_fewer_rays_and_training_continues(
    device: torch.device, pictures: list[Observation]
) -> None:
    trainer, full = learned(native(device), pictures, 12)
    assert isinstance(trainer, NativeTrainer)
    trainer.set_ray_share(0.25)
    reports = [trainer.step() for _ in range(12)]
    assert all(report is not None and report.rays == SMALL.learn.rays // 4 for report in reports)
    last = reports[-1]
    assert last is not None
    assert last.samples < 0.4 * full[-1].samples
    assert last.loss == pytest.approx(full[-1].loss, rel=1.0), "a mean over the drawn rays"
    trainer.set_ray_share(0.0)
    report = trainer.step()
    assert report is not None
    assert report.rays == SMALL.learn.rays // 8
    trainer.set_ray_share(5.0)
    report = trainer.step()
    assert report is not None
    assert report.rays == SMALL.learn.rays


def test_the_same_seed_draws_the_same(device: torch.device, pictures: list[Observation]) -> None:
    """Weights differ by rounding of sums, and with them the band, where rays begin and end; the draws do not."""
    runs = [learned(native(device), pictures, 3)[0] for _ in range(2)]
    first, second = (run._batch for run in runs if isinstance(run, NativeTrainer))
    if device.type == "cuda":
        torch.cuda.synchronize()  # steps may still be running
    rays = []
    for batch in (first, second):
        tensors = batch.rays.tensors
        origin, direction = tensors["origin"], tensors["direction"]
        assert isinstance(origin, torch.Tensor)
        assert isinstance(direction, torch.Tensor)
        rays.append(
            (direction[:, 3] > origin[:, 3], origin[:, :3], direction[:, :3], tensors["offset"], tensors["frame"])
        )
    hit = rays[0][0] & rays[1][0]
    assert hit.float().mean() > 0.2
    for one, two in zip(rays[0][1:], rays[1][1:], strict=True):
        assert isinstance(one, torch.Tensor)
        assert isinstance(two, torch.Tensor)
        assert torch.equal(one[hit], two[hit])


def test_it_trains_on_a_single_frame_and_with_a_flame_head(device: torch.device) -> None:
    head = flame_head()
    trainer, reports = learned(native(device, head=head), photograph(head, performance(head, 1), 48, paint(head)), 4)
    assert all(np.isfinite(report.loss) and report.samples > 100 for report in reports)
    assert len(trainer.replay) == 1


def test_the_learning_rate_warms_up_then_falls_with_steps_or_with_given_progress() -> None:
    config = replace(SMALL, learn=replace(SMALL.learn, learning_rate=0.01, final_rate=0.1, decay_steps=100))
    trainer, twin = native(CPU, config), TorchTrainer(model_on(CPU, config))
    for steps, progress in ((0, None), (7, None), (50, None), (5000, None), (5000, 0.5)):
        trainer.steps, trainer.schedule.progress = twin.steps, twin.schedule.progress = steps, progress
        rates = twin._set_rates()
        table, networks, first, second, decay, _, poses = trainer._control_values()
        assert [table, networks] == pytest.approx([group["lr"] for group in twin._optimiser.param_groups])
        assert networks == pytest.approx(SMALL.learn.network_rate * table)
        assert (first, second) == pytest.approx((1.0 - BETA1, (1.0 - BETA2) ** 0.5)), (
            "bias corrections of the first update"
        )
        part = progress if progress is not None else min(1.0, steps / 100)
        full = trainer.model.config.pose_refinement.rate * config.learn.final_rate**part
        assert poses == pytest.approx(full * min(1.0, max(0.0, (steps - 100) / 100)))
        assert decay == pytest.approx(min(config.learn.ema, (1 + steps) / (10 + steps)))
        assert (poses, decay) == (rates.poses, rates.averaging_decay)


def test_a_cached_pose_follows_the_occupancy(pictures: list[Observation]) -> None:
    """On a CPU a band is recomputed when cells have become empty, and the whole pose when cells were filled."""
    trainer, _ = learned(native(CPU), pictures, 4)
    assert isinstance(trainer, NativeTrainer)
    assert isinstance(trainer._poses, CachedPoses)
    posed, occupancy = trainer._poses, trainer.model.occupancy
    fresh = PosedHeads(trainer.kernels, trainer.model, 1)
    seen = sorted(posed._cached)
    assert len(seen) > 2

    def marked(share: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Cached and freshly computed bands, limited to the needed cells, with ``share`` of all cells occupied."""
        occupancy.value.copy_(torch.rand(len(occupancy.value), generator=torch.Generator().manual_seed(1)) < share)
        occupancy.view_count.zero_()
        trainer._threshold_occupancy()
        posed.on_occupancy_update()
        posed.pose(torch.tensor(seen, dtype=torch.int32))
        pairs = []
        for slot in seen:
            fresh.states.copy_(trainer.replay.states[slot : slot + 1])
            fresh.pose(trainer._occupancy)
            bits, whole = posed.poses.tensors["bits"], fresh.poses.tensors["bits"]
            assert isinstance(bits, torch.Tensor)
            assert isinstance(whole, torch.Tensor)
            pairs.append((bits[slot].clone(), whole[0] & posed._needed[slot]))
        return pairs

    few, many = marked(0.05), marked(0.9)
    for kept, new in few + many:
        assert torch.equal(kept, new)
    assert (few[0][0] != many[0][0]).any()
