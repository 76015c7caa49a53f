"""The replay buffer: what it keeps, what it gives out, how it scales pictures."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from insta_runtime.learn.replay_policy import RECENT
from insta_runtime.learn.torch_replay import BYTES_A_HEAD, Replay
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import Camera, Observation
from tests.support.small_person import camera, open_head, paint, performance, photograph, pose, small_model

STATE = pose(open_head())


def picture(frame_id: int, size: int = 8, alpha: int = 255) -> Observation:
    rgb = np.random.default_rng(frame_id).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Observation(frame_id, rgb, np.full((size, size), alpha, np.uint8), camera(size), STATE)


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    return small_model()


def filled(model: AvatarModel, count: int, room: int, seed: int = 0) -> Replay:
    """A replay that has room for ``room`` small pictures, offered ``count`` one by one."""
    replay = Replay(model, 8, 1, seed)
    replay.policy.budget = room * (BYTES_A_HEAD + 8 * 8 * 4 * 2)
    for i in range(count):
        replay.add(picture(i))
        replay.take_in()
    return replay


def test_the_budget_holds_and_the_newest_are_never_dropped(model: AvatarModel) -> None:
    replay = filled(model, 120, 40)
    kept = [frame.frame_id for frame in replay.frames]
    assert len(kept) == 40
    assert kept[-RECENT:] == list(range(120 - RECENT, 120))
    assert kept == sorted(kept)


def test_a_budget_below_the_newest_still_keeps_them(model: AvatarModel) -> None:
    replay = filled(model, 40, 1)
    assert [frame.frame_id for frame in replay.frames] == list(range(40 - RECENT, 40))


def test_the_budget_is_in_mebibytes(model: AvatarModel) -> None:
    replay = Replay(model, 8, 64, 0)
    for i in range(60):
        replay.add(picture(i))
        replay.take_in()
    assert len(replay) == 31  # 2 MiB for each posed head, and a little for its picture


def test_draws_include_every_frame_in_turn_and_always_a_new_one(model: AvatarModel) -> None:
    replay = filled(model, 60, 100)
    draws = [[frame.frame_id for frame in replay.draw(4)] for _ in range(30)]
    assert all(draw[0] >= 60 - RECENT for draw in draws)
    assert all(len(draw) == 4 for draw in draws)
    others = [i for draw in draws for i in draw[1:]]
    assert sorted(others[:60]) == list(range(60)), "shuffled rounds"
    assert others[:60] != list(range(60))


def test_draws_are_determined_by_the_seed(model: AvatarModel) -> None:
    first, same, other = (
        [m.frame_id for _ in range(5) for m in filled(model, 30, 100, seed).draw(3)] for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_a_draw_from_fewer_frames_than_requested_has_all_of_them(model: AvatarModel) -> None:
    assert len(filled(model, 1, 100).draw(4)) == 1


def test_offers_from_many_threads_arrive_and_without_training_only_the_newest_are_queued(model: AvatarModel) -> None:
    replay = Replay(model, 8, 64, 0)
    threads = [threading.Thread(target=replay.add, args=(picture(i),)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replay.take_in()
    assert sorted(frame.frame_id for frame in replay.frames) == list(range(10))
    for i in range(100, 200):
        replay.add(picture(i))
    replay.take_in()
    assert [frame.frame_id for frame in replay.frames][10:] == list(range(200 - RECENT, 200))


def test_scaling_averages_premultiplied_areas() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    alpha = np.zeros((4, 4), np.uint8)
    rgb[:2, :2], rgb[0, 1] = (200, 100, 50), (255, 255, 255)
    alpha[:2, :2], alpha[0, 1] = 255, 0  # what the matte hides must not bleed in
    small, view = Observation(0, rgb, alpha, Camera(8.0, 8.0, 2.0, 2.0, 4, 4), STATE).premultiplied(2)
    assert view == Camera(4.0, 4.0, 1.0, 1.0, 2, 2)
    expected = 0.75 * torch.tensor([200 / 255, 100 / 255, 50 / 255, 1.0])
    torch.testing.assert_close(small[0, 0], expected)
    assert not small[1].any()
    assert not small[0, 1].any()


def test_images_are_never_enlarged_and_keep_their_aspect_ratio() -> None:
    wide = Observation(
        0, np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.uint8), Camera(50, 50, 20, 10, 40, 20), STATE
    )
    assert wide.premultiplied(512)[0].shape == (20, 40, 4)
    assert wide.premultiplied(16)[0].shape == (8, 16, 4)


def test_a_replay_frame_has_skin_mouth_and_head_pixels() -> None:
    head, model = open_head(), small_model()
    replay = Replay(model, 48, 64, 0)
    replay.add(photograph(head, performance(head, 2)[1:], 48, paint(head))[0])
    frame = replay.draw(1)[0]
    frame.posed()
    alpha = frame.rgba[:, 3] > 0
    assert frame.skin.sum() > 20
    assert alpha[frame.skin].all()
    assert frame.depth[frame.skin].isfinite().all()
    assert 0 < frame.mouth.sum() < frame.skin.sum()
    drawn = torch.zeros(48 * 48, dtype=torch.bool)
    drawn[frame.pixels] = True
    assert drawn[alpha].all()
    assert drawn.float().mean() < 0.5
    assert model.occupancy.view_count.any(), "its silhouette was added to the occupancy grid"
    seen = model.occupancy.view_count.clone()
    frame.posed()
    assert torch.equal(seen, model.occupancy.view_count), "once"
