"""Forward and inverse warp between posed and canonical space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from insta_runtime.config import WarpConfig
from insta_runtime.head.rig import rotation_matrix
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import HeadMesh
from insta_runtime.warp.frames import triangle_frames
from insta_runtime.warp.warp import CanonicalSamples, HeadWarp, PosedHead, code_fade
from tests.support.small_person import SMALL, open_head, pose, small_model


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    """With the candidate grid of the CPU preset: 10 mm."""
    return small_model(config=replace(SMALL, warp=WarpConfig(cell=0.01)))


@pytest.fixture(scope="module")
def holding() -> AvatarModel:
    """The same model without detachment: samples follow the surface at any height."""
    return small_model(config=replace(SMALL, warp=WarpConfig(cell=0.01, loosens=0.0)))


def carried_back(head: PosedHead, points: torch.Tensor) -> CanonicalSamples:
    """Inverse warp of ``points`` with view directions along z."""
    cells = torch.zeros(head.warp.resolution**3, dtype=torch.bool)
    cells[head.warp.box.cell_of(points, head.warp.resolution)] = True
    head.prepare(cells)
    return head.to_canonical(points, torch.tensor([0.0, 0.0, 1.0]).expand_as(points))


def surface_points(vertices: torch.Tensor, faces: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Points spread evenly over the mesh: triangle (N,), barycentrics (N, 3), position (N, 3)."""
    generator = torch.Generator().manual_seed(2)
    triangle = torch.multinomial(triangle_frames(vertices, faces)[1], count, replacement=True, generator=generator)
    b = torch.rand((count, 3), generator=generator) + 0.1
    b /= b.sum(-1, keepdim=True)
    return triangle, b, (vertices[faces[triangle]] * b[..., None]).sum(dim=1)


def test_the_canonical_pose_is_not_warped(holding: AvatarModel) -> None:
    warp = holding.warp
    _, _, points = surface_points(warp.canonical.vertices, warp.canonical.faces, 500)
    points = points + 0.01 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    samples = carried_back(warp.pose(warp.canonical.vertices), points)
    torch.testing.assert_close(samples.position, points, atol=1e-5, rtol=0)
    torch.testing.assert_close(samples.direction, torch.tensor([0.0, 0, 1]).expand_as(points), atol=1e-4, rtol=0)


def test_a_part_that_moves_rigidly_is_warped_back_exactly() -> None:
    """Two plates: one is fixed, the other rotates and moves with the points above it."""
    plate = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 0.01
    low = torch.cat([plate, torch.zeros((16, 1))], dim=1)
    corner = torch.tensor([4 * i + j for i in range(3) for j in range(3)])
    quads = torch.stack([corner, corner + 4, corner + 5, corner + 1], dim=1)
    one = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices, faces = torch.cat([low, low + torch.tensor([0.1, 0, 0])]), torch.cat([one, one + 16])
    warp = HeadWarp(HeadMesh(vertices, faces), vertices, torch.zeros((32, 2)), WarpConfig(cell=0.025, loosens=0.0))
    turn, shift = rotation_matrix(torch.tensor([0.3, 0.5, -0.2])), torch.tensor([0.02, 0.01, 0.03])
    posed = torch.cat([vertices[:16], vertices[16:] @ turn.T + shift])
    canonical = torch.tensor([0.115, 0.015, 0.0]) + 0.008 * torch.rand((50, 3))
    samples = carried_back(warp.pose(posed), canonical @ turn.T + shift)
    torch.testing.assert_close(samples.position, canonical, atol=1e-5, rtol=0)
    torch.testing.assert_close(samples.direction, turn[2].expand(50, 3), atol=1e-4, rtol=0)
    still = torch.tensor([0.015, 0.015, 0.0]) + 0.008 * torch.rand((50, 3))
    torch.testing.assert_close(carried_back(warp.pose(posed), still).position, still, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("jaw", "smile"), [(0.0, 0.0), (0.8, 0.0), (0.2, 1.0)])
