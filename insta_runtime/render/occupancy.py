"""Occupancy grid in canonical space, and its cells in posed space.

INSTA keeps one grid in posed space, which clips unseen poses and grows to the union of all poses seen.  Here the
occupancy is canonical; the cells that rays march through are computed from it for each pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from insta_runtime.config import OccupancyConfig
from insta_runtime.field.expression_code import CODE_WIDTH, condition
from insta_runtime.field.lip_code import condition_lips
from insta_runtime.field.radiance import RadianceField
from insta_runtime.geometry import camera_vertices
from insta_runtime.types import Camera, HeadState
from insta_runtime.warp.nearest import TriangleSoup
from insta_runtime.warp.warp import SUBCELLS, HeadWarp, PosedHead, flat_cell

INSIDE_DEPTH = 0.008
"""Depth in metres below the skin down to which cells are candidates; inside the mouth it is `SKIN_BAND`."""
SKIN_BAND = 0.015
"""Height in metres above the face up to which cells are candidates; above hair it is `WarpConfig.band`."""
HULL_VOTES = 3
"""Number of frames that must have shown a cell before their mattes can mark it as empty."""
HULL_SHARE = 0.15
"""A cell is empty if it was inside the matte in less than this share of the frames that showed it."""
HULL_ALPHA = 0.1
"""Opacity of a matte from which a pixel counts as inside."""
HULL_NEAR = 0.05
"""Distance in metres from the camera below which cells do not count as shown."""
UPDATE_CELLS = 16384
"""Maximum number of cells that one update of the occupancy grid samples."""
IN_SIGHT = 0.02
"""Transmittance in front of a sample from which its cell counts as visible."""
VISIBILITY_DECAY = 0.988
"""Factor by which the visibility of a cell decays at each update that samples the cell."""
HIDDEN_BELOW = 0.05
"""Visibility below which a cell is not rendered: reached after some 250 updates (2000 steps) out of sight."""


@dataclass(frozen=True)
class FaceMasks:
    """Soft vertex masks of the head, (V,) float in [0, 1]: ``face`` (bare skin) and ``mouth`` (hollow inside)."""

    face: torch.Tensor
    mouth: torch.Tensor


@dataclass(frozen=True)
class CandidateCells:
    """The C cells of the canonical grid near the head mesh, the only ones that can be occupied.

    Attributes:
        index: (C,) int64 flat indices ((z * n + y) * n + x), ascending.
        triangle: (C,) int64 index of the triangle that the cell moves with.
        masks: (C, 2) float in [0, 1], weights of mouth code and eye code.
    """

    index: torch.Tensor
    triangle: torch.Tensor
    masks: torch.Tensor


class OccupancyGrid:
    """Canonical occupancy grid: ``resolution``^3 cells over the box of the warp.

    Only cells near the canonical surface are candidates.  The silhouettes of observations empty candidates (`carve`);
    the density of the field decides about the others (`update`).

    Args:
        warp: warp of the subject.
        found: candidate cells.
        config: configuration of the grid.
        step: length of a sampling step, metres.

    Attributes:
        cells: (C,) int64 flat indices of the candidate cells.
        value: (C,) float32, decayed maximum of the opacity of one sampling step in the cell.
        view_count: (C,) float32, number of frames that showed the cell.
        matte_count: (C,) float32, number of these frames in whose matte the cell lay.
        visibility: (C,) float32, 1 when a training ray last reached the cell, decaying since.
        place: (resolution^3,) int32 index of each cell among the candidates, -1 for others.
    """

    def __init__(self, warp: HeadWarp, found: CandidateCells, config: OccupancyConfig, step: float) -> None:
        self.warp, self.config, self.step = warp, config, step
        device = warp.box.origin.device
        self.cells, self.triangle = found.index.to(device), found.triangle.to(device)
        self.masks = found.masks.to(device)
        self.value = torch.full((len(self.cells),), 2.0 * config.threshold, device=device)
        self.view_count = torch.zeros_like(self.value)
        self.matte_count = torch.zeros_like(self.value)
        self.visibility = torch.ones_like(self.value)
        self.place = torch.full((config.resolution**3,), -1, dtype=torch.int32, device=device)
        self.place[self.cells] = torch.arange(len(self.cells), dtype=torch.int32, device=device)
        self._update_dense()

    @staticmethod
    def find_candidates(warp: HeadWarp, regions: FaceMasks, config: OccupancyConfig) -> CandidateCells:
        """Find the candidate cells near the canonical surface, with the soft vertex masks ``regions``.

        They are stored with an avatar, because rounding of distances differs between devices.
        """
        box, resolution = warp.box, config.resolution
        device = box.origin.device
        soup = TriangleSoup(warp.canonical.vertices, warp.canonical.faces)
        half_cell = 0.5 * math.sqrt(3.0) * box.side / resolution  # half the diagonal, metres
        reach = max(warp.config.band, SKIN_BAND + half_cell, INSIDE_DEPTH + half_cell)
        kept, triangles, masks = [], [], []
        for part in torch.arange(resolution**3, device=device).split(16384):
            chunk = part[warp.leaves.within(reach, box.cell_centres(part, resolution), soup)]
            points = box.cell_centres(chunk, resolution)
            nearest = warp.candidate_grid(soup, chunk, resolution).query(points)
            corner = warp.canonical.faces[nearest.triangle]
            b = nearest.barycentrics[:, :, None]
            surface = (warp.canonical.vertices[corner] * b).sum(dim=1)
            normal = warp.maps.frames[nearest.triangle][:, :, 2]
            outside = ((points - surface) * normal).sum(-1) >= 0
            face = (regions.face[corner] * nearest.barycentrics).sum(-1)
            hollow = (regions.mouth[corner] * nearest.barycentrics).sum(-1) > 0.5
            above = warp.config.band + (SKIN_BAND - warp.config.band) * face
            # Half a cell is added so that the layer of cells has this depth everywhere and no gaps.
            below = torch.where(hollow, SKIN_BAND, INSIDE_DEPTH) + half_cell
            near = nearest.distance <= torch.where(outside, above, below)
            kept.append(chunk[near])
            triangles.append(nearest.triangle[near])
            # INSTA evaluates the density of every cell without an expression code.
            mask = warp.masks_at(nearest) * (0.0 if warp.lips else 1.0)
            masks.append(mask[near])
        return CandidateCells(torch.cat(kept), torch.cat(triangles), torch.cat(masks))

    @property
    def occupied(self) -> torch.Tensor:
        """Candidate cells that are occupied and must be sampled by rays, (C,) bool."""
        dense = self.value > self.config.threshold
        if not self.config.silhouettes:
            return dense
        return dense & ~((self.view_count >= HULL_VOTES) & (self.matte_count < HULL_SHARE * self.view_count))

    def _update_dense(self) -> None:
        """Recompute the dense bitmap and the sub-cell points after `occupied` has changed."""
        occupied = self.occupied
        resolution = self.config.resolution
        dense = torch.zeros(resolution**3, dtype=torch.bool, device=self.cells.device)
        dense[self.cells[occupied]] = True
        centres = self.warp.box.cell_centres(self.cells[occupied], resolution)
        size = self.warp.box.side / resolution
        steps = torch.linspace(-0.5, 0.5, SUBCELLS, device=centres.device)
        shift = torch.cartesian_prod(steps, steps, steps) * size
        self.dense, self._points, self._triangle = dense, centres[:, None] + shift, self.triangle[occupied]

    def contains(self, points: torch.Tensor) -> torch.Tensor:
        """Whether canonical points (N, 3), metres, lie in occupied cells: (N,) bool."""
        unit = self.warp.box.normalise(points)
        within = ((unit >= 0.0) & (unit < 1.0)).all(dim=-1)
        return self.dense[self.warp.box.cell_of(points, self.config.resolution)] & within

    def posed(self, head: PosedHead) -> torch.Tensor:
        """Cells of the posed grid into which occupied cells are warped: (warp.resolution^3,) bool."""
        return head.occupied_cells(self._points, self._triangle)

    @torch.no_grad()
    def carve(
        self, head: PosedHead, state: HeadState, camera: Camera, alpha: torch.Tensor, depth: torch.Tensor, behind: float
    ) -> None:
        """Add the silhouette of one frame: count the cells that it shows, and those inside its matte (space carving).

        Args:
            head: warp of the frame's pose.
            state: head state; its rotation and translation are used.
            camera: camera of the matte.
            alpha: (H, W) matte, float in [0, 1].
            depth: (H, W) depth of the posed mesh in metres, infinite where there is none.
            behind: distance in metres behind the mesh from which cells do not count as shown, like those outside the
                image.
        """
        centres = self.warp.box.cell_centres(self.cells, self.config.resolution)
        x, y, z = camera_vertices(head.forward_warp_centres(centres, self.triangle), state).unbind(-1)
        u = (x / z * camera.fx + camera.cx).floor()
        v = (y / z * camera.fy + camera.cy).floor()
        index = (v.clamp(0, camera.height - 1) * camera.width + u.clamp(0, camera.width - 1)).long()
        visible = (z > HULL_NEAR) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        visible &= z < depth.reshape(-1)[index] + behind + 0.5 * self.warp.box.side / self.config.resolution
        # A cell is larger than a pixel: the largest matte value over its projection counts.
        away = max(HULL_NEAR, float(state.translation[2]))
        radius = max(1, round(0.5 * self.warp.box.side / self.config.resolution * camera.fx / away))
        grown = torch.nn.functional.max_pool2d(alpha[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
        self.view_count += visible
        self.matte_count += visible & (grown.reshape(-1)[index] > HULL_ALPHA)

    @torch.no_grad()
    def update(self, field: RadianceField, codes: torch.Tensor, generator: torch.Generator) -> None:
        """Update cell values from the field's density at a random point in each of up to `UPDATE_CELLS` cells.

        ``codes`` (K, CODE_WIDTH) are expression codes of training frames, one of which is drawn for each cell, so that
        the space of an open mouth stays occupied.
        """
        device = self.cells.device
        count = len(self.cells)
        if count > UPDATE_CELLS:
            chosen = torch.randint(count, (UPDATE_CELLS,), generator=generator).to(device)
        else:
            chosen = torch.arange(count, device=device)
        resolution = self.config.resolution
        jitter = torch.rand((len(chosen), 3), generator=generator).to(device) - 0.5
        size = self.warp.box.side / resolution
        points = self.warp.box.cell_centres(self.cells[chosen], resolution) + jitter * size
        draw = torch.randint(len(codes), (len(chosen),), generator=generator).to(device)
        assert codes.shape[1] == CODE_WIDTH
        fade_codes = condition_lips if self.warp.lips else condition
        density, _ = field.density(self.warp.box.normalise(points), fade_codes(codes[draw], self.masks[chosen]))
        opacity = 1.0 - torch.exp(-density * self.step)
        self.value[chosen] = torch.maximum(self.value[chosen] * self.config.decay, opacity)
        self.visibility[chosen] *= VISIBILITY_DECAY
        self._update_dense()

    @torch.no_grad()
    def mark_visible(self, position: torch.Tensor, optical_depth: torch.Tensor) -> None:
        """Mark cells as visible that training rays reached.

        They are the cells of the samples at ``position`` (N, 3) in the unit cube in front of which the
        ``optical_depth`` (N,) of their ray is small (`IN_SIGHT`).
        """
        reached = position[torch.exp(-optical_depth) > IN_SIGHT]
        cell = self.place[flat_cell(reached, self.config.resolution)].long()
        self.visibility[cell[cell >= 0]] = 1.0

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors (C,) of the grid that are stored with an avatar, by attribute name; not copies."""
        names = ("value", "view_count", "matte_count", "visibility")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Copy the values of a stored ``state`` (`OccupancyGrid.state`) into this grid.

        Raises ValueError if it belongs to another warp or configuration.
        """
        own = self.state()
        if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in own.items()}:
            raise ValueError("the occupancy does not fit the configuration")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._update_dense()


def drawable_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy of the ``state`` of an `OccupancyGrid` for rendering, in which cells never visible in training are empty.

    These are cells that no training frame showed, and cells hidden behind opaque ones in all frames, as in the back of
    thick hair: the field is undetermined there.  Without any training frame the state is returned as it is.
    """
    shown = (state["view_count"] > 0.0) | (state["view_count"].amax() == 0.0)
    return state | {"value": state["value"] * (shown & (state["visibility"] >= HIDDEN_BELOW))}
