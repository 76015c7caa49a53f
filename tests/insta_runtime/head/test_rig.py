"""Head rig: identities of skinning, gradients, and the effect of each parameter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.head import HeadModel, HeadRig, load_head
from insta_runtime.head.model import EYE_LEFT, SKIN
from insta_runtime.head.rig import rotation_matrix
from insta_runtime.types import HeadState
from tests.support.flame_layout import flame_layout, write_npz


@pytest.fixture(scope="module", params=["open head", "FLAME layout"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HeadModel:
    if request.param == "open head":
        return load_head()
    return load_head(write_npz(Path(tmp_path_factory.mktemp("head") / "head.npz"), flame_layout()))


def parameters(head: HeadModel, seed: int, batch: int = 2) -> list[torch.Tensor]:
    """Random shape, expression, jaw, neck, eyes, lids in float64."""
    g = torch.Generator().manual_seed(seed)
    sizes = [(len(head.shape_dirs),), (batch, len(head.expression_names)), (batch, 3), (batch, 3), (batch, 2, 3)]
    return [0.3 * torch.randn(size, generator=g, dtype=torch.float64) for size in [*sizes, (batch, 2)]]


angle = st.floats(-3.0, 3.0, allow_subnormal=False)


@given(st.tuples(angle, angle, angle))
@settings(max_examples=50, deadline=None)
def test_rotation_matrix_is_the_exponential(vector):
    axis_angle = torch.tensor(vector, dtype=torch.float64)
    x, y, z = vector
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    assert torch.allclose(rotation_matrix(axis_angle), torch.linalg.matrix_exp(skew), atol=1e-9)


def test_rest_is_the_template(head):
    state = HeadState.neutral(len(head.expression_names))
    mesh = HeadRig(head).pose(np.zeros(len(head.shape_dirs)), state)
    assert mesh.vertices.dtype == torch.float32
    assert np.abs(mesh.vertices.numpy() - head.template).max() < 1e-6
    assert np.array_equal(mesh.faces.numpy(), head.faces)


def test_without_rotation_the_model_is_linear(head):
    rig = HeadRig(head, dtype=torch.float64)
    shape, expression, _, _, _, eyelids = parameters(head, 1)
    still = torch.zeros(2, 3, dtype=torch.float64)
    got = rig.vertices(shape, expression, still, still, torch.zeros(2, 2, 3, dtype=torch.float64), eyelids)
    want = head.template + np.tensordot(shape.numpy(), head.shape_dirs, 1)
    want = want + np.tensordot(expression.numpy(), head.expression_dirs, 1)
    want = want + np.tensordot(eyelids.numpy(), head.eyelid_dirs, 1)
    assert np.abs(got.numpy() - want).max() < 1e-7


def test_pose_agrees_with_vertices(head):
    rng = np.random.default_rng(3)
    shape = rng.normal(0, 0.5, len(head.shape_dirs)).astype(np.float32)
    state = HeadState(
        rng.uniform(0, 0.5, len(head.expression_names)).astype(np.float32),
        jaw_pose=np.array([0.2, 0.02, 0.0], np.float32),
        neck_pose=np.array([0.1, -0.3, 0.1], np.float32),
        eye_pose=rng.normal(0, 0.2, (2, 3)).astype(np.float32),
        eyelids=np.array([0.3, 0.9], np.float32),
    )
    rig = HeadRig(head)
    arrays = (state.expression, state.jaw_pose, state.neck_pose, state.eye_pose, state.eyelids)
    batch = rig.vertices(torch.as_tensor(shape), *(torch.as_tensor(a)[None] for a in arrays))
    assert torch.allclose(rig.pose(shape, state).vertices, batch[0], atol=1e-6)
    other = rig.pose(shape + 1.0, state).vertices  # the remembered identity is not mistaken for another
    assert (other - batch[0]).abs().max() > 1e-3


def test_a_batch_equals_its_members_one_by_one(head):
    rig = HeadRig(head, dtype=torch.float64)
    shape, *rest = parameters(head, 5, batch=3)
    together = rig.vertices(shape, *rest)
    for i in range(3):
        assert torch.allclose(rig.vertices(shape, *(p[i : i + 1] for p in rest))[0], together[i], atol=1e-12)


def test_an_eye_turns_rigidly_about_its_joint(head):
    rig = HeadRig(head, dtype=torch.float64)
    state = HeadState.neutral(len(head.expression_names))
    turned = replace(state, eye_pose=np.array([[0.1, 0.4, 0.0], [0.0, 0.0, 0.0]], np.float32))
    shape = np.zeros(len(head.shape_dirs))
    before, after = (rig.pose(shape, s).vertices.numpy() - head.joints[3] for s in (state, turned))
    left = head.skin_weights[:, 3] > 0.999
    matrix = rotation_matrix(torch.tensor([0.1, 0.4, 0.0], dtype=torch.float64)).numpy()
    assert left.sum() >= (head.vertex_group() == EYE_LEFT).sum() > 50
    assert np.abs(before[left] @ matrix.T - after[left]).max() < 1e-6
    assert after[left][before[left][:, 2].argmax(), 0] > 0.0, "positive yaw looks to the subject's left"
    assert np.abs((before - after)[head.skin_weights[:, 3] == 0.0]).max() < 1e-9


def test_the_neck_moves_jaw_and_eyes(head):
    rig = HeadRig(head, dtype=torch.float64)
    state = HeadState.neutral(len(head.expression_names))
    nod = replace(state, neck_pose=np.array([0.3, 0.0, 0.0], np.float32))
    shape = np.zeros(len(head.shape_dirs))
    before, after = (rig.pose(shape, s).vertices.numpy() - head.joints[1] for s in (state, nod))
    rigid = head.skin_weights[:, 0] < 1e-6
    matrix = rotation_matrix(torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)).numpy()
    if head.pose_dirs is None:
        assert np.abs(before[rigid] @ matrix.T - after[rigid]).max() < 1e-6
    assert (after - before)[rigid][before[rigid][:, 2].argmax(), 1] < 0.0, "positive pitch looks down"


def test_canonical_opens_the_mouth(head):
    rig = HeadRig(head)
    shape = np.zeros(len(head.shape_dirs), np.float32)
    closed, half, wide = (rig.canonical(shape, jaw).vertices.numpy() for jaw in (0.0, 0.5, 1.0))
    assert np.abs(closed - head.template).max() < 1e-6
    x, y, z = head.template.T
    mouth = y[head.masks["lips"] > 0.9].mean()
    lower = (head.vertex_group() == SKIN) & (np.abs(x) < 0.01) & (z > head.joints[3, 2]) & (y < mouth - 0.015)
    assert lower.sum() > 20
    assert (closed - half)[lower, 1].mean() > 0.004
    assert (half - wide)[lower, 1].mean() > 0.004


def test_eyelids_close_their_own_eye(head):
    rig = HeadRig(head)
    shape = np.zeros(len(head.shape_dirs), np.float32)
    state = HeadState.neutral(len(head.expression_names))
    for side, sign in ((0, 1.0), (1, -1.0)):
        lids = np.zeros(2, np.float32)
        lids[side] = 1.0
        moved = rig.pose(shape, replace(state, eyelids=lids)).vertices.numpy() - head.template
        amount = np.linalg.norm(moved, axis=1)
        assert 0.002 < amount.max() < 0.02
        assert amount[head.template[:, 0] * sign > 0.0].sum() > 0.8 * amount.sum()
        assert moved[amount.argmax(), 1] < 0.0, "the upper lid falls"


def test_gradients(head):
    rig = HeadRig(head, dtype=torch.float64)
    # A projection to a few numbers, so that the numerical Jacobian stays small.
    g = torch.Generator().manual_seed(2)
    look = torch.randn(4, len(head.template) * 3, generator=g, dtype=torch.float64) / 50
    shape, expression, *poses = parameters(head, 4, batch=1)
    poses[0].zero_()  # an axis-angle of zero is where a careless Rodrigues has no derivative

    def few(s: torch.Tensor, e: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        full_shape = torch.cat([s, shape[len(s) :]])
        full_expression = torch.cat([e, expression[:, e.shape[1] :]], 1)
        return rig.vertices(full_shape, full_expression, *rest).flatten(1) @ look.T

    inputs = [shape[:3], expression[:, :3], *poses]
    assert torch.autograd.gradcheck(few, [p.clone().requires_grad_() for p in inputs], atol=1e-6)
