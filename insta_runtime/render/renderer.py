"""Pictures of an avatar, from a head state and a camera."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from insta_runtime.render.crossfade import Fade
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import shown_cells
from insta_runtime.render.pose_refinement import Registration
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import camera_vertices, farthest_around, pixel_rays
from insta_runtime.types import Bytes, Camera, Float32, HeadState, RenderedFrame

Snapshot = dict[str, torch.Tensor]
"""What travels from learning to display: the field's tensors; under ``occupancy.`` the grid's; ``registration`` and
``underlay``."""

REGISTRATION, UNDERLAY = "registration", "underlay"

Painter = Callable[[], torch.Tensor]
"""Paints what a picture is composited over: (H, W, 3) float32 in [0, 1], on the avatar's device."""

RAYS_AT_ONCE = 1 << 16


class Renderer:
    """Renders snapshots of a model; owns its own copy of the weights, so that learning may go on meanwhile."""

    def __init__(self, model: AvatarModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._learned = model.code
        self._clock, self._fade = clock, Fade()
        self._drawn = False  # whether `picture` has shown anything that could fade
        self._target: Snapshot = {}  # the weights that are faded to
        self._grids: tuple[Snapshot, Snapshot] = ({}, {})  # the occupancy that is faded from, and to
        lots = torch.rand(len(model.occupancy.cells), generator=torch.Generator().manual_seed(0))
        self._turn = lots.to(model.device)  # when in a fade each cell becomes the new one
        self.model = copy.copy(model)
        self.model.code = copy.copy(model.code)
        self.model.field = copy.deepcopy(model.field).requires_grad_(False)
        self.model.occupancy = copy.deepcopy(model.occupancy, {id(model.warp): model.warp})
        self._hide_cells()

    def load(self, snapshot: Snapshot) -> None:
        """Show this snapshot from now on, with codes in the range that was learned by now; `picture` fades into it.

        Weights fade, and cells of the occupancy turn one by one; poses and codes are those of the snapshot at once.
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
        """Whether the next `picture` may differ from the last one of the same state."""
        return self._fade.under_way

    @torch.no_grad()
    def _approach(self, part: float) -> None:
        """Go ``part`` of what is left of the way to the target."""
        for name, tensor in self.model.field.state_dict().items():
            tensor.copy_(self._target[name]) if part == 1.0 else tensor.lerp_(self._target[name], part)
        old, new = self._grids
        turned = self._turn < (1.0 if part == 1.0 else self._fade.done)
        self.model.occupancy.load({name: torch.where(turned, new[name], old[name]) for name in new})

    def _hide_cells(self) -> None:
        if self.model.config.occupancy.silhouettes:
            self.model.occupancy.load(shown_cells(self.model.occupancy.state()))

    @torch.no_grad()
    def render(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        """The avatar in ``state`` as ``camera`` sees it, over nothing: premultiplied RGBA.  No fade."""
        if self._fade.under_way:
            self._approach(1.0)
            self._fade.settle()
        return self._rendered(state, camera, frame_id)

    def _rendered(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        model = self.model
        state, apart = model.registered(state)
        posed = model.pose(state, apart)
        code, turn = model.code_of(state), torch.as_tensor(model.code.turn(state), device=model.device)
        parts = []
        raster = rasterise(camera_vertices(posed.vertices, state), model.rig.faces, camera)
        depth = farthest_around(raster.depth).view(-1)
        pixels = torch.arange(camera.width * camera.height, device=model.device)
        for chunk in pixels.split(RAYS_AT_ONCE):
            rays = pixel_rays(state, camera, chunk, depth[chunk], model.config.sampling.behind)
            samples = model.march(replace(rays, turn=turn), posed)
            seen = model.shade(samples, code.expand(len(samples.ray), -1), len(chunk))
            parts.append(torch.cat([seen.colour, seen.opacity[:, None]], dim=-1))
        field = torch.cat(parts).view(camera.height, camera.width, 4)
        mesh = model.underlay[raster.triangle.clamp(min=0)] * raster.mask[..., None]
        rgba = (field + (1.0 - field[..., 3:]).clamp(min=0.0) * mesh).clamp(0.0, 1.0)
        return RenderedFrame(frame_id, state.t_capture_ns, rgba.cpu().numpy())

    @torch.no_grad()
    def picture(self, state: HeadState, camera: Camera, background: Float32 | Painter) -> Bytes:
        """The avatar over ``background`` ((H, W, 3) in [0, 1]), (H, W, 3) uint8."""
        if self._fade.under_way:
            self._approach(self._fade.advance(self._clock()))
        self._drawn = True
        return self._rendered(state, camera).over(painted(background))


def painted(background: Float32 | Painter) -> Float32:
    """``background`` as an array, whoever paints it."""
    return background().cpu().numpy() if callable(background) else background


def take_snapshot(
    model: AvatarModel, weights: dict[str, torch.Tensor] | None = None, registration: torch.Tensor | None = None
) -> Snapshot:
    """A copy of the model's state; ``weights`` (the averaged ones, say) and ``registration`` in place of its own."""
    source = model.field.state_dict() if weights is None else weights
    snapshot = {name: tensor.detach().clone() for name, tensor in source.items()}
    snapshot |= {f"occupancy.{name}": t.clone() for name, t in model.occupancy.state().items()}
    snapshot[UNDERLAY] = model.underlay.clone()
    own = torch.from_numpy(model.registration.table)
    return snapshot | {REGISTRATION: (own if registration is None else registration).detach().clone()}


def split_snapshot(
    snapshot: Snapshot,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Registration | None, torch.Tensor | None]:
    """The field's tensors of a snapshot, those of the occupancy grid, registration and underlay if it has them."""
    prefix = "occupancy."
    field = {k: v for k, v in snapshot.items() if not k.startswith(prefix) and k not in (REGISTRATION, UNDERLAY)}
    grid = {k.removeprefix(prefix): v for k, v in snapshot.items() if k.startswith(prefix)}
    known = snapshot.get(REGISTRATION)
    return field, grid, None if known is None else Registration.stored(known.cpu().numpy()), snapshot.get(UNDERLAY)


def load_snapshot(model: AvatarModel, snapshot: Snapshot) -> None:
    """Put a snapshot into a model of the same configuration.  ValueError, in few words, if it is of another one."""
    field, grid, registration, underlay = split_snapshot(snapshot)
    own = model.field.state_dict()
    if strange := sorted(own.keys() ^ field.keys()):
        name = strange[0]
        raise ValueError(f"its field has no {name}" if name in own else f"{name} has no place in its field")
    for name, tensor in own.items():
        if field[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {list(field[name].shape)}, not {list(tensor.shape)}")
    if registration is not None:
        if registration.table.shape != model.registration.table.shape:
            raise ValueError("the registration does not fit the head")
        model.registration = registration
    if underlay is not None:
        if underlay.shape != model.underlay.shape or not bool(((underlay >= 0.0) & (underlay <= 1.0)).all()):
            raise ValueError("its colours do not fit the head")
        model.underlay = underlay.to(model.device)
    model.field.load_state_dict(field)
    model.occupancy.load(grid)
