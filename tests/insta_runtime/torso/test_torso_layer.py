"""Learned torso layer: position, appearance, no remains of the head in it, and storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime import avatar_file
from insta_runtime.avatar import FILE_NAME, Avatar
from insta_runtime.errors import UserError
from insta_runtime.torso.layer import ROOM_SIDE, TorsoLayer
from insta_runtime.torso.learning import TorsoLearner, learn_torso
from insta_runtime.torso.motion import INPUTS, MotionModel, Similarity, SlowPose, picture_pose
from insta_runtime.torso.registration import register
from insta_runtime.types import Float32, Float64, Observation
from tests.support.clothed_person import CAMERA, HAIR, SIDE, SKIN, head_at, observe, performance, shoulders_of
from tests.support.small_person import CPU, SMALL, neutral_shape, open_head

WALL = 0.9


@pytest.fixture(scope="module")
def recording() -> list[Observation]:
    return performance()


@pytest.fixture(scope="module")
def layer(recording: list[Observation]) -> TorsoLayer:
    learned = learn_torso(recording[:100], SIDE, CPU)
    assert learned is not None
    return learned


def inputs_of(recording: list[Observation]) -> list[Float64]:
    slow = SlowPose()
    return [slow.inputs(picture_pose(o.state, o.camera), o.t_capture_ns) for o in recording]


def truth(observation: Observation) -> tuple[Float32, Float32]:
    """The picture (H, W, 3) and alpha (H, W, 1), in [0, 1]."""
    return observation.rgb / np.float32(255.0), observation.alpha[..., None] / np.float32(255.0)


def psnr(error: Float32) -> float:
    return float(-10.0 * np.log10(np.square(error).mean()))


def test_head_over_torso_over_room_reproduces_a_held_out_frame(recording: list[Observation], layer: TorsoLayer) -> None:
    wall = torch.full((SIDE, SIDE, 3), WALL)
    assert layer.is_visible
    every = inputs_of(recording)
    for number in (100, 104, 118):
        rgb, alpha = truth(recording[number])
        behind = layer.draw(every[number], wall).numpy()
        whole = alpha * rgb + (1.0 - alpha) * behind
        still = layer.draw(layer.motion.middle, wall).numpy()
        assert psnr(whole - rgb) > 30.0
        assert psnr(whole - rgb) > psnr(alpha * rgb + (1.0 - alpha) * still - rgb) + 3.0


def test_the_neck_is_completed_under_the_head_without_remains_of_it(layer: TorsoLayer) -> None:
    ghost = layer.rgba[1] - layer.rgba[0]  # the head alone is green
    assert float(ghost.max()) < 0.2 * float(HAIR[1] - HAIR[0])
    middle = SIDE // 2
    rows = layer.rgba[:, :, middle - 4 : middle + 4].mean(2)
    chin = round(SIDE * (0.5 + 0.5 * 0.1))  # always behind the head
    neck = rows[:3, chin] / rows[3, chin]
    assert float(rows[3, chin]) > 0.9
    assert np.abs(neck.numpy() - SKIN).max() < 0.15
    assert float(rows[3, : SIDE // 4].max()) < 0.05  # but no pole up to the crown


def test_the_room_image_does_not_contain_the_subject(layer: TorsoLayer) -> None:
    room = layer.room_picture(64).numpy()
    assert room.shape == (64, 64, 3)
    assert np.abs(room - WALL).max() < 0.05


def test_a_hand_in_front_of_the_shoulder_is_not_learned(recording: list[Observation], layer: TorsoLayer) -> None:
    learner = TorsoLearner(SIDE, CPU)
    for number, (observation, inputs) in enumerate(zip(recording[:60], inputs_of(recording), strict=False)):
        if number % 6 == 5:
            observation.rgb[100:116, 10:26] = (255, 0, 255)
        learner.observe(observation, inputs)
    learned = learner.layer()
    assert learned is not None
    patch = learned.rgba[:, 100:116, 10:26] - layer.rgba[:, 100:116, 10:26]
    assert float(patch.abs().mean()) < 0.06  # a sixth of the pictures would leave 0.1 in a plain mean


def test_a_crop_without_shoulders_has_no_torso(recording: list[Observation]) -> None:
    learner = TorsoLearner(64, CPU)
    for observation, inputs in zip(recording[:10], inputs_of(recording), strict=False):
        alone = Observation(
            observation.frame_id, observation.rgb, observation.alpha, CAMERA, observation.state, observation.alpha
        )
        learner.observe(alone, inputs)
    layer = learner.layer()
    assert layer is not None
    assert not layer.is_visible


def test_without_body_mattes_no_torso_is_learned(recording: list[Observation]) -> None:
    first = recording[0]
    bare = Observation(0, first.rgb, first.alpha, CAMERA, first.state)
    assert learn_torso([bare], 64, CPU) is None
    with pytest.raises(ValueError, match="no body matte"):
        TorsoLearner(64, CPU).observe(bare, np.zeros(INPUTS))


shifts = st.builds(Similarity, st.floats(-0.06, 0.06), st.floats(-0.06, 0.06), st.floats(-0.05, 0.05))


@settings(max_examples=12, deadline=None)
@given(shifts)
def test_registration_has_subpixel_accuracy(shift: Similarity) -> None:
    def torso(motion: Similarity) -> tuple[torch.Tensor, torch.Tensor]:
        seen = observe(0, head_at(0), motion)
        rgb, alpha, body = (torch.from_numpy(p).float() / 255.0 for p in (seen.rgb, seen.alpha, seen.body))
        own = ((body - alpha) / (1.0 - alpha).clamp_min(1e-3)).clamp(0.0, 1.0)[None]
        return torch.cat([rgb.permute(2, 0, 1) * own, own]), (1.0 - alpha)[None]

    layer, known = torso(Similarity())
    picture, visible = torso(shift)
    found = register(layer, known, picture, visible, [Similarity()])
    corners = np.array([[-0.7, 0.7, 0.0], [0.9, 0.9, 0.5], [1.0, 1.0, 1.0]])  # where the shoulders are
    away = (found.matrix() @ corners - shift.matrix() @ corners) * SIDE / 2.0
    assert np.abs(away).max() < 0.6


def test_a_torso_is_found_again_after_a_change_of_seat() -> None:
    """The motion is too large for registration alone; the layer stays as sharp as before."""
    learner, slow = TorsoLearner(SIDE, CPU), SlowPose()
    aside = Similarity(0.45, 0.0)
    for number in range(40):
        head = head_at(number)
        here = observe(number, head, shoulders_of(head))
        if number >= 20:
            here = observe(number, (head[0] + 0.45, head[1]), aside.after(shoulders_of(head)))
        moved = learner.observe(here, slow.inputs(picture_pose(here.state, here.camera), here.t_capture_ns))
        assert abs(moved.x - (shoulders_of(head).x + (0.45 if number >= 20 else 0.0))) < 0.03


def test_shoulders_follow_the_slow_head_motion_as_in_training(recording: list[Observation], layer: TorsoLayer) -> None:
    first = shoulders_of(head_at(0))  # the reference is how the torso was in the first picture
    spot = np.array([0.0, 0.8, 1.0])
    for number, inputs in enumerate(inputs_of(recording)):
        if number >= 20:
            wanted = shoulders_of(head_at(number)).after(first.inverse()).matrix() @ spot
            assert np.abs(layer.motion.predict(inputs).matrix() @ spot - wanted).max() * SIDE / 2.0 < 1.5


def test_the_layer_is_saved_and_loaded_with_its_avatar(layer: TorsoLayer, tmp_path: Path) -> None:
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), CAMERA, SMALL, CPU)
    avatar.save(tmp_path / "bare")
    assert Avatar.load(tmp_path / "bare", head, CPU).part(TorsoLayer) is None
    avatar.attach(layer)
    avatar.save(tmp_path / "whole")
    again = Avatar.load(tmp_path / "whole", head, CPU).part(TorsoLayer)
    assert again is not None
    wall, inputs = torch.ones(64, 64, 3), layer.motion.middle
    torch.testing.assert_close(again.draw(inputs, wall), layer.draw(inputs, wall), atol=1e-4, rtol=0.0)
    assert torch.equal(again.room, layer.room)


def test_a_layer_extends_a_little_beyond_its_edge_then_fades() -> None:
    still = MotionModel(np.zeros((INPUTS + 1, 4)), np.zeros(INPUTS), np.zeros(INPUTS))
    layer = TorsoLayer(torch.ones(4, 64, 64), torch.zeros(3, ROOM_SIDE, ROOM_SIDE), still)
    inputs, nothing = np.zeros(INPUTS), torch.zeros(100, 100, 3)
    assert float(layer.draw(inputs, nothing).min()) > 0.999
    inputs[1] = -1.0  # half a picture higher than anybody saw it
    column = layer.draw(inputs, nothing)[:, 50, 0]
    assert float(column[:50].min()) > 0.999
    assert float(column[52]) > 0.95
    assert float(column[75:].max()) < 0.01
    assert bool((column[50:].diff() <= 1e-6).all())


damages: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "it lacks something": lambda t: t.pop("torso.reach"),
    "it has more": lambda t: t.update({"torso.extra": torch.zeros(1)}),
    "not square": lambda t: t.update({"torso.rgba": torch.zeros(4, 32, 48)}),
    "far too large": lambda t: t.update({"torso.rgba": torch.zeros(4, 1, 2000)}),
    "brighter than white": lambda t: t["torso.rgba"].add_(2.0),
    "another room": lambda t: t.update({"torso.room": torch.zeros(3, ROOM_SIDE, 8)}),
    "it leaps": lambda t: t["torso.weights"].fill_(1e6),
    "no range": lambda t: t["torso.reach"].fill_(-1.0),
}


@pytest.mark.parametrize("damage", damages.values(), ids=damages)
def test_a_damaged_layer_is_refused_in_one_line(
    damage: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path
) -> None:
    head = open_head()
    avatar = Avatar.create(head, neutral_shape(head), CAMERA, SMALL, CPU)
    model = MotionModel(np.zeros((INPUTS + 1, 4)), np.zeros(INPUTS), np.ones(INPUTS))
    avatar.attach(TorsoLayer(torch.zeros(4, 64, 64), torch.zeros(3, ROOM_SIDE, ROOM_SIDE), model))
    avatar.save(tmp_path)
    file = tmp_path / FILE_NAME
    content = avatar_file.read(file)
    damage(content.tensors)
    avatar_file.write(file, content.header, content.tensors)
    with pytest.raises(UserError) as caught:
        Avatar.load(tmp_path, head, CPU)
    assert "\n" not in str(caught.value)
    assert "torso" in str(caught.value)
