"""Posed heads by kernels: vertices, triangle frames, the narrow band, candidate triangles, and depth.

Torch reference: `HeadRig.pose`, `CanonicalMaps`, `OccupancyGrid.posed`, `CandidateGrid` and `rasterise`.
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

LARGEST_INPUT = 1e4
"""Largest magnitude of a number of a head state; larger or non-finite numbers are replaced by zero."""
THREADS_PER_TRIANGLE = 8
"""GPU threads that rasterise one triangle, as in cuda/raster.cu."""
BAND_SHARE = 0.3
"""Capacity of the narrow band as a fraction of all cells of the posed grid; a fitted head marks about a tenth."""

_heads: WeakKeyDictionary[HeadWarp, Struct] = WeakKeyDictionary()


class StateCodes(Protocol):
    """Expression codes of head states, such as `field.expression_code.ExpressionCode`."""

    def __call__(self, state: HeadState, /) -> Float32:
        """The expression code (CODE_WIDTH,) of a state."""

    def turn(self, state: HeadState) -> Float32:
        """Rotation (3, 3) in head space that is applied to ray directions before the colour network."""


class PosableModel(Protocol):
    """The attributes of an avatar model (`render.model.AvatarModel`) that posing needs."""

    head: HeadModel
    shape: Float32
    rig: HeadRig
    warp: HeadWarp

    @property
    def code(self) -> StateCodes:
        """Expression codes of head states."""


def pack_state(model: PosableModel, state: HeadState, camera: Camera, apart: Float32 | None = None) -> Float32:
    """A head state and a camera as one row of numbers (S,), in the order given in cuda/layout.cuh.

    ``apart`` (PARTS, MOTION) holds the motions of mouth and eyes relative to the head (zero by default).  Non-finite
    and very large numbers of the state become zero.
    """
    finite: dict[str, Any] = {
        name: np.where(np.abs(a) <= LARGEST_INPUT, a, np.float32(0)) for name, a in state.arrays().items()
    }
    state = replace(state, **finite)
    rotation = rotation_matrix(state.rotation).astype(np.float32)
    view = np.array([camera.fx, camera.fy, camera.cx, camera.cy], dtype=np.float32)
    joints = [state.neck_pose, state.jaw_pose, state.eye_pose.ravel()]
    pose = [rotation.ravel(), state.translation]
    part_motions = np.zeros(PARTS * MOTION, dtype=np.float32) if apart is None else apart.ravel()
    conditioning = [model.code.turn(state).ravel(), model.code(state)]
    return np.concatenate([state.expression, state.eyelids, *joints, *pose, view, part_motions, *conditioning])


def head_struct(kernels: Kernels, model: PosableModel) -> Struct:
    """The model's head as a ``Head`` struct, built once per `HeadWarp` and shared by all users of the model's device.

    ValueError for heads of more than 65535 triangles.
    """
    cached = _heads.get(model.warp)
    if cached is not None:
        return cached
    warp, rig = model.warp, model.rig
    identity = rig.rest_pose(torch.as_tensor(model.shape, device=kernels.device))
    faces = warp.canonical.faces
    if len(faces) > 0xFFFF:
        raise ValueError(f"kernels support head models of at most 65535 triangles; this one has {len(faces)}")
    corner = faces.reshape(-1)
    counts = torch.bincount(corner, minlength=len(identity.rest))
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    incident = corner.argsort(stable=True) // 3
    x, y, z = (float(value) for value in warp.box.origin)
    _heads[warp] = kernels.struct(
        "Head",
        rest=identity.rest.contiguous(),
        joints=identity.joints.contiguous(),
        motion_dirs=rig.motion_dirs,
        skin=rig.skin_weights,
        faces=faces.int(),
        incident_first=first.int(),
        incident=incident.int(),
        canonical=warp.canonical.vertices.contiguous(),
        open_offset=(warp.canonical.vertices - warp.neutral).contiguous(),
        canonical_frames=warp.maps.frames.contiguous(),
        canonical_areas=warp.maps.areas.contiguous(),
        masks=warp.masks.contiguous(),
        neighbours=torch.cat([warp.neighbours, warp.regions[:, None]], dim=1).int(),
        leaf_members=warp.leaves.members.int(),
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
    """Buffers for ``frames`` posed heads of one model at fixed addresses, and the kernels that fill them.

    Running the kernels allocates nothing, so that they can be captured into a CUDA graph.

    Attributes:
        states: (frames, S) float32 on the device, rows of `pack_state`; write them, then call `run`.
        head, poses: the ``Head`` and ``PoseBuffers`` structs that are passed to kernels.
        capacity: maximum number of marked cells of a frame.
        count: (frames,) int32 on the device, marked cells of each frame before they are limited to ``capacity``.
    """

    def __init__(self, kernels: Kernels, model: PosableModel, frames: int) -> None:
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
            "PoseBuffers",
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
        self._depth_buffers: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}

    def run(self, occupancy: Struct) -> None:
        """Pose all heads from ``states``, mark the posed grid cells to sample, and list candidate triangles."""
        self.pose(occupancy)
        self.choose_candidates()

    def pose(self, occupancy: Struct) -> None:
        """Pose all heads from ``states`` and mark the posed grid cells to sample, without their candidate triangles."""
        frames, head, poses, launch = self.frames, self.head, self.poses, self.kernels.launch
        launch("pose_vertices", head, poses, items=32 * frames * -(-self._vertices // 32))
        launch("triangle_frames", head, poses, items=frames * self._triangles)
        launch("vertex_records", head, poses, items=frames * self._vertices)
        launch("leaf_spheres", head, poses, items=32 * frames * self._leaves)
        launch("clear_band", head, poses, items=frames * self._words)
        launch("forward_warp_cells", head, poses, occupancy, items=frames * occupancy.value.count)
        launch("list_cells", head, poses, items=32 * frames * -(-self._words // 32))

    def choose_candidates(self, needed: torch.Tensor | None = None) -> None:
        """Choose the candidate triangles of the bands' cells.

        ``needed`` (frames, words) int32 has one bit for each cell of the posed grid; without it all cells of the bands
        are processed.
        """
        items = 32 * self.frames * self.capacity
        self.kernels.launch("choose_candidates", self.head, self.poses, needed, items=items)

    def rasterise(self, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth and triangle index of every pixel of an image by each pose's own camera; call `pose` before.

        Returns:
            depth (frames, height, width) float32: z in metres, infinite where no triangle is visible;
            triangle (frames, height, width) int32: -1 there.  The next call with this size overwrites both.
        """
        size = width, height
        if size not in self._depth_buffers:
            shape, device = (self.frames, height, width), self.kernels.device
            types = torch.int64, torch.float32, torch.int32
            self._depth_buffers[size] = tuple(torch.empty(shape, dtype=dtype, device=device) for dtype in types)
        keys, depth, triangle = self._depth_buffers[size]
        launch, pixels = self.kernels.launch, self.frames * height * width
        launch("clear_pixels", keys, pixels, items=pixels)
        threads = THREADS_PER_TRIANGLE * self.frames * self._triangles
        launch("draw_triangles", self.head, self.poses, width, height, keys, items=threads)
        launch("resolve_pixels", self.head, self.poses, width, height, keys, depth, triangle, None, items=pixels)
        return depth, triangle
