"""Replay buffer of the torch trainer: the observations that training steps draw from, within a memory budget."""

from __future__ import annotations

import math

import numpy as np
import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.learn.pose_refinement import REFRESH_DISTANCE, FramePoseMotion
from insta_runtime.learn.replay_buffer import ReplayBuffer
from insta_runtime.learn.replay_policy import ReplayPolicy
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.pose_refinement import move_head, part_motions
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import farthest_around
from insta_runtime.types import Camera, HeadState, Observation
from insta_runtime.warp.warp import MOTION, PosedHead

MATTE = 0.02
"""Opacity of a matte from which a pixel counts as part of the subject."""
MATTE_GROWS = 2
"""Number of pixels by which mattes are dilated, because they may be slightly too small."""
NEAREST_PART = 0.1
"""Approximate distance in metres by which the nearest part of a head is closer to the camera than its origin."""
BYTES_A_HEAD = 1 << 21
"""Approximate memory in bytes of a posed head with its candidate grid."""


def ray_regions(model: AvatarModel) -> torch.Tensor:
    """Soft vertex masks (V, 2) float32 in [0, 1]; columns: region of the depth loss, mouth region, as configured."""
    config, masks = model.config.learn, model.head.masks
    # INSTA takes these regions from a face-parsing network; here the masks of the head model replace it.
    prior = masks["face"] if config.depth_on == "face" else 1.0 - masks["scalp"]
    regions = np.stack([prior, masks[config.mouth_on]], axis=-1)
    return torch.as_tensor(regions, dtype=torch.float32, device=model.device)


def band_pixels(model: AvatarModel, state: HeadState, camera: Camera) -> int:
    """Width in pixels of the band around the projected head mesh that the field can cover (`WarpConfig.band`).

    It is at most a quarter of the longest image side.
    """
    depth = max(NEAREST_PART, float(state.translation[2]) - NEAREST_PART)
    pixels = model.warp.config.band * camera.fx / depth
    return math.ceil(min(pixels, max(camera.width, camera.height) / 4)) if math.isfinite(pixels) else 0


