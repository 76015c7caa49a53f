"""Frame filter: good frames pass, bad ones are refused for the right reason, and no subject is refused for ever."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from insta_runtime.config import AvatarConfig, FieldConfig, OccupancyConfig
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import Observation
from telepresence.actor.actor import Actor
from telepresence.actor.performance import Performance
from telepresence.learning.frame_filter import MAX_WAIT_S, MIN_ACCEPTED, FacePoints, FaceProjection, FrameFilter
from tests.support.small_person import flame_head, neutral_shape, pose

SMALL = AvatarConfig(radiance=FieldConfig(levels=2, log2_entries=8), occupancy=OccupancyConfig(resolution=16))
SIZE, APART = 192, 0.5
SEEN, ROUNDS = 14, 5  # pictures, and how often
NOW = APART * ROUNDS * (SEEN - 1)


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor()


@pytest.fixture(scope="module")
def pictures(actor: Actor) -> list[Observation]:
    """Frames of the actor, `APART` seconds apart."""
    perform, camera = Performance(actor.head.expression_names), Actor.camera(SIZE)
    found = []
    for i in range(SEEN):
        state = perform(APART * i).at(round(1e9 * APART * i))
        rgb, alpha, body = actor.layers(state, camera, samples=1)
        found.append(Observation(i, rgb, alpha, camera, state, body))
    return found


@pytest.fixture(scope="module")
def new(actor: Actor) -> FrameFilter:
    model = AvatarModel(actor.head, actor.shape, SMALL, torch.device("cpu"))
    return FrameFilter(FacePoints.of(model), model.code.raw)


@pytest.fixture(scope="module")
def experienced(new: FrameFilter, pictures: list[Observation]) -> FrameFilter:
    """A frame filter that checked all frames except the last, several times."""
    frame_filter = copy.deepcopy(new)
    for i, picture in enumerate(ROUNDS * pictures[:-1]):
        frame_filter.check(picture, APART * i)
    return frame_filter


@pytest.fixture
def frame_filter(experienced: FrameFilter) -> FrameFilter:
    return copy.deepcopy(experienced)


def test_good_frames_are_accepted(frame_filter: FrameFilter, pictures: list[Observation]) -> None:
    assert frame_filter.check(pictures[-1], NOW) is None
    assert frame_filter.accepted >= ROUNDS * (SEEN - 1) - 1, dict(frame_filter.refused)


def blurred(o: Observation) -> Observation:
    return replace(o, rgb=np.array(Image.fromarray(o.rgb).filter(ImageFilter.GaussianBlur(3.0))))


def smeared(o: Observation) -> Observation:
    """Motion blur of a tenth of the face's width."""
    return replace(o, rgb=np.mean([np.roll(o.rgb, x, axis=1) for x in range(9)], axis=0).astype(np.uint8))


def covered(o: Observation, *, matte: bool, colour: tuple[int, int, int] = (60, 90, 160)) -> Observation:
    """A disc before mouth and chin, either missing in the matte or part of it."""
    y, x = np.mgrid[:SIZE, :SIZE]
    solid = np.argwhere(o.alpha > 128)
    middle = solid.mean(axis=0) + np.array([0.12 * SIZE, 0.0])
    cup = np.hypot(y - middle[0], x - middle[1]) < 0.11 * SIZE
    rgb, alpha = o.rgb.copy(), o.alpha.copy()
    rgb[cup] = colour
    if matte:
        alpha[cup] = 0
    return replace(o, rgb=rgb, alpha=alpha)


def see_through(o: Observation) -> Observation:
    """A matte that is half transparent in the upper half of the head."""
    top = np.argwhere(o.alpha > 128)[:, 0].min()
    body = np.asarray(o.body).astype(np.float32)
    body[top : top + SIZE // 4] *= 0.6
    return replace(o, alpha=np.minimum(o.alpha, body).astype(np.uint8), body=body.astype(np.uint8))


def half_outside(o: Observation) -> Observation:
    return replace(o, camera=o.camera.cropped(0.5 * SIZE, 0.0, SIZE, SIZE))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (blurred, "blurred"),
        (smeared, "blurred"),
        (lambda o: covered(o, matte=True), "occluded"),
        (lambda o: covered(o, matte=False), "occluded"),
        (see_through, "vague matte"),
        (half_outside, "cut off"),
        (lambda o: replace(o, state=replace(o.state, translation=o.state.translation * np.nan)), "mistracked"),
        (lambda o: replace(o, state=replace(o.state, translation=-o.state.translation)), "mistracked"),
    ],
    ids=["blurred", "smeared", "hole in the matte", "cup", "see-through", "cut off", "not a number", "behind"],
)
def test_bad_frames_are_refused_for_the_right_reason(
    frame_filter: FrameFilter, pictures: list[Observation], damage, reason
) -> None:
    taken, before = frame_filter.accepted, frame_filter.refused[reason]
    assert frame_filter.check(damage(pictures[-1]), NOW) == reason
    assert frame_filter.refused[reason] == before + 1
    assert frame_filter.accepted == taken
    assert frame_filter.check(pictures[-1], NOW + 0.2) is None, "the next good frame is accepted"


