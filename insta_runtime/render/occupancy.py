"""Which cells of canonical space hold anything, and where a pose carries them.

The original keeps one grid in posed space, which clips unseen poses and grows to the union of all seen ones.  Here
occupancy is canonical; the narrow band that rays march through is derived from it for each pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from insta_runtime.config import OccupancyConfig
from insta_runtime.field.expression_code import CODE_WIDTH, condition
from insta_runtime.field.lip_code import condition_lips
from insta_runtime.field.radiance import RadianceField
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.render.rays import camera_vertices
from insta_runtime.types import Camera, HeadState
from insta_runtime.warp.nearest import TriangleSoup
from insta_runtime.warp.warp import SUBCELLS, HeadWarp, PosedHead, flat_cell

INSIDE_DEPTH = 0.008  # metres below the skin that may hold something
SKIN_BAND = 0.015  # metres above the face that may hold something; elsewhere (hair) it is WarpConfig.band
HULL_VOTES = 3  # pictures that must have shown a cell before the silhouette may rule it out
HULL_SHARE = 0.15  # a cell is outside when fewer of the pictures that showed it had it in their matte
HULL_ALPHA = 0.1  # opacity of a matte from which on it has what lies there
HULL_NEAR = 0.05  # metres before the camera; what is nearer is not counted as shown
UPDATE_CELLS = 16384
IN_SIGHT = 0.02  # part of a ray's light that has to reach a sample, so that its cell counts as lit
LIT_DECAY = 0.988  # what a cell's light fades by at an update ...
DARK = 0.05  # ... and where nobody sees it any more: after some 250 updates, 2000 steps


@dataclass(frozen=True)
class FaceRegions:
    """Soft vertex regions of the head, (V,) float in [0, 1]: ``face`` is bare skin, ``mouth`` is hollow."""

    face: torch.Tensor
    mouth: torch.Tensor


@dataclass(frozen=True)
class CandidateCells:
    """The C cells of a canonical grid that may hold something.

    Attributes:
        index: (C,) int64, ascending flat indices ((z * n + y) * n + x).
        triangle: (C,) int64, the triangle that each one rides with.
        masks: (C, 2) float in [0, 1], how much the mouth's and the eyes' code count there.
    """

    index: torch.Tensor
    triangle: torch.Tensor
    masks: torch.Tensor


class OccupancyGrid:
    """The canonical occupancy grid: a cube of ``resolution``^3 cells over the warp's box.

    Only cells near the canonical surface are candidates at all.  Silhouettes of observations rule out candidates
    (`carve`), the field's density decides about the rest (`update`).

    Attributes:
        cells: (C,) int64 flat indices of the candidate cells.
        value: (C,) float32, decayed maximum of the opacity that one sampling step has there.
        seen, inside: (C,) float32, pictures that showed the cell, and in whose matte it lay.
        lit: (C,) float32, 1 when light of a picture learned from last reached the cell, fading since.
    """

    def __init__(self, warp: HeadWarp, found: CandidateCells, config: OccupancyConfig, step: float) -> None:
        self.warp, self.config, self.step = warp, config, step
        device = warp.box.origin.device
        self.cells, self.triangle = found.index.to(device), found.triangle.to(device)
        self.masks = found.masks.to(device)
        self.value = torch.full((len(self.cells),), 2.0 * config.threshold, device=device)
        self.seen = torch.zeros_like(self.value)
        self.inside = torch.zeros_like(self.value)
        self.lit = torch.ones_like(self.value)
        self.place = torch.full((config.resolution**3,), -1, dtype=torch.int32, device=device)
        self.place[self.cells] = torch.arange(len(self.cells), dtype=torch.int32, device=device)
        self._publish()

    @staticmethod
    def find(warp: HeadWarp, regions: FaceRegions, config: OccupancyConfig) -> CandidateCells:
        """The cells near the canonical surface.  The last bit of a distance decides at the border: store them."""
        box, resolution = warp.box, config.resolution
        device = box.origin.device
        soup = TriangleSoup(warp.canonical.vertices, warp.canonical.faces)
        half_cell = 0.5 * math.sqrt(3.0) * box.side / resolution  # metres, to a corner
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
            # As deep as that wherever the borders of cells happen to lie: where the shell is thinner, it has cracks.
            below = torch.where(hollow, SKIN_BAND, INSIDE_DEPTH) + half_cell
            near = nearest.distance <= torch.where(outside, above, below)
            kept.append(chunk[near])
            triangles.append(nearest.triangle[near])
            # The original asks for the density of every cell without an expression.
            mask = warp.masks_at(nearest) * (0.0 if warp.lips else 1.0)
            masks.append(mask[near])
        return CandidateCells(torch.cat(kept), torch.cat(triangles), torch.cat(masks))

    @property
    def occupied(self) -> torch.Tensor:
        """(C,) bool: the candidate cells that rays must sample."""
        dense = self.value > self.config.threshold
        if not self.config.silhouettes:
            return dense
        return dense & ~((self.seen >= HULL_VOTES) & (self.inside < HULL_SHARE * self.seen))

    def _publish(self) -> None:
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
        """(N,) bool: which canonical points (N, 3), metres, lie in occupied cells of the box."""
        unit = self.warp.box.normalise(points)
        within = ((unit >= 0.0) & (unit < 1.0)).all(dim=-1)
        return self.dense[self.warp.box.cell_of(points, self.config.resolution)] & within

    def posed(self, head: PosedHead) -> torch.Tensor:
        """The cells of the posed grid that may hold something: (warp.resolution^3,) bool."""
        return head.occupied_cells(self._points, self._triangle)

    @torch.no_grad()
    def carve(
        self, head: PosedHead, state: HeadState, camera: Camera, alpha: torch.Tensor, depth: torch.Tensor, behind: float
    ) -> None:
        """Count, for each candidate cell, whether one more picture's matte has it.

        ``alpha`` (H, W) float in [0, 1] and ``depth`` (H, W) metres, that of the posed mesh, infinite where there is
        none, belong to ``camera``.  Cells are not counted outside the picture, nor ``behind`` metres behind the mesh.
        """
        centres = self.warp.box.cell_centres(self.cells, self.config.resolution)
        x, y, z = camera_vertices(head.carry_centres(centres, self.triangle), state).unbind(-1)
        u = (x / z * camera.fx + camera.cx).floor()
        v = (y / z * camera.fy + camera.cy).floor()
        index = (v.clamp(0, camera.height - 1) * camera.width + u.clamp(0, camera.width - 1)).long()
        visible = (z > HULL_NEAR) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        visible &= z < depth.reshape(-1)[index] + behind + 0.5 * self.warp.box.side / self.config.resolution
        # A cell is larger than a pixel: its matte is the largest around its centre, as far as it reaches at the head.
        away = max(HULL_NEAR, float(state.translation[2]))
        radius = max(1, round(0.5 * self.warp.box.side / self.config.resolution * camera.fx / away))
        grown = torch.nn.functional.max_pool2d(alpha[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
        self.seen += visible
        self.inside += visible & (grown.reshape(-1)[index] > HULL_ALPHA)

    @torch.no_grad()
    def update(self, field: RadianceField, codes: torch.Tensor, generator: torch.Generator) -> None:
        """Look at the field's density at one random point of each of up to `UPDATE_CELLS` cells.

        ``codes`` (K, CODE_WIDTH) are expression codes to draw from, so that an open mouth stays occupied.
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
        told = condition_lips if self.warp.lips else condition
        density, _ = field.density(self.warp.box.normalise(points), told(codes[draw], self.masks[chosen]))
        opacity = 1.0 - torch.exp(-density * self.step)
        self.value[chosen] = torch.maximum(self.value[chosen] * self.config.decay, opacity)
        self.lit[chosen] *= LIT_DECAY
        self._publish()

    @torch.no_grad()
    def light(self, position: torch.Tensor, passed: torch.Tensor) -> None:
        """Note where light of a picture comes to: samples (N, 3) in the unit cube, behind optical thickness (N,)."""
        reached = position[torch.exp(-passed) > IN_SIGHT]
        cell = self.place[flat_cell(reached, self.config.resolution)].long()
        self.lit[cell[cell >= 0]] = 1.0

    def state(self) -> dict[str, torch.Tensor]:
        """What must be saved with an avatar."""
        return {"value": self.value, "seen": self.seen, "inside": self.inside, "lit": self.lit}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved `state` of the same warp and configuration.  ValueError if it is of another one.

        In one from before there was ``lit``, all is.
        """
        own = self.state()
        state = {"lit": torch.ones_like(self.lit)} | state
        if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in own.items()}:
            raise ValueError("the occupancy does not fit the configuration")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._publish()


def shown_cells(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `state` to draw pictures with: cells that nobody saw are empty, for nobody knows what is there.

    Of some no picture showed the place; others lie behind what is opaque in all pictures, as at the back of thick hair.
    If there are no pictures yet, all stays as it is.
    """
    shown = (state["seen"] > 0.0) | (state["seen"].amax() == 0.0)
    return state | {"value": state["value"] * (shown & (state["lit"] >= DARK))}


def space_struct(kernels: Kernels, grid: OccupancyGrid, state: dict[str, torch.Tensor]) -> Struct:
    """The candidate cells of ``grid`` as kernels see them, with a `state` that may be another than the grid's own.

    Which cells are occupied is for ``publish_occupancy`` to fill in.
    """
    words = -(-(grid.config.resolution**3) // 32)
    device = grid.cells.device
    return kernels.struct(
        "Space",
        cells=grid.cells.int(),
        triangle=grid.triangle.int(),
        masks=grid.masks.contiguous(),
        occupied=grid.occupied.to(torch.uint8),
        dense=torch.zeros(words, dtype=torch.int32, device=device),
        count=len(grid.cells),
        resolution=grid.config.resolution,
        value=state["value"],
        seen=state["seen"],
        inside=state["inside"],
        lit=state["lit"],
        place=grid.place,
    )