def test_the_skin_maps_to_the_same_skin(model: AvatarModel, jaw: float, smile: float) -> None:
    warp, head = model.warp, model.pose(pose(open_head(), jaw=jaw, smile=smile))
    faces = warp.canonical.faces
    triangle, b, points = surface_points(head.vertices, faces, 800)
    samples = carried_back(head, points)
    truth = (warp.canonical.vertices[faces[triangle]] * b[..., None]).sum(dim=1)
    error = (samples.position - truth).norm(dim=-1)
    # Where layers touch (lips, lids, gums) the nearest one may be another.
    assert float((error < 2e-5).float().mean()) > 0.95
    assert float(error.quantile(0.99)) < 0.001
    assert float(samples.distance.quantile(0.95)) < 2e-5


def test_close_points_stay_close_across_edges(model: AvatarModel) -> None:
    """Points just above an edge, a hair to either side of it."""
    warp, head = model.warp, model.pose(pose(open_head(), jaw=0.5, smile=0.8))
    faces, vertices = warp.canonical.faces, head.vertices
    skin = (warp.masks[faces].amax(dim=(1, 2)) == 0).nonzero()[:, 0]  # away from lips and lids, which touch
    picked = faces[skin[torch.randint(len(skin), (600,), generator=torch.Generator().manual_seed(4))]]
    a, b, c = vertices[picked].unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    across = torch.nn.functional.normalize(torch.linalg.cross(normal, b - a), dim=-1)
    middle = 0.5 * (a + b) + 0.002 * normal
    samples = carried_back(head, torch.cat([middle - 2e-5 * across, middle + 2e-5 * across]))
    jump = (samples.position[:600] - samples.position[600:]).norm(dim=-1)
    assert float(jump.quantile(0.95)) < 4 * 4e-5
    turn = (samples.direction[:600] - samples.direction[600:]).norm(dim=-1)
    assert float(turn.quantile(0.95)) < 0.02


def test_the_warp_is_continuous_above_a_fold() -> None:
    """Two triangles that lie flat in the pose and meet at a right angle in canonical space."""
    faces = torch.tensor([[0, 1, 2], [1, 0, 3]])
    posed = torch.tensor([[0.0, 0, 0], [0, 0.06, 0], [-0.06, 0.03, 0], [0.06, 0.03, 0]])
    folded = posed.clone()
    folded[3] = torch.tensor([0.0, 0.03, -0.06])
    warp = HeadWarp(HeadMesh(folded, faces), folded, torch.zeros((4, 2)), SMALL.warp)
    above = torch.tensor([[-1e-5, 0.03, 0.01], [1e-5, 0.03, 0.01]])
    left, right = carried_back(warp.pose(posed), above).position
    assert float((left - right).norm()) < 1e-4
    edge = torch.tensor([0.0, 0.03, 0.0])
    assert 0.005 < float((left - edge).norm()) < 0.011, "halfway round the fold, at about its height"


def test_points_far_above_the_skin_follow_only_the_head(model: AvatarModel) -> None:
    """Raised brows move the skin but not a fringe above it, and the warp between is continuous."""
    head = open_head()
    neutral, brows = pose(head), pose(head).expression.copy()
    brows[[head.expression_names.index(f"brow{name}") for name in ("InnerUp", "OuterUpLeft", "OuterUpRight")]] = 1.0
    still, raised = (model.pose(replace(neutral, expression=e)) for e in (neutral.expression, brows))
    faces, shift = model.warp.canonical.faces, raised.vertices - still.vertices
    lifted = (shift[faces].norm(dim=-1).amin(dim=-1) > 0.003) & (model.warp.masks[faces, 0].amax(dim=-1) == 0.0)
    triangle = lifted.nonzero()[:, 0]
    normal = triangle_frames(raised.vertices, faces)[0][triangle, :, 2]
    skin = raised.vertices[faces[triangle]].mean(dim=1)
    canonical = model.warp.canonical.vertices[faces[triangle]].mean(dim=1)
    touched = carried_back(raised, skin).position
    torch.testing.assert_close(touched, canonical, atol=1e-4, rtol=0)
    fringe = skin + 0.03 * normal
    far = carried_back(raised, fringe)
    opened = model.warp.jaw_offset[faces[triangle]].mean(dim=1)
    free = far.distance > 0.016
    assert int(free.sum()) > 20
    torch.testing.assert_close(far.position[free], (fringe + opened)[free], atol=1e-3, rtol=0)
    heights = torch.linspace(0.0, 0.03, 31)[:, None]
    path = carried_back(raised, skin[:1] + heights * normal[:1]).position
    steps = (path[1:] - path[:-1]).norm(dim=-1)
    assert float(steps.max()) < 3.0 * 0.001


