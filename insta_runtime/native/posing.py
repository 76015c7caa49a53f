"""Head states to posed heads, by kernels: vertices, frames, the narrow band, its candidates, and depth.

The kernels' twins are `HeadRig.pose`, `CanonicalMaps`, `OccupancyGrid.posed`, `CandidateGrid` and `rasterise`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.types import Camera, Float32, HeadState
from insta_runtime.warp.warp import MOTION, PARTS, HeadWarp

LARGEST = 1e4  # a number of a state that is larger, or not one, counts as zero
DRAWERS = 8  # threads that draw a triangle
BAND_SHARE = 0.3  # of all cells of the posed grid may be marked; a fitted head marks about a tenth

_heads: WeakKeyDictionary[HeadWarp, Struct] = WeakKeyDictionary()


class Codes(Protocol):
    """What the field is told of states (`field.conditioning.ExpressionCode`)."""

    def __call__(self, state: HeadState, /) -> Float32:
        """The expression code of a state."""

    def turn(self, state: HeadState) -> Float32:
        """How rays are turned, (3, 3) in head space, before the field is asked for colours along them."""


class Person(Protocol):
    """What of an avatar's model (`render.model.AvatarModel`) poses its head."""

    head: HeadModel
    shape: Float32
    rig: HeadRig
    warp: HeadWarp

    @property
    def code(self) -> Codes:
        """Tells what a state looks like."""


def pack_state(model: Person, state: HeadState, camera: Camera, apart: Float32 | None = None) -> Float32:
    """A state before a camera as a row of numbers (S,), as layout.cuh describes it.

    ``apart`` (PARTS, MOTION) is that of `PosedHead`, None is none.  Numbers that are not finite count as zero.
    """
    sound: dict[str, Any] = {
        name: np.where(np.abs(a) <= LARGEST, a, np.float32(0)) for name, a in state.arrays().items()
    }
    state = replace(state, **sound)
    rotation = rotation_matrix(state.rotation).astype(np.float32)
    view = np.array([camera.fx, camera.fy, camera.cx, camera.cy], dtype=np.float32)
    joints = [state.neck_pose, state.jaw_pose, state.eye_pose.ravel()]
    pose = [rotation.ravel(), state.translation]
    moved = np.zeros(PARTS * MOTION, dtype=np.float32) if apart is None else apart.ravel()
    told = [model.code.turn(state).ravel(), model.code(state)]
    return np.concatenate([state.expression, state.eyelids, *joints, *pose, view, moved, *told])


