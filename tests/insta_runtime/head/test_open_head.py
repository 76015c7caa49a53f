"""The open head in the package: sizes, symmetry, effect of its expression units."""

from __future__ import annotations

import numpy as np
import pytest

from insta_runtime.head import HeadModel, load_head
from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, REGIONS, SKIN, TEETH_LOWER, TEETH_UPPER, TONGUE
from insta_runtime.head.open_head import OPEN_HEAD

FLIP = np.array([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def mirror(head: HeadModel) -> np.ndarray:
    """(V,) the vertex of the mirrored part at the mirrored place."""
    group = head.vertex_group()
    result = np.empty(len(group), dtype=np.int64)
    for part in range(6):
        here = np.flatnonzero(group == part)
        there = np.flatnonzero(group == {EYE_LEFT: EYE_RIGHT, EYE_RIGHT: EYE_LEFT}.get(part, part))
        for chunk in np.array_split(here, 1 + len(here) // 500):
            away = ((head.template[chunk, None] * FLIP - head.template[there]) ** 2).sum(2)
            assert away.min(1).max() < 1e-12
            result[chunk] = there[away.argmin(1)]
    return result


def unit(head: HeadModel, name: str) -> np.ndarray:
    return head.expression_dirs[head.expression_names.index(name)]


def test_shapes_and_types(head):
    vertices, units, shapes = len(head.template), 52, 60
    assert head.basis == "arkit52"
    assert head.template.shape == (vertices, 3)
    assert 4700 < vertices < 4900
    assert head.shape_dirs.shape == (shapes, vertices, 3)
    assert head.expression_dirs.shape == (units, vertices, 3)
    assert head.skin_weights.shape == (vertices, 5)
    assert head.joints.shape == (5, 3)
    assert head.joint_shape_dirs.shape == (shapes, 5, 3)
    assert head.eyelid_dirs.shape == (2, vertices, 3)
    assert head.pose_dirs is None
    assert head.faces.dtype == np.int64
    assert len(head.face_group) == len(head.faces)
    assert set(np.unique(head.face_group)) == {SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE}
    for array in (head.template, head.shape_dirs, head.expression_dirs, head.skin_weights, head.joints):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_names_are_those_of_arkit(head):
    assert len(set(head.expression_names)) == 52
    known = {"jawOpen", "eyeBlinkLeft", "mouthSmileRight", "browInnerUp", "cheekPuff", "tongueOut", "eyeLookUpLeft"}
    assert known <= set(head.expression_names)


def test_every_vertex_is_used_and_skinned(head):
    assert np.array_equal(np.unique(head.faces), np.arange(len(head.template)))
    assert np.abs(head.skin_weights.sum(1) - 1.0).max() < 1e-5
    assert head.skin_weights.min() >= 0.0


def test_faces_point_outwards(head):
    for group in (EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TONGUE, SKIN):
        a, b, c = (head.template[head.faces[head.face_group == group][:, k]].astype(float) for k in range(3))
        assert (a * np.cross(b, c)).sum() > 0.0, "signed volume"


def test_size_and_axes(head):
    eyes = head.joints[3:]
    assert 0.055 < eyes[0, 0] - eyes[1, 0] < 0.068
    assert eyes[0, 0] > 0.0, "x to the subject's left"
    assert (eyes[:, 2] > 0.05).all(), "z out of the face"
    chin = head.embedding.points(head.template, head.faces)[152, 1]
    assert 0.20 < head.template[:, 1].max() - chin < 0.25
    assert (head.template.min(0) < -0.08).all(), "the origin lies inside"
    assert (head.template.max(0) > 0.08).all()


def test_mirror_symmetry(head, mirror):
    assert np.array_equal(mirror[mirror], np.arange(len(mirror)))
    for component in head.shape_dirs:
        flipped = component[mirror] * FLIP
        assert min(np.abs(flipped - component).max(), np.abs(flipped + component).max()) < 1e-4
    for name in head.expression_names:
        if name.endswith("Left") and name not in ("jawLeft", "mouthLeft"):
            twin = unit(head, name.removesuffix("Left") + "Right")
            bound = 3e-3 if name == "mouthSmileLeft" else 1e-3
            assert np.abs(unit(head, name)[mirror] * FLIP - twin).max() < bound, name


def test_left_units_move_the_left(head):
    left = head.template[:, 0] > 0.0
    for name in head.expression_names:
        amount = np.linalg.norm(unit(head, name), axis=1)
        if name.endswith("Left") and name not in ("jawLeft", "mouthLeft"):
            share = 0.55 if name.startswith("mouth") else 0.75  # lips pull at their middle
            assert amount[left].sum() > share * amount.sum(), name
        assert amount.max() > 5e-4, name


def test_jaw_opens_with_teeth_and_tongue(head):
    group, jaw = head.vertex_group(), unit(head, "jawOpen")
    chin = (group == SKIN) & (np.abs(head.template[:, 0]) < 0.01) & (head.template[:, 2] > 0.08)
    chin &= (head.template[:, 1] < head.joints[2, 1] - 0.06) & (head.template[:, 1] > head.joints[2, 1] - 0.085)
    assert jaw[chin, 1].mean() < -0.01
    assert jaw[group == TEETH_LOWER, 1].mean() < -0.005
    assert jaw[group == TONGUE, 1].mean() < -0.003
    assert np.abs(jaw[group == TEETH_UPPER]).max() < 1e-3


def test_no_unit_moves_an_eyeball(head):
    eyeballs = np.isin(head.vertex_group(), (EYE_LEFT, EYE_RIGHT))
    assert not head.expression_dirs[:, eyeballs].any()
    assert (head.skin_weights[eyeballs][:, 3:].max(1) == 1.0).all()


def test_identity_is_a_principal_basis(head):
    flat = head.shape_dirs.reshape(60, -1).astype(np.float64)
    gram = flat @ flat.T
    scale = np.sqrt(np.diag(gram))
    off = gram / np.outer(scale, scale) - np.eye(60)
    assert np.abs(off).max() < 1e-2
    assert (np.diff(scale) < 1e-3 * scale[0]).all(), "by falling variance"
    rms = scale / np.sqrt(len(head.template))
    assert 1e-3 < rms[0] < 1e-2, "millimetres for one standard deviation"


def test_eye_joints_follow_the_eyeballs(head):
    rng = np.random.default_rng(0)
    code = rng.standard_normal(60).astype(np.float32)
    vertices = head.template + np.tensordot(code, head.shape_dirs, 1)
    joints = head.joints + np.tensordot(code, head.joint_shape_dirs, 1)
    for side, group in enumerate((EYE_LEFT, EYE_RIGHT)):
        eyeball = vertices[head.vertex_group() == group]
        assert np.linalg.norm(0.5 * (eyeball.min(0) + eyeball.max(0)) - joints[3 + side]) < 2e-3


def test_regions(head):
    assert set(head.masks) == set(REGIONS)
    group = head.vertex_group()
    for mask in head.masks.values():
        assert mask.shape == (len(head.template),)
        assert 0.0 <= mask.min() < 0.01
        assert 0.9 < mask.max() <= 1.0
    assert head.masks["mouth"][np.isin(group, (TEETH_UPPER, TEETH_LOWER, TONGUE))].min() > 0.5
    assert head.masks["eyes"][np.isin(group, (EYE_LEFT, EYE_RIGHT))].min() > 0.5
    assert head.template[head.masks["scalp"] > 0.5, 1].mean() > head.joints[3, 1]
    assert head.template[head.masks["neck"] > 0.5, 1].max() < head.joints[3, 1]
    covered = sum(head.masks[name] for name in ("scalp", "ears", "neck", "face"))
    assert covered[group == SKIN].min() > 0.5


def test_the_licence_is_stored_with_the_data(head):
    assert "CC0" in head.licence
    text = OPEN_HEAD.with_name("LICENSE-open-head.md").read_text()
    assert "CC0" in text
    assert "MakeHuman" in text
    assert "Mika Suominen" in text
