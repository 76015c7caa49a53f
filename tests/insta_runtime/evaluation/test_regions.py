"""Mouth and eyes in a picture, from the tracked head mesh."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.evaluation.regions import FaceRegions, masks
from insta_runtime.head import HeadModel, HeadRig
from tests.support.small_person import camera, flame_head, neutral_shape, open_head, pose

HEADS = {"open head": open_head, "FLAME": flame_head}
VIEW = camera(512)


def regions_of(head: HeadModel) -> FaceRegions:
    return FaceRegions(HeadRig(head), neutral_shape(head))


@pytest.mark.parametrize("name", HEADS)
def test_mouth_and_eyes_have_plausible_positions(name: str) -> None:
    head = HEADS[name]()
    boxes = regions_of(head).boxes(pose(head), VIEW)
    ((left, top, right, bottom),) = boxes["mouth"]
    eyes = sorted(boxes["eyes"])  # the subject's right eye is on the left of the picture
    assert len(eyes) == 2
    assert eyes[0][2] < eyes[1][0], "the bridge of the nose is between the eyes"
    assert max(eye[3] for eye in eyes) < top, "the mouth is below the eyes"
    assert eyes[0][0] < left < right < eyes[1][2]
    assert 0.5 * (left + right) == pytest.approx(256, abs=3)
    assert 55 < right - left < 85
    assert 30 < bottom - top < 60


def test_without_landmarks_the_regions_are_nearly_the_same() -> None:
    """The head in FLAME's layout is the open head's mesh; it has no landmarks."""
    for name in ("mouth", "eyes"):
        with_them, without = (
            masks(regions_of(head()).boxes(pose(head()), VIEW), VIEW)[name] for head in (open_head, flame_head)
        )
        common = (with_them & without).sum() / (with_them | without).sum()
        assert common > 0.6


@pytest.mark.parametrize("name", HEADS)
def test_the_mouth_opens_downwards(name: str) -> None:
    head = HEADS[name]()
    closed, wide = (regions_of(head).boxes(pose(head, jaw=jaw), VIEW)["mouth"][0] for jaw in (0.0, 1.0))
    assert wide[3] > closed[3] + 10


def test_boxes_are_clipped_to_the_image() -> None:
    regions, state = regions_of(open_head()), pose(open_head())
    aside = replace(state, translation=np.array([-0.2, 0.02, 0.6], np.float32))
    (mouth,) = regions.boxes(aside, VIEW)["mouth"]
    assert mouth[0] == 0.0
    away = replace(state, translation=np.array([3.0, 0.0, 0.6], np.float32))
    behind = replace(state, translation=np.array([0.0, 0.0, -0.6], np.float32))
    for lost in (away, behind):
        assert regions.boxes(lost, VIEW) == {"mouth": [], "eyes": []}


def test_a_mask_has_the_pixels_whose_centres_lie_in_its_boxes() -> None:
    found = masks({"eyes": [(1.0, 2.0, 3.0, 3.4), (4.6, 0.0, 6.0, 1.0)]}, camera(6))["eyes"]
    expected = torch.zeros((6, 6), dtype=torch.bool)
    expected[2, 1:3] = expected[0, 5] = True
    assert found.equal(expected)


def test_motion_is_measured_in_pixels() -> None:
    regions, state = regions_of(open_head()), pose(open_head())
    assert regions.motion(state, state, VIEW) == 0.0
    moved = replace(state, translation=state.translation + np.array([0.001, 0.0, 0.0], np.float32))
    assert regions.motion(state, moved, VIEW) == pytest.approx(0.001 * VIEW.fx / 0.52, rel=0.1)
    assert regions.motion(state, pose(open_head(), jaw=0.3), VIEW) > 0.5
