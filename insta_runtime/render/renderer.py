"""Torch renderer: frames of an avatar from a head state and a camera, and snapshots of its weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.render.crossfade import Crossfade
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import drawable_state
from insta_runtime.render.pose_refinement import PoseRefinement
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import farthest_around, pixel_rays
from insta_runtime.types import Bytes, Camera, Float32, HeadState, RenderedFrame

Snapshot = dict[str, torch.Tensor]
"""Published copy of the weights: the field's tensors by name, those of the occupancy grid behind ``occupancy.``, and
``pose_refinement`` and ``underlay``."""

POSE_REFINEMENT, UNDERLAY = "pose_refinement", "underlay"
"""Names in a `Snapshot` of the table of the pose refinement and of the underlay."""

BackgroundRenderer = Callable[[], torch.Tensor]
"""Function that renders the background: (H, W, 3) float32 in [0, 1], on the avatar's device."""

RAYS_AT_ONCE = 1 << 16
"""Number of rays that are rendered at once, to bound memory."""


class Renderer:
    """Renderer in plain torch, with its own copy of the weights so that training can go on concurrently.

    Args:
        model: the avatar.
        clock: monotonic time in seconds, for crossfades between snapshots.
    """

    def __init__(self, model: AvatarModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._learned = model.code
        self._clock, self._fade = clock, Crossfade()
        self._drawn = False  # whether `picture` has rendered a frame that could fade
        self._target: Snapshot = {}  # weights at the end of the crossfade
        self._grids: tuple[Snapshot, Snapshot] = ({}, {})  # occupancy at the start and at the end of the crossfade
        random = torch.rand(len(model.occupancy.cells), generator=torch.Generator().manual_seed(0))
        self._switch_at = random.to(model.device)  # share of the crossfade at which each cell switches
        self.model = copy.copy(model)
        self.model.code = copy.copy(model.code)
        self.model.field = copy.deepcopy(model.field).requires_grad_(False)
        self.model.occupancy = copy.deepcopy(model.occupancy, {id(model.warp): model.warp})
        self._hide_cells()

    def load(self, snapshot: Snapshot) -> None:
        """Render with the weights of this snapshot from now on; `picture` crossfades to them.

        Weights are interpolated and occupancy cells switch one by one.  The pose refinement changes at once, as does
        the range of expression codes, which is copied from the model as it is now.
        """
        shown = {name: tensor.clone() for name, tensor in self.model.field.state_dict().items()}
        cells = {name: tensor.clone() for name, tensor in self.model.occupancy.state().items()}
        load_snapshot(self.model, snapshot)
        self.model.code = copy.copy(self._learned)
        self._hide_cells()
        if self._drawn:
            self._target = {name: tensor.clone() for name, tensor in self.model.field.state_dict().items()}
            self._grids = cells, {name: tensor.clone() for name, tensor in self.model.occupancy.state().items()}
            self.model.field.load_state_dict(shown)
            self.model.occupancy.load(cells)
            self._fade.begin(self._clock())

    @property
    def fading(self) -> bool:
        """Whether a crossfade is in progress, so that two calls of `picture` with the same state may differ."""
        return self._fade.under_way

    @torch.no_grad()
    def _approach(self, part: float) -> None:
        """Move the weights by the share ``part`` of their remaining distance to the target."""
        for name, tensor in self.model.field.state_dict().items():
            tensor.copy_(self._target[name]) if part == 1.0 else tensor.lerp_(self._target[name], part)
        old, new = self._grids
        switched = self._switch_at < (1.0 if part == 1.0 else self._fade.done)
        self.model.occupancy.load({name: torch.where(switched, new[name], old[name]) for name in new})

    def _hide_cells(self) -> None:
        """Empty the occupancy cells that were never visible in training."""
        if self.model.config.occupancy.silhouettes:
            self.model.occupancy.load(drawable_state(self.model.occupancy.state()))

    @torch.no_grad()
    def render(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        """Render the avatar in ``state`` with ``camera`` as premultiplied RGBA; completes a crossfade at once."""
        if self._fade.under_way:
            self._approach(1.0)
            self._fade.settle()
        return self._rendered(state, camera, frame_id)

    def _rendered(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        model = self.model
        state, motions = model.refine_pose(state)
        posed = model.pose(state, motions)
        code, turn = model.code_of(state), torch.as_tensor(model.code.turn(state), device=model.device)
        parts = []
        raster = rasterise(camera_vertices(posed.vertices, state), model.rig.faces, camera)
        depth = farthest_around(raster.depth).view(-1)
        pixels = torch.arange(camera.width * camera.height, device=model.device)
        for chunk in pixels.split(RAYS_AT_ONCE):
            rays = pixel_rays(state, camera, chunk, depth[chunk], model.config.sampling.behind)
            samples = model.march(replace(rays, turn=turn), posed)
            shaded = model.shade(samples, code.expand(len(samples.ray), -1), len(chunk))
            parts.append(torch.cat([shaded.colour, shaded.opacity[:, None]], dim=-1))
        field = torch.cat(parts).view(camera.height, camera.width, 4)
        mesh = model.underlay[raster.triangle.clamp(min=0)] * raster.mask[..., None]
        rgba = (field + (1.0 - field[..., 3:]).clamp(min=0.0) * mesh).clamp(0.0, 1.0)
        return RenderedFrame(frame_id, state.t_capture_ns, rgba.cpu().numpy())

    @torch.no_grad()
    def picture(self, state: HeadState, camera: Camera, background: Float32 | BackgroundRenderer) -> Bytes:
        """Render the avatar over ``background`` ((H, W, 3) sRGB in [0, 1]): (H, W, 3) uint8; advances a crossfade."""
        if self._fade.under_way:
            self._approach(self._fade.advance(self._clock()))
        self._drawn = True
        return self._rendered(state, camera).over(painted(background))


def painted(background: Float32 | BackgroundRenderer) -> Float32:
    """Pixels of ``background``, (H, W, 3) float32 in [0, 1] in host memory; a function is called to render them."""
    return background().cpu().numpy() if callable(background) else background


def take_snapshot(
    model: AvatarModel, weights: dict[str, torch.Tensor] | None = None, pose_refinement: torch.Tensor | None = None
) -> Snapshot:
    """Snapshot of a model: copies of its tensors.

    ``weights`` (for example averaged ones) and the table ``pose_refinement`` replace those of the model if given.
    """
    source = model.field.state_dict() if weights is None else weights
    snapshot = {name: tensor.detach().clone() for name, tensor in source.items()}
    snapshot |= {f"occupancy.{name}": t.clone() for name, t in model.occupancy.state().items()}
    snapshot[UNDERLAY] = model.underlay.clone()
    own = torch.from_numpy(model.pose_refinement.table)
    return snapshot | {POSE_REFINEMENT: (own if pose_refinement is None else pose_refinement).detach().clone()}


def split_snapshot(
    snapshot: Snapshot,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], PoseRefinement | None, torch.Tensor | None]:
    """Split a snapshot: tensors of the field, tensors of the occupancy grid, pose refinement, underlay (F, 4).

    The last two are None if the snapshot has none.
    """
    prefix = "occupancy."
    field = {k: v for k, v in snapshot.items() if not k.startswith(prefix) and k not in (POSE_REFINEMENT, UNDERLAY)}
    grid = {k.removeprefix(prefix): v for k, v in snapshot.items() if k.startswith(prefix)}
    known = snapshot.get(POSE_REFINEMENT)
    refinement = None if known is None else PoseRefinement.from_table(known.cpu().numpy())
    return field, grid, refinement, snapshot.get(UNDERLAY)


def load_snapshot(model: AvatarModel, snapshot: Snapshot) -> None:
    """Load a snapshot into a model of the same configuration.  Raises ValueError if a part does not fit the model."""
    field, grid, refinement, underlay = split_snapshot(snapshot)
    own = model.field.state_dict()
    if mismatched := sorted(own.keys() ^ field.keys()):
        name = mismatched[0]
        raise ValueError(f"its field has no {name}" if name in own else f"its field has no use for {name}")
    for name, tensor in own.items():
        if field[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {list(field[name].shape)}, not {list(tensor.shape)}")
    if refinement is not None:
        if refinement.table.shape != model.pose_refinement.table.shape:
            raise ValueError("its pose refinement does not fit the head")
        model.pose_refinement = refinement
    if underlay is not None:
        if underlay.shape != model.underlay.shape or not bool(((underlay >= 0.0) & (underlay <= 1.0)).all()):
            raise ValueError("its underlay does not fit the head")
        model.underlay = underlay.to(model.device)
    model.field.load_state_dict(field)
    model.occupancy.load(grid)
