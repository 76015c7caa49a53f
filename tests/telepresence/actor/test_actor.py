"""Synthetic actor as ground truth: exact matte, exact pose, and the same person from every camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from insta_runtime.geometry import axis_angle
from insta_runtime.head.rig import rotation_matrix
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera
from telepresence.actor.actor import NECK_RAMP, Actor
from telepresence.actor.performance import Performance

SIZE = 160


@pytest.fixture(scope="module")
def actor():
    return Actor()


@pytest.fixture(scope="module")
def state(actor):
    return Performance(actor.head.expression_names)(4.6)


def facing(actor, **weights):
    """Head state facing the camera, with some face units set."""
    state = Performance(actor.head.expression_names)(0.0)
    expression = np.zeros_like(state.expression)
    for name, weight in weights.items():
        expression[actor.head.expression_names.index(name)] = weight
    return replace(
        state,
        expression=expression,
        eye_pose=np.zeros((2, 3), np.float32),
        rotation=np.array([np.pi, 0, 0], np.float32),
        translation=np.array([0.0, 0.02, 0.5], np.float32),
    )


def in_camera(actor, state):
    vertices = actor.rig.pose(actor.shape, state).vertices
    return vertices @ rotation_matrix(torch.from_numpy(state.rotation)).T + torch.from_numpy(state.translation)


def project(vertices, camera):
    return torch.stack(
        [
            camera.fx * vertices[:, 0] / vertices[:, 2] + camera.cx,
            camera.fy * vertices[:, 1] / vertices[:, 2] + camera.cy,
        ],
        1,
    )


def region(actor, state, camera, mask):
    """Window (rows, columns) around the vertices of one mask that face the camera."""
    at = project(in_camera(actor, state), camera)[torch.from_numpy(mask)].numpy()
    (left, top), (right, bottom) = at.min(0).astype(int), at.max(0).astype(int) + 1
    return slice(top, bottom), slice(left, right)


def iris_green(rgb):
    """Mask (H, W) of pixels that are greener than red: around the eyes, only the iris."""
    return np.clip(rgb[..., 1] - rgb[..., 0], 0.0, None)


def test_rendering_is_deterministic(actor, state):
    first, second = (actor.render(state, actor.camera(SIZE)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape == (SIZE, SIZE, 3)
    assert first[1].shape == (SIZE, SIZE)
    assert first[0].dtype == first[1].dtype == np.uint8


def test_the_matte_is_the_silhouette_of_head_and_hair(actor, state):
    camera = actor.camera(SIZE)
    alpha = actor.render(state, camera)[1]
    raster = rasterise(in_camera(actor, state), actor.rig.faces, camera)
    rest = torch.from_numpy(actor.head.template)
    height = torch.where(raster.mask, raster.interpolate(rest)[..., 1], -1.0)
    head = (height > NECK_RAMP[1] + 0.01).float()[None, None]
    inner = (-functional.max_pool2d(-head, 3, 1, 1))[0, 0].bool().numpy()
    assert (alpha[inner] == 255).mean() > 0.995
    # Hair reaches a few centimetres beyond the head at most, and nothing else has alpha.
    reach = int(0.045 * camera.fx / 0.5)
    outer = functional.max_pool2d(raster.mask.float()[None, None], 2 * reach + 1, 1, reach)[0, 0].bool().numpy()
    assert (alpha[~outer] == 0).all()
    above = int(np.nonzero(raster.mask.any(1).numpy())[0].min())
    assert 0 < above - np.nonzero((alpha > 128).any(1))[0].min() <= reach  # hair above the crown


def test_the_neck_fades_and_clothes_have_no_alpha(actor):
    camera = actor.camera(SIZE)
    rgb, alpha = actor.render(facing(actor), camera, background=False)
    column = alpha[:, SIZE // 2].astype(int)
    last = np.nonzero(column == 255)[0].max()
    assert ((column[last:] > 0) & (column[last:] < 255)).sum() > 3
    assert np.all(np.diff(column[last:]) <= 0)
    assert (alpha[-SIZE // 8 :] == 0).all()
    assert rgb[-SIZE // 8 :].max() > 20  # the clothes are drawn


@pytest.mark.parametrize("seconds", [1.2, 9.0, 16.8, 21.0])
def test_vertices_of_the_true_state_project_into_the_matte(actor, seconds):
    state, camera = Performance(actor.head.expression_names)(seconds), actor.camera(SIZE)
    alpha = actor.render(state, camera)[1]
    grown = functional.max_pool2d(torch.from_numpy(alpha).float()[None, None], 3, 1, 1)[0, 0]
    above = torch.from_numpy(actor.head.template[:, 1] > NECK_RAMP[1])
    at = project(in_camera(actor, state), camera)[above].long()
    assert (grown[at[:, 1], at[:, 0]] > 0).float().mean() > 0.995


def test_a_blink_closes_the_lids(actor):
    camera = actor.camera(SIZE)
    group = actor.head.vertex_group()
    opened, closed = facing(actor), facing(actor, eyeBlinkLeft=1.0, eyeBlinkRight=1.0)
    window = region(actor, opened, camera, (group == 1))
    before, after = (actor.render(s, camera)[0][window].astype(float) for s in (opened, closed))
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() > 8
    assert iris_green(after).sum() < 0.2 * iris_green(before).sum()


def test_the_iris_follows_the_gaze(actor):
    camera = actor.camera(256)
    straight = facing(actor, eyeWideLeft=0.5, eyeWideRight=0.5)
    rows, columns = region(actor, straight, camera, actor.head.vertex_group() == 1)

    def iris(yaw):
        turned = replace(straight, eye_pose=np.array([[0, yaw, 0], [0, yaw, 0]], np.float32))
        rgb = actor.render(turned, camera)[0][rows, columns].astype(float)
        green = iris_green(rgb)
        return (green.sum(0) @ np.arange(green.shape[1])) / green.sum()

    assert iris(0.3) > iris(0.0) + 0.8 > iris(-0.3) + 1.6  # the subject's left is on the right of the image


def test_a_cropped_camera_renders_the_crop_of_the_image(actor, state):
    camera = actor.camera(SIZE)
    whole, whole_alpha = actor.render(state, camera, background=False)
    part, part_alpha = actor.render(state, camera.cropped(40, 30, 70, 60), background=False)
    assert (np.abs(whole[30:90, 40:110].astype(int) - part) > 2).mean() < 0.005
    assert (np.abs(whole_alpha[30:90, 40:110].astype(int) - part_alpha) > 2).mean() < 0.005


def test_another_view_shows_the_same_person(actor):
    """Skin visible from two cameras has nearly the same colour: the light is fixed to the room."""
    camera = actor.camera(256)
    one = facing(actor)
    angle = np.radians(20.0)
    orbit = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    centre = one.translation.astype(np.float64)
    other = replace(one, rotation=axis_angle(orbit @ np.diag([1.0, -1.0, -1.0])).astype(np.float32))
    assert np.allclose(other.translation, centre)
    colours, seen = [], torch.from_numpy((actor.head.masks["face"] > 0.5) & (actor.head.vertex_group() == 0))
    for state, room in ((one, np.eye(3)), (other, orbit)):
        vertices = in_camera(actor, state)
        raster = rasterise(vertices, actor.rig.faces, camera)
        at = project(vertices, camera).long().clamp(0, 255)
        seen &= vertices[:, 2] < raster.depth[at[:, 1], at[:, 0]] + 0.002
        colours.append(torch.from_numpy(actor.render(state, camera, room=room)[0]).float()[at[:, 1], at[:, 0]])
    assert seen.sum() > 500
    difference = (colours[0] - colours[1])[seen].abs()
    assert difference.median() < 4
    pair = torch.stack([c[seen].mean(1) for c in colours])
    assert torch.corrcoef(pair)[0, 1] > 0.85


def test_wide_images_and_distant_heads_can_be_rendered(actor):
    far = replace(facing(actor), translation=np.array([0.3, 0.1, 2.0], np.float32))
    rgb, alpha = actor.render(far, Camera(300, 300, 100, 60, 200, 120))
    assert rgb.shape == (120, 200, 3)
    assert 0.002 < (alpha > 128).mean() < 0.1
    behind = replace(far, translation=np.array([0.0, 0.0, -1.0], np.float32))
    assert actor.render(behind, actor.camera(64))[1].max() == 0