def head_struct(kernels: Kernels, model: Person) -> Struct:
    """What kernels know of the model's person; made once, and shared by all that work on the model's device."""
    known = _heads.get(model.warp)
    if known is not None:
        return known
    warp, rig = model.warp, model.rig
    identity = rig.identity(torch.as_tensor(model.shape, device=kernels.device))
    faces = warp.canonical.faces
    if len(faces) > 0xFFFF:
        raise ValueError(f"kernels take heads of at most 65535 triangles, not {len(faces)}")
    corner = faces.reshape(-1)
    counts = torch.bincount(corner, minlength=len(identity.rest))
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    incident = corner.argsort(stable=True) // 3
    x, y, z = (float(value) for value in warp.box.origin)
    _heads[warp] = kernels.struct(
        "Head",
        rest=identity.rest.contiguous(),
        joints=identity.joints.contiguous(),
        dirs=rig.motion_dirs,
        skin=rig.skin_weights,
        faces=faces.int(),
        first=first.int(),
        incident=incident.int(),
        canonical=warp.canonical.vertices.contiguous(),
        opened=(warp.canonical.vertices - warp.neutral).contiguous(),
        canonical_frames=warp.maps.frames.contiguous(),
        canonical_areas=warp.maps.areas.contiguous(),
        masks=warp.masks.contiguous(),
        around=torch.cat([warp.neighbours, warp.regions[:, None]], dim=1).int(),
        members=warp.leaves.members.int(),
        vertices=len(identity.rest),
        triangles=len(faces),
        expressions=len(model.head.expression_names),
        directions=len(rig.motion_dirs),
        leaves=len(warp.leaves.members),
        leaf_size=warp.leaves.members.shape[1],
        origin_x=x,
        origin_y=y,
        origin_z=z,
        side=warp.box.side,
        resolution=warp.resolution,
        candidates=-(-warp.config.candidates // 4) * 4,
    )
    return _heads[warp]


class PosedHeads:
    """``frames`` posed heads of a model, in buffers that never move: running them allocates nothing.

    Attributes:
        states: (frames, S) float32 on the device, rows of `pack_state`: fill them, then `run`.
        head, poses: the structs that kernels take.
        capacity: marked cells a frame at most; ``count`` (frames,) int32 on the device says how many there would be.
    """

    def __init__(self, kernels: Kernels, model: Person, frames: int) -> None:
        self.kernels, self.frames = kernels, frames
        self.head = head_struct(kernels, model)
        number = self.head.value
        cells = number.resolution**3
        vertices, triangles, leaves = number.vertices, number.triangles, number.leaves
        self.capacity = math.ceil(BAND_SHARE * cells)
        self._words = -(-cells // 32)
        self._triangles, self._vertices, self._leaves, self._cells = triangles, vertices, leaves, cells

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros((frames, *shape), dtype=torch.float32, device=kernels.device)

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros((frames, *shape), dtype=torch.int32, device=kernels.device)

        neutral = pack_state(model, HeadState.neutral(number.expressions), Camera(1.0, 1.0, 0.5, 0.5, 1, 1))
        size = len(neutral)
        self.states, self.vertices, self.count = floats(size), floats(vertices, 3), ints()
        self.states[:] = torch.as_tensor(neutral)
        self.poses = kernels.struct(
            "Poses",
            states=self.states,
            vertices=self.vertices,
            maps=floats(triangles, 9),
            triangles=floats(triangles, 12),
            records=floats(vertices, 16),
            spheres=floats(leaves, 4),
            bits=ints(self._words),
            row=ints(cells),
            cell=ints(self.capacity),
            count=self.count,
            bounds=ints(6),
            candidates=ints(self.capacity, number.candidates),
            state_size=size,
            frames=frames,
            words=self._words,
            capacity=self.capacity,
        )
        self._drawn: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}

    def run(self, space: Struct) -> None:
        """Pose all heads in their ``states``, and derive their bands from the occupied cells of ``space``."""
        self.pose(space)
        self.choose()

    def pose(self, space: Struct) -> None:
        """`run` but for the candidates of the bands' cells."""
        frames, head, poses, launch = self.frames, self.head, self.poses, self.kernels.launch
        launch("pose_vertices", head, poses, items=32 * frames * -(-self._vertices // 32))
        launch("triangle_frames", head, poses, items=frames * self._triangles)
        launch("vertex_records", head, poses, items=frames * self._vertices)
        launch("leaf_spheres", head, poses, items=32 * frames * self._leaves)
        launch("clear_band", head, poses, items=frames * self._words)
        launch("carry_cells", head, poses, space, items=frames * space.value.count)
        launch("list_cells", head, poses, items=32 * frames * -(-self._words // 32))

    def choose(self, wanted: torch.Tensor | None = None) -> None:
        """Candidates of all cells of the bands, or of those whose bit is set in ``wanted`` (frames, words) int32."""
        items = 32 * self.frames * self.capacity
        self.kernels.launch("choose_candidates", self.head, self.poses, wanted, items=items)

    def rasterise(self, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the camera of each pose sees of its mesh, in a picture of this size; call `pose` before.

        Returns:
            depth (frames, height, width) float32: z in metres, infinite where there is nothing;
            triangle (frames, height, width) int32: -1 there.  The next call with this size overwrites both.
        """
        size = width, height
        if size not in self._drawn:
            shape, device = (self.frames, height, width), self.kernels.device
            types = torch.int64, torch.float32, torch.int32
            self._drawn[size] = tuple(torch.empty(shape, dtype=dtype, device=device) for dtype in types)
        keys, depth, triangle = self._drawn[size]
        launch, pixels = self.kernels.launch, self.frames * height * width
        launch("clear_pixels", keys, pixels, items=pixels)
        launch(
            "draw_triangles",
            self.head,
            self.poses,
            width,
            height,
            keys,
            items=DRAWERS * self.frames * self._triangles,
        )
        launch("resolve_pixels", self.head, self.poses, width, height, keys, depth, triangle, None, items=pixels)
        return depth, triangle