def test_the_forward_warp_scales_with_the_mesh(model: AvatarModel) -> None:
    warp, shift = model.warp, torch.tensor([0.01, -0.02, 0.03])
    head = warp.pose(1.3 * warp.canonical.vertices + shift)
    triangle, _, points = surface_points(warp.canonical.vertices, warp.canonical.faces, 300)
    points = points + 0.01 * warp.maps.frames[triangle][:, :, 2]
    torch.testing.assert_close(
        head.forward_warp(points[:, None], triangle)[:, 0], 1.3 * points + shift, atol=2e-5, rtol=0
    )


def test_the_forward_warp_inverts_the_inverse_warp_near_the_surface(model: AvatarModel) -> None:
    warp, head = model.warp, model.pose(pose(open_head(), jaw=0.5))
    faces = warp.canonical.faces
    triangle, _, points = surface_points(warp.canonical.vertices, faces, 800)
    points = points + 0.001 * warp.maps.frames[triangle][:, :, 2]
    there = head.forward_warp(points[:, None], triangle)[:, 0]
    back = carried_back(head, there).position
    # The forward warp uses one triangle, the inverse warp blends its neighbours: about a tenth of an occupancy cell.
    error = (back - points).norm(dim=-1)
    assert float(error.median()) < 2e-4
    assert float(error.quantile(0.9)) < 1e-3


def test_the_forward_warp_moves_corners_with_their_mesh(model: AvatarModel) -> None:
    head = model.pose(pose(open_head(), jaw=0.7, smile=0.4))
    triangle = torch.arange(len(model.warp.canonical.faces))
    corner = model.warp.canonical.faces[:, 0]
    there = head.forward_warp(model.warp.canonical.vertices[corner][:, None], triangle)[:, 0]
    torch.testing.assert_close(there, head.vertices[corner], atol=1e-6, rtol=0)


def test_directions_stay_unit_and_codes_fade_with_distance(model: AvatarModel) -> None:
    head = model.pose(pose(open_head(), jaw=0.4))
    points = model.warp.box.origin + model.warp.box.side * torch.rand((500, 3))
    samples = carried_back(head, points)
    torch.testing.assert_close(samples.direction.norm(dim=-1), torch.ones(500))
    assert (samples.masks[samples.distance > 0.02] == 0).all()
    assert samples.masks.min() >= 0
    assert samples.masks.max() <= 1
    torch.testing.assert_close(code_fade(torch.tensor([0.0, 0.01, 0.02, 1.0])), torch.tensor([1.0, 0.5, 0.0, 0.0]))


def test_the_box_contains_the_head_and_its_cells_are_numbered(model: AvatarModel) -> None:
    box = model.warp.box
    unit = box.normalise(model.warp.canonical.vertices)
    assert unit.min() > 0
    assert unit.max() < 1
    cells = torch.arange(6**3)
    assert torch.equal(box.cell_of(box.cell_centres(cells, 6), 6), cells)
    outside = box.origin + torch.tensor([[-1.0, 0.01, 0.01], [9.0, 9.0, 9.0]])
    assert box.cell_of(outside, 6).tolist() == [0, 6**3 - 1]
