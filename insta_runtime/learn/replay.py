"""The replay buffer: the observations that learning draws from, within a byte budget."""

from __future__ import annotations

import math

import numpy as np
import torch

from insta_runtime.learn.pose_refinement import MOVED, PictureMotion
from insta_runtime.learn.replay_policy import Composition, Keeping
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.pose_refinement import apart, moved
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import camera_vertices, farthest_around
from insta_runtime.types import Camera, HeadState, Observation
from insta_runtime.warp.warp import MOTION, PosedHead

MATTE = 0.02  # opacity from which on a pixel belongs to the person ...
MATTE_GROWS = 2  # ... and so many pixels around it, for the matte may be a little too small
NEAREST_PART = 0.1  # metres that parts of a head are nearer to the camera than its origin, about
BYTES_A_HEAD = 1 << 21  # what a posed head with its candidate grid takes, about


def premultiplied(
    observation: Observation, size: int, device: torch.device | None = None, binary: bool = False
) -> tuple[torch.Tensor, Camera]:
    """The picture at a longest side of ``size`` by area averaging, colour x matte; ``binary`` makes the matte so first.

    Returns:
        (h, w, 4) float in [0, 1], premultiplied RGBA, on ``device`` (the CPU), and its camera.  Pictures are never
        enlarged.
    """
    camera = observation.camera.within(size)
    alpha = torch.from_numpy(observation.alpha).to(device).float()[None] / 255.0
    if binary:
        alpha = (alpha > 0.5).float()
    rgb = torch.from_numpy(observation.rgb).to(device).permute(2, 0, 1).float() / 255.0
    picture = torch.cat([rgb * alpha, alpha])[None]
    small = torch.nn.functional.interpolate(picture, (camera.height, camera.width), mode="area")[0]
    return small.permute(1, 2, 0).contiguous(), camera


def ray_regions(model: AvatarModel) -> torch.Tensor:
    """Soft regions (V, 2) of the head: where the depth prior acts, and what counts as mouth."""
    config, masks = model.config.learn, model.head.masks
    # The original takes them from a network that parses faces; the head model's own regions stand in for it.
    prior = masks["face"] if config.depth_on == "face" else 1.0 - masks["scalp"]
    regions = np.stack([prior, masks[config.mouth_on]], axis=-1)
    return torch.as_tensor(regions, dtype=torch.float32, device=model.device)


def reach(model: AvatarModel, state: HeadState, camera: Camera) -> int:
    """How far beside its mesh, pixels, a head may have anything at all: the projected width of the band."""
    depth = max(NEAREST_PART, float(state.translation[2]) - NEAREST_PART)
    pixels = model.warp.config.band * camera.fx / depth
    return math.ceil(min(pixels, max(camera.width, camera.height) / 4)) if math.isfinite(pixels) else 0


