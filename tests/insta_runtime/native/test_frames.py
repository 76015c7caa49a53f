"""Kernels for triangle maps, vertex records and leaf spheres against `CanonicalMaps`."""

from __future__ import annotations

import pytest
import torch

from insta_runtime.warp.nearest import TriangleSoup
from tests.support.posed_person import Posed, model_of, random_state, run

# Rounding rotates a triangle frame by 1e-8 m over an edge of 0.1 mm; slivers rotate more but have no weight.
TURN = 1e-3
MEAN_TURN = 2e-6


@pytest.fixture
def posed(device: torch.device) -> Posed:
    model = model_of(device)
    return run(model, [random_state(model.head, seed) for seed in (5, 6)])


def test_maps_and_records_are_those_of_the_torch_reference(posed: Posed) -> None:
    for frame, twin in enumerate(posed.twins()):
        wrong = (posed.array("maps")[frame].view(-1, 3, 3) - twin.triangle_maps).abs()
        assert float(wrong.max()) < TURN
        assert float(wrong.mean()) < MEAN_TURN
        records = posed.array("records")[frame]
        wrong = (records[:, :9].view(-1, 3, 3) - twin.vertex_maps).abs()
        assert float(wrong.max()) < TURN
        assert float(wrong.mean()) < MEAN_TURN
        assert torch.equal(records[:, 9:12], posed.model.warp.canonical.vertices)
        assert torch.equal(records[:, 12:14], posed.model.warp.masks)
        assert not records[:, 14:].any()


def test_triangles_are_corner_edges_and_their_products(posed: Posed) -> None:
    for frame in range(2):
        soup = TriangleSoup(posed.array("vertices")[frame], posed.model.rig.faces)
        torch.testing.assert_close(posed.array("triangles")[frame], soup.packed.T, rtol=1e-5, atol=1e-10)


def test_spheres_hold_their_triangles(posed: Posed) -> None:
    members = posed.model.warp.leaves.members
    for frame in range(2):
        corners = posed.array("vertices")[frame][posed.model.rig.faces[members]].flatten(1, 2)
        spheres = posed.array("spheres")[frame]
        reach = (corners - spheres[:, None, :3]).norm(dim=-1).amax(dim=1)
        assert bool((reach <= spheres[:, 3]).all())
        assert float(spheres[:, 3].median()) < 0.02  # compact: the head is 0.3 m tall


def test_the_same_inputs_give_the_same_bits(posed: Posed) -> None:
    """Sums around a vertex have a fixed order."""
    before = [posed.array(name).clone() for name in ("vertices", "maps", "records", "spheres")]
    again = run(posed.model, posed.states)
    for name, tensor in zip(("vertices", "maps", "records", "spheres"), before, strict=True):
        assert torch.equal(again.array(name), tensor)


@pytest.mark.parametrize("corner", ["a point", "a doubled corner", "a line"])
def test_a_triangle_without_area_has_the_identity_as_its_frame(posed: Posed, corner: str) -> None:
    """Its scale is the maximum, 2, because its area is almost zero."""
    heads, faces = posed.heads, posed.model.rig.faces
    vertices = posed.array("vertices")
    a, b, c = faces[17].tolist()
    if corner == "a point":
        vertices[0, b] = vertices[0, c] = vertices[0, a]
    elif corner == "a doubled corner":
        vertices[0, b] = vertices[0, a]
    else:
        vertices[0, a], vertices[0, b] = torch.zeros(3), torch.tensor([0.01, 0.0, 0.0])
        vertices[0, c] = torch.tensor([0.005, 0.0, 0.0])
    heads.kernels.launch("triangle_frames", heads.head, heads.poses, items=len(faces) * 2)
    expected = 2.0 * posed.model.warp.maps.frames[17]
    torch.testing.assert_close(posed.array("maps")[0, 17].view(3, 3), expected)