def test_another_exposure_is_no_occlusion(frame_filter: FrameFilter, pictures: list[Observation]) -> None:
    darker = replace(pictures[-1], rgb=(pictures[-1].rgb * 0.6).astype(np.uint8))
    assert frame_filter.check(darker, NOW) is None


def test_a_head_that_moves_fast_or_jumps_is_refused(frame_filter: FrameFilter, pictures: list[Observation]) -> None:
    last = pictures[-1]
    before = replace(last.state, translation=last.state.translation - np.float32([0.03, 0, 0]))
    frame_filter.update_motion(replace(last, state=before.at(last.t_capture_ns - 33_000_000)))
    assert frame_filter.check(last, NOW) == "moving", "3 cm in 33 ms"
    turned = replace(before, rotation=np.array([math.pi * math.cos(0.6), 0.0, math.pi * math.sin(0.6)], np.float32))
    frame_filter.update_motion(replace(last, state=turned.at(last.t_capture_ns - 33_000_000)))
    assert frame_filter.check(last, NOW) == "mistracked"
    frame_filter.update_motion(replace(last, state=before.at(last.t_capture_ns - 500_000_000)))
    assert frame_filter.check(last, NOW) is None, "no speed is computed across half a second"


def test_frames_of_a_still_subject_are_accepted_at_a_low_rate(new: FrameFilter, pictures: list[Observation]) -> None:
    frame_filter = copy.deepcopy(new)
    moments = [0.2 * i for i in range(MIN_ACCEPTED + 50)]
    taken = [now for now in moments if frame_filter.check(pictures[0], now) is None]
    assert taken[:MIN_ACCEPTED] == moments[:MIN_ACCEPTED], "the first frames are all accepted"
    later = np.diff(taken[MIN_ACCEPTED:])
    assert (later >= MAX_WAIT_S["duplicate"] - 1e-6).all()
    assert len(later) >= 8
    assert frame_filter.refused["duplicate"] == len(moments) - len(taken)
    assert frame_filter.check(pictures[8], moments[-1] + 0.2) is None, "a new state is accepted at once"


def test_where_all_frames_are_blurred_they_are_accepted(frame_filter: FrameFilter, pictures: list[Observation]) -> None:
    """A lasting drop of the light: at first few frames are accepted, then all."""
    verdicts = [frame_filter.check(blurred(pictures[i % SEEN]), NOW + APART * i) for i in range(100)]
    first = verdicts.index(None)
    assert 0 < first <= math.ceil(MAX_WAIT_S["blurred"] / APART) + 1
    assert verdicts[-20:].count(None) >= 18
    frame_filter.reset_baseline()
    assert frame_filter.check(pictures[3], NOW + 100.0) is None


def test_only_a_lost_face_is_refused_for_ever(frame_filter: FrameFilter, pictures: list[Observation]) -> None:
    for damage in (blurred, see_through, lambda o: covered(o, matte=True)):
        fresh = copy.deepcopy(frame_filter)
        moments = NOW + APART * np.arange(60)
        assert any(fresh.check(damage(pictures[i % SEEN]), now) is None for i, now in enumerate(moments[:24]))
    lost = [frame_filter.check(half_outside(pictures[i % SEEN]), NOW + APART * i) for i in range(60)]
    assert set(lost) == {"cut off"}


def test_the_first_frame_after_a_gap_is_checked_as_usual(
    frame_filter: FrameFilter, pictures: list[Observation]
) -> None:
    assert frame_filter.check(blurred(pictures[3]), NOW + 60.0) == "blurred"
    assert frame_filter.check(pictures[3], NOW + 60.2) is None


def test_after_a_change_of_light_nothing_is_a_duplicate_or_strange(
    frame_filter: FrameFilter, pictures: list[Observation]
) -> None:
    last = pictures[SEEN - 2]
    assert frame_filter.check(last, NOW) == "duplicate"
    frame_filter.reset_baseline()
    side = np.linspace(0.2, 1.0, SIZE)[None, :, None]
    assert frame_filter.check(replace(last, rgb=(last.rgb * side).astype(np.uint8)), NOW + 0.2) is None


def test_face_points_lie_on_any_head_model(new: FrameFilter) -> None:
    """Face points of a head model in FLAME's layout move with its expressions, too."""
    model = AvatarModel(flame_head(), neutral_shape(flame_head()), SMALL, torch.device("cpu"))
    face = FacePoints.of(model)
    view = FaceProjection.of(face, pose(flame_head()), Actor.camera(SIZE))
    smiling = FaceProjection.of(face, pose(flame_head(), smile=1.0), Actor.camera(SIZE))
    assert view is not None
    assert smiling is not None
    assert view.inside.all()
    assert view.facing.mean() > 0.5
    assert 0.0 < np.abs(smiling.v - view.v).max() < 0.2 * view.width