def dilated(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Dilate ``mask`` (h, w) bool by ``radius`` pixels along both axes (a square structuring element)."""
    image = mask.float()[None, None]
    for kernel, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        image = torch.nn.functional.max_pool2d(image, kernel, stride=1, padding=padding)
    return image[0, 0] > 0.0


class ReplayFrame:
    """One observation, prepared for training; the expensive parts are computed when it is first drawn.

    Attributes:
        rgba: (h * w, 4) uint8, premultiplied.
        camera: camera of an image of h x w pixels.
        recalled: whether the avatar rendered the observation itself (generative replay).
        raw: (CODE_WIDTH,) raw expression code.
        code: (CODE_WIDTH,) expression code, standardised by the subject's present range.
        motion: learned pose refinement of this frame.
        pixels: (P,) int64 flat indices of the pixels of the head; set by `posed`, like the next five.
        margin: (Q,) int64 flat indices of the other pixels within `band_pixels` of the mesh.
        depth: (h * w,) depth of the mesh in metres, infinite where there is none.
        far: (h * w,) largest depth around each pixel (`farthest_around`), metres.
        skin: (h * w,) bool, pixels of the depth loss.
        mouth: (h * w,) bool, pixels of the mouth region.
    """

    def __init__(self, model: AvatarModel, observation: Observation, size: int, *, recalled: bool = False) -> None:
        self.model, self.state, self.recalled = model, observation.state, recalled
        self.frame_id = observation.frame_id
        rgba, self.camera = observation.premultiplied(size, binary=model.config.learn.binary_matte)
        self.rgba = (rgba.view(-1, 4) * 255.0 + 0.5).to(torch.uint8).to(model.device)
        self.raw = model.code.raw(observation.state)
        self.update_code()
        self._posed: PosedHead | None = None
        table = torch.from_numpy(model.pose_refinement.table)
        self.motion = FramePoseMotion(self.state, table, fixed=recalled)
        self._rasterised_motion = self.motion.now

    @property
    def refined_state(self) -> HeadState:
        """Tracked state with the head pose corrected by the learned motion of this frame."""
        return move_head(self.state, self.motion.now.numpy())

    def update_code(self) -> None:
        """Recompute `code` after mean and spread of the subject's expression codes have changed."""
        self.code = torch.as_tensor(self.model.code.learned(self.raw), device=self.model.device)

    def posed(self) -> PosedHead:
        """Warp of the head pose of this frame.

        The first call rasterises the mesh and adds the silhouette of the frame to the occupancy grid; later calls
        repeat this when the learned head motion has changed by more than `REFRESH_DISTANCE`.
        """
        if self._posed is None:
            self._posed = self.model.pose(self.state)
            self._rasterise()
        elif float((self.motion.now - self._rasterised_motion)[:MOTION].abs().max()) > REFRESH_DISTANCE:
            self._rasterise()
        self._posed.part_motions = torch.from_numpy(part_motions(self.motion.now.numpy())).to(self.model.device)
        return self._posed

    def _rasterise(self) -> None:
        """Rasterise the mesh: depth, mouth pixels, and the sets of pixels that rays are drawn from."""
        assert self._posed is not None
        model, camera, self._rasterised_motion = self.model, self.camera, self.motion.now
        vertices = camera_vertices(self._posed.vertices, self.refined_state)
        raster = rasterise(vertices, model.warp.canonical.faces, camera)
        face, mouth = (raster.interpolate(ray_regions(model)) * raster.mask[..., None]).unbind(-1)
        alpha = self.rgba[:, 3].float() / 255.0
        skin = (face > 0.5).view(-1) & (alpha > 0.9)
        self.depth = raster.depth.view(-1)
        self.far = farthest_around(raster.depth).view(-1)
        self.skin = skin
        self.mouth = (mouth > 0.3).view(-1)
        matte = alpha.view(camera.height, camera.width)
        near = dilated(raster.mask, band_pixels(model, self.state, camera))
        head = raster.mask | (near & dilated(matte > MATTE, MATTE_GROWS))
        self.pixels, self.margin = (part.view(-1).nonzero()[:, 0] for part in (head, near & ~head))
        if self.recalled:  # a silhouette that the avatar rendered itself is no evidence
            return
        behind = model.config.sampling.behind
        model.occupancy.carve(self._posed, self.refined_state, camera, matte, raster.depth, behind)

    @property
    def bytes(self) -> int:
        """Approximate memory of this frame in bytes."""
        return int(self.rgba.numel()) * 2 + BYTES_A_HEAD


class Replay(ReplayBuffer[ReplayFrame]):
    """Replay buffer whose frames are torch tensors; `learn.replay_policy` decides which are kept and drawn.

    `add` and `start_epoch` may be called from any thread, everything else only by the training thread.
    """

    def __init__(self, model: AvatarModel, size: int, budget_mb: int, seed: int) -> None:
        """``size``: longest side of the stored images in pixels; ``budget_mb``: memory budget in MiB."""
        super().__init__(ReplayPolicy(model.code, budget_mb << 20, seed))
        self.model, self.size = model, size
        self._generator = torch.Generator().manual_seed(seed)
        self._round: list[ReplayFrame] = []
        self._largest_budget = budget_mb << 20
        self._codes_stale = False  # whether the subject's range has changed since codes were computed

    @property
    def frames(self) -> list[ReplayFrame]:
        """Kept frames, the oldest first."""
        return self.policy.items

    @property
    def frame_ids(self) -> list[int]:
        """Frame numbers of the kept frames, the oldest first."""
        return [frame.frame_id for frame in self.frames]

    def take_in(self) -> None:
        """Store the queued observations as frames of the buffer, and evict others beyond the memory budget."""
        incoming = self.policy.pop_incoming()
        for observation in incoming:
            self._codes_stale = self.model.code.observe(observation.state) or self._codes_stale
            self._insert(ReplayFrame(self.model, observation, self.size))
        if incoming:
            self.policy.update_pools()

    def add_recalled(self, observation: Observation) -> None:
        """Store a frame that the avatar rendered itself (generative replay)."""
        self._insert(ReplayFrame(self.model, observation, self.size, recalled=True))
        self.policy.update_pools()

    def set_budget(self, budget: int) -> None:
        """Set the memory budget in bytes and evict frames beyond it; more than the initial budget is never used."""
        evicted = self.policy.set_budget(min(budget, self._largest_budget))
        if evicted:
            self._forget(evicted)
            self.policy.update_pools()

    def draw(self, count: int) -> list[ReplayFrame]:
        """Draw ``count`` frames: one of the newest, the others from shuffled rounds through the pool.

        The list is shorter if the buffer holds fewer frames, and empty before the first one.
        """
        self.take_in()
        if self._codes_stale:
            for frame in self.frames:
                frame.update_code()
            self._codes_stale = False
        newest, pool = self.policy.newest, self.policy.pool
        if not newest:
            return []
        chosen = [newest[-1 - int(torch.randint(len(newest), (1,), generator=self._generator))]]
        while len(chosen) < min(count, len(self)):
            if not self._round:
                order = torch.randperm(len(pool), generator=self._generator).tolist()
                self._round = [pool[i] for i in order]
            chosen.append(self._round.pop())
        return chosen

    def _insert(self, frame: ReplayFrame) -> None:
        entry = self.policy.make_entry(frame.state, frame.bytes, recalled=frame.recalled)
        evicted = self.policy.evict_for(entry)
        self.policy.insert(entry, frame)
        self._forget(evicted)

    def _forget(self, evicted: list[ReplayFrame]) -> None:
        """Remove ``evicted`` frames from the shuffled order in which training still has to draw frames."""
        self._round = [left for left in self._round if not any(left is one for one in evicted)]

    def _frame_bytes(self) -> int:
        return self.policy.entries[-1].size if self.policy.entries else 0
