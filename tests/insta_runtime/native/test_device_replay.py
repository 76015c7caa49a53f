"""Replay buffer on the device: stores the same frames as the torch replay, in slots at fixed addresses."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from insta_runtime.learn.replay_policy import RECENT
from insta_runtime.learn.torch_replay import ReplayFrame
from insta_runtime.native.device_replay import DeviceReplay
from insta_runtime.native.kernels import Kernels
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import Observation
from tests.support.small_person import CPU, camera, open_head, paint, performance, photograph, pose, small_model

KERNELS = Kernels(CPU, {})


def picture(frame_id: int, width: int = 8, height: int = 8) -> Observation:
    rng = np.random.default_rng(frame_id)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (height, width), dtype=np.uint8)
    return Observation(frame_id, rgb, alpha, camera(width).cropped(0, 0, width, height), pose(open_head()))


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    return small_model()


def filled(model: AvatarModel, count: int, room: int, seed: int = 0) -> DeviceReplay:
    """A replay with room for ``room`` small images, to which ``count`` images were added one by one."""
    replay = DeviceReplay(model, KERNELS, 8, 1, seed)
    replay.policy.budget = room * (8 * 8 * 4 + 8 * 8 * 4)
    for i in range(count):
        replay.add(picture(i))
        replay.take_in()
    return replay


def kept(replay: DeviceReplay) -> list[int]:
    return replay.frame_ids


def test_the_budget_holds_and_the_newest_are_never_dropped(model: AvatarModel) -> None:
    replay = filled(model, 120, 40)
    assert len(replay) == 40
    assert sorted(replay.order) == list(range(40)), "every slot is used, none twice"
    assert kept(replay)[-RECENT:] == list(range(120 - RECENT, 120))
    assert kept(replay) == sorted(kept(replay))
    assert kept(filled(model, 40, 1)) == list(range(40 - RECENT, 40))


def test_a_slot_holds_the_picture_that_it_should_and_none_moves(model: AvatarModel) -> None:
    replay = filled(model, 3, 40)
    first = replay._images[:3].tolist()
    for i in range(3, 100):
        replay.add(picture(i))
        replay.take_in()
    assert replay._images[:3].tolist() == first
    for slot, frame_id in zip(replay.order, replay.frame_ids, strict=True):
        rgba, _ = picture(frame_id).premultiplied(8)
        assert torch.equal(replay.image(slot), (rgba * 255.0 + 0.5).to(torch.uint8))
        assert replay._images[slot] == replay.image(slot).data_ptr()
    assert replay._deck[: len(replay)].tolist() == replay.order
    assert replay._newest.tolist() == replay.order[-RECENT:]
    assert replay.pool_sizes == (RECENT, len(replay))


def test_pictures_of_another_shape_or_size_fit_into_the_square_of_the_first(model: AvatarModel) -> None:
    replay = DeviceReplay(model, KERNELS, 512, 1, 0)
    for i, (width, height) in enumerate([(12, 8), (8, 12), (24, 24), (6, 5)]):
        replay.add(picture(i, width, height))
    replay.take_in()
    assert replay.side == 12
    assert [tuple(replay.image(slot).shape) for slot in replay.order] == [
        (8, 12, 4),
        (12, 8, 4),
        (12, 12, 4),
        (5, 6, 4),
    ]
    assert replay._device_sizes[:4].tolist() == [[12, 8], [8, 12], [12, 12], [6, 5]]
    expressions = len(model.head.expression_names)
    assert replay.states[2, expressions + 26].item() == pytest.approx(1.2 * 12), "the camera is scaled with the picture"


@pytest.mark.parametrize(("side", "tile"), [(44, 1), (101, 2)])
def test_the_tiles_to_draw_from_hold_the_head_and_little_else(model: AvatarModel, side: int, tile: int) -> None:
    replay = DeviceReplay(model, KERNELS, 128, 64, 0)
    observation = photograph(open_head(), performance(open_head(), 2)[1:], side, paint(open_head()))[0]
    replay.add(observation)
    replay.take_in()
    twin = ReplayFrame(model, observation, 128)
    twin.posed()
    depth = twin.depth.view(side, side)
    replay.list_tiles(0, depth)
    across, tiles = -(-side // tile), replay._chunks[0][1][0]
    head, around = replay._tile_counts[0].tolist()
    assert sorted(tiles.tolist()) == list(range(across**2))
    assert head < 0.5 * across**2
    assert 0.2 * head < around < 2.0 * head
    for part, pixels in ((tiles[:head], twin.pixels), (tiles[head : head + around], twin.margin)):
        assert part.tolist() == sorted(part.tolist())
        drawn, wanted = torch.zeros(across**2, dtype=torch.bool), torch.zeros(side * side, dtype=torch.bool)
        drawn[part.long()] = True
        wanted[pixels] = True
        covered = drawn.view(across, across).repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:side, :side]
        missed = wanted & ~covered.reshape(-1)
        assert missed.sum() <= 0.1 * wanted.sum(), "tiles of both are the head's"
        assert covered.sum() <= 1.3 * wanted.sum()
        if tile == 1:
            assert torch.equal(covered.reshape(-1), wanted)


def test_offers_from_many_threads_arrive_and_an_idle_learner_holds_only_the_newest(model: AvatarModel) -> None:
    replay = DeviceReplay(model, KERNELS, 8, 64, 0)
    threads = [threading.Thread(target=replay.add, args=(picture(i),)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replay.take_in()
    assert sorted(kept(replay)) == list(range(10))
    for i in range(100, 200):
        replay.add(picture(i))
    replay.take_in()
    assert kept(replay)[10:] == list(range(200 - RECENT, 200))


def test_a_smaller_budget_evicts_frames_and_the_rest_keep_their_images_in_the_first_slots(model: AvatarModel) -> None:
    replay = filled(model, 60, 60)
    slot_bytes = replay._frame_bytes()
    moves = replay.set_budget(30 * slot_bytes)
    assert len(replay) == 30
    assert sorted(replay.order) == list(range(30))
    assert set(moves.values()) <= set(range(30)), "frames move into free slots"
    assert min(moves) >= 30
    assert kept(replay) == sorted(kept(replay))
    assert kept(replay)[-RECENT:] == list(range(60 - RECENT, 60))
    for slot, frame_id in zip(replay.order, replay.frame_ids, strict=True):
        rgba, _ = picture(frame_id).premultiplied(8)
        assert torch.equal(replay.image(slot), (rgba * 255.0 + 0.5).to(torch.uint8))
    assert replay._deck[:30].tolist() == replay.order
    replay.set_budget(0)
    assert kept(replay) == list(range(60 - RECENT, 60))
    replay.set_budget(1 << 40)
    for i in range(60, 90):
        replay.add(picture(i))
        replay.take_in()
    assert len(replay) == RECENT + 30
    assert sorted(replay.order) == list(range(RECENT + 30))


def test_a_budget_that_is_not_reached_changes_nothing(model: AvatarModel) -> None:
    limited, free = filled(model, 30, 60), filled(model, 30, 60)
    assert limited.set_budget(60 * limited._frame_bytes()) == {}
    assert limited.order == free.order
    assert limited.policy.pool == free.policy.pool