def grown(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """The mask (h, w), bool, and all that is at most ``radius`` pixels away along both axes."""
    picture = mask.float()[None, None]
    for kernel, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        picture = torch.nn.functional.max_pool2d(picture, kernel, stride=1, padding=padding)
    return picture[0, 0] > 0.0


class Memory:
    """One observation as learning needs it; the costly parts are made when it is first drawn.

    Attributes:
        rgba: (h * w, 4) uint8, premultiplied. camera: of that size. recalled: whether the avatar itself has painted it.
        raw: (CODE_WIDTH,) expression code before the person's range comes in. code: as the field is told it.
        pixels: of the head, flat. margin: pixels around it in which the band may be seen.
    """

    def __init__(self, model: AvatarModel, observation: Observation, size: int, *, recalled: bool = False) -> None:
        self.model, self.state, self.recalled = model, observation.state, recalled
        self.frame_id = observation.frame_id
        rgba, self.camera = premultiplied(observation, size, binary=model.config.learn.binary_matte)
        self.rgba = (rgba.view(-1, 4) * 255.0 + 0.5).to(torch.uint8).to(model.device)
        self.raw = model.code.raw(observation.state)
        self.tell()
        self._posed: PosedHead | None = None
        self.motion = PictureMotion(self.state, torch.from_numpy(model.registration.table), held=recalled)
        self._looked = self.motion.now

    @property
    def placed(self) -> HeadState:
        """The state with the head where learning has moved it to."""
        return moved(self.state, self.motion.now.numpy())

    def tell(self) -> None:
        """Make the code that the person's range, which has become another, gives."""
        self.code = torch.as_tensor(self.model.code.learned(self.raw), device=self.model.device)

    def posed(self) -> PosedHead:
        """The warp of this observation's state; the first call also shows its silhouette to the occupancy."""
        if self._posed is None:
            self._posed = self.model.pose(self.state)
            self._look()
        elif float((self.motion.now - self._looked)[:MOTION].abs().max()) > MOVED:
            self._look()
        self._posed.apart = torch.from_numpy(apart(self.motion.now.numpy())).to(self.model.device)
        return self._posed

    def _look(self) -> None:
        """Rasterise the mesh once: depth prior, mouth, and the pixels worth drawing."""
        assert self._posed is not None
        model, camera, self._looked = self.model, self.camera, self.motion.now
        vertices = camera_vertices(self._posed.vertices, self.placed)
        raster = rasterise(vertices, model.warp.canonical.faces, camera)
        face, mouth = (raster.interpolate(ray_regions(model)) * raster.mask[..., None]).unbind(-1)
        alpha = self.rgba[:, 3].float() / 255.0
        skin = (face > 0.5).view(-1) & (alpha > 0.9)
        self.depth = raster.depth.view(-1)
        self.far = farthest_around(raster.depth).view(-1)
        self.skin = skin
        self.mouth = (mouth > 0.3).view(-1)
        picture = alpha.view(camera.height, camera.width)
        near = grown(raster.mask, reach(model, self.state, camera))
        head = raster.mask | (near & grown(picture > MATTE, MATTE_GROWS))
        self.pixels, self.margin = (part.view(-1).nonzero()[:, 0] for part in (head, near & ~head))
        if self.recalled:  # what the avatar says of its own outline is no evidence
            return
        model.occupancy.carve(self._posed, self.placed, camera, picture, raster.depth, model.config.sampling.behind)

    @property
    def bytes(self) -> int:
        return int(self.rgba.numel()) * 2 + BYTES_A_HEAD


class Replay:
    """Observations to draw from.  `add` and `turn_page` may be called from any thread, the rest belongs to the learner.

    What is kept and what is drawn is decided by `learn.keeping`.
    """

    def __init__(self, model: AvatarModel, size: int, budget_mb: int, seed: int) -> None:
        self.model, self.size = model, size
        self.keeping: Keeping[Memory] = Keeping(model.code, budget_mb << 20, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._round: list[Memory] = []
        self._untold = False  # whether codes are not what the person's range makes of them now

    def __len__(self) -> int:
        return len(self.keeping.pictures)

    @property
    def memories(self) -> list[Memory]:
        """All that are kept, oldest first."""
        return self.keeping.items

    @property
    def composition(self) -> Composition:
        """What is held; from any thread."""
        return self.keeping.composition

    def add(self, observation: Observation) -> None:
        """Offer an observation; it is taken in at the next `draw`."""
        self.keeping.offer(observation)

    def turn_page(self, weight: float = 0.0) -> None:
        """From the next observation on pictures look different: see `Keeping.turn_page`."""
        self.keeping.turn_page(weight)

    def take_in(self) -> None:
        """Move offered observations into the buffer."""
        arrived = self.keeping.arrived()
        for observation in arrived:
            self._untold = self.model.code.observe(observation.state) or self._untold
            self._take(Memory(self.model, observation, self.size))
        if arrived:
            self.keeping.deal()

    def misses(self, state: HeadState) -> bool:
        """Whether a recalled picture in ``state`` would help: not before there is a real one."""
        pictures = self.keeping.pictures
        return bool(pictures) and self.keeping.misses(state, pictures[-1].size)

    def recall(self, observation: Observation) -> None:
        """Take in a picture that the avatar has painted of itself, and that is missed."""
        self._take(Memory(self.model, observation, self.size, recalled=True))
        self.keeping.deal()

    def draw(self, count: int) -> list[Memory]:
        """``count`` observations: one of the newest, the others from shuffled rounds through the deck; or none."""
        self.take_in()
        if self._untold:
            for memory in self.memories:
                memory.tell()
            self._untold = False
        newest, deck = self.keeping.newest, self.keeping.deck
        if not newest:
            return []
        chosen = [newest[-1 - int(torch.randint(len(newest), (1,), generator=self._generator))]]
        while len(chosen) < min(count, len(self)):
            if not self._round:
                order = torch.randperm(len(deck), generator=self._generator).tolist()
                self._round = [deck[i] for i in order]
            chosen.append(self._round.pop())
        return chosen

    def _take(self, memory: Memory) -> None:
        picture = self.keeping.picture(memory.state, memory.bytes, recalled=memory.recalled)
        gone = self.keeping.make_room(picture)
        self.keeping.admit(picture, memory)
        self._round = [left for left in self._round if not any(left is one for one in gone)]
