"""The replay buffer as kernels read it: pictures in slots that never move, on the device of the model."""

from __future__ import annotations

import contextlib
import math
from typing import Protocol

import numpy as np
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.learn.replay import MATTE, MATTE_GROWS, grown, premultiplied, reach
from insta_runtime.learn.replay_policy import RECENT, Composition, Keeping
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import pack_state
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import HeadState, Observation
from insta_runtime.warp.warp import MOTION, PARTS

TILES = 64  # across a picture at most: their lists stay short, and at small sizes a tile is a pixel
CHUNK = 16  # slots whose memory is allocated at once: a short call takes little


class Viewer(Protocol):
    """Who looks at each new picture of a replay."""

    def slot_bytes(self, side: int) -> int:
        """What the viewer keeps for each slot of pictures of this side, bytes."""

    def prepare(self, side: int, slots: int) -> None:
        """Called once, when the side is known and `DeviceReplay.memories` exist."""

    def look(self, slot: int, state: HeadState) -> None:
        """Called with the slot of each new picture and its tracked state; gives the replay its tiles (`list_tiles`)."""


class DeviceReplay:
    """Observations to draw from.  `add` and `turn_page` may be called from any thread, the rest belongs to the learner.

    What is kept and what is drawn is decided by `learn.keeping`.  The first observation decides the side of the square
    that pictures are kept in; larger ones are scaled down to it.

    Args:
        size: longest side of the pictures, pixels. budget_mb: MiB that slots may take.
        viewer: who looks at new pictures, if anybody. stream: of a GPU, to take in on; kernels read on it, too.

    Attributes:
        side: of the pictures, 0 before the first. slots: how many there may be; those in use are the first ones.
        recalled: slots of pictures that the avatar itself has painted.
        states: (slots, S) rows of `pack_state`, the camera being that of the picture.
        memories: the struct that kernels take.
    """

    def __init__(
        self,
        model: AvatarModel,
        kernels: Kernels,
        size: int,
        budget_mb: int,
        seed: int,
        viewer: Viewer | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.model, self.kernels, self.size = model, kernels, size
        self.keeping: Keeping[int] = Keeping(model.code, budget_mb << 20, seed)
        self.recalled: set[int] = set()
        self.frame_ids: dict[int, int] = {}
        self.side = self.slots = 0
        self.states: torch.Tensor
        self.memories: Struct
        self._viewer, self._stream = viewer, stream
        self._chunks: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.keeping.pictures)

    @property
    def order(self) -> list[int]:
        """The slots in use, oldest first."""
        return self.keeping.items

    @property
    def drawn_from(self) -> tuple[int, int]:
        """How many of ``memories.newest`` and of ``memories.deck`` there are."""
        return len(self.keeping.newest), len(self.keeping.deck)

    @property
    def composition(self) -> Composition:
        """What is held; from any thread."""
        return self.keeping.composition

    def add(self, observation: Observation) -> None:
        """Offer an observation; it is taken in at the next `take_in`."""
        self.keeping.offer(observation)

    def turn_page(self, weight: float = 0.0) -> None:
        """From the next observation on pictures look different: see `Keeping.turn_page`."""
        self.keeping.turn_page(weight)

    def take_in(self) -> None:
        """Move offered observations into the buffer."""
        arrived = self.keeping.arrived()
        if not arrived:
            return
        with self._on_stream():
            changed = [self.model.code.observe(observation.state) for observation in arrived]
            for observation in arrived:
                self._take(observation)
            if any(changed):
                codes = torch.from_numpy(self.model.code.learned(self._raw))
                self.states[:, -CODE_WIDTH:] = codes.to(self.states.device)
            self._deal()

    def misses(self, state: HeadState) -> bool:
        """Whether a recalled picture in ``state`` would help: not before there is a real one."""
        return self.side > 0 and self.keeping.misses(state, self._slot_bytes)

    def recall(self, observation: Observation) -> None:
        """Take in a picture that the avatar has painted of itself, and that is missed."""
        with self._on_stream():
            self._take(observation, recalled=True)
            self._deal()

    def picture(self, slot: int) -> torch.Tensor:
        """The picture of a slot, (height, width, 4) uint8, premultiplied RGBA: a view."""
        width, height = self.extents[slot]
        return self._chunks[slot // CHUNK][0][slot % CHUNK, :height, :width]

    def list_tiles(self, slot: int, depth: torch.Tensor) -> None:
        """Note which tiles are of the head and which are around it, as `learn.replay.Memory` does for pixels.

        ``depth`` (side, side) is that of the posed mesh, infinite where there is none.
        """
        width, height = self.extents[slot]
        padded = self._across * self._tile
        flags = torch.zeros((2, padded, padded), device=depth.device)
        flags[0, :height, :width] = grown(self.picture(slot)[..., 3] > 255.0 * MATTE, MATTE_GROWS).float()
        flags[1, :height, :width] = depth[:height, :width].isfinite().float()
        matte, mesh = torch.nn.functional.max_pool2d(flags[None], self._tile)[0] > 0.0
        near = grown(mesh, math.ceil(self._reach[slot] / self._tile))
        near[math.ceil(height / self._tile) :] = False
        near[:, math.ceil(width / self._tile) :] = False
        head = mesh | (matte & near)
        # Sorting lists those of the head first, then those around it, in order and without asking how many they are.
        tiles = self._chunks[slot // CHUNK][1][slot % CHUNK]
        ranks = (head.int() + near.int()).flatten()
        tiles.copy_(ranks.argsort(descending=True, stable=True))
        self._drawable[slot] = torch.stack([head.sum(), (near & ~head).sum()])

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _take(self, observation: Observation, *, recalled: bool = False) -> None:
        size, binary = min(self.size, self.side or self.size), self.model.config.learn.binary_matte
        rgba, camera = premultiplied(observation, size, self.model.device, binary)
        height, width = rgba.shape[:2]
        if not self.side:
            self._reserve(max(width, height))
        kept = self.keeping.picture(observation.state, self._slot_bytes, recalled=recalled)
        slot = self._free_slot(self.keeping.make_room(kept))
        self.keeping.admit(kept, slot)
        if recalled:
            self.recalled.add(slot)
        self.extents[slot] = (width, height)
        self.frame_ids[slot] = observation.frame_id
        self._reach[slot] = reach(self.model, observation.state, camera)
        self._extent[slot] = torch.tensor([width, height], dtype=torch.int32)
        self.states[slot] = torch.from_numpy(pack_state(self.model, observation.state, camera))
        # What is learned from is in range, whatever the sample says of it.
        self.states[slot, -CODE_WIDTH - 9 : -CODE_WIDTH] = torch.eye(3).flatten()
        self._raw[slot] = self.model.code.raw(observation.state)
        self.states[slot, -CODE_WIDTH:] = torch.from_numpy(self.model.code.learned(self._raw[slot]))
        self.picture(slot).copy_(rgba * 255.0 + 0.5)
        if self._viewer:
            self._viewer.look(slot, observation.state)

    def _deal(self) -> None:
        self.keeping.deal()
        for slots, found in ((self._newest, self.keeping.newest), (self._deck, self.keeping.deck)):
            slots[: len(found)] = torch.tensor(found, dtype=torch.int32)

    def _reserve(self, side: int) -> None:
        device = self.model.device
        self.side, self._tile = side, math.ceil(side / TILES)
        self._across = math.ceil(side / self._tile)
        a_slot = side * side * 4 + self._across**2 * 4 + (self._viewer.slot_bytes(side) if self._viewer else 0)
        self.slots = slots = max(RECENT, self.keeping.budget // a_slot)
        # The newest are kept, however small the budget; and so that slots in use are the first ones, all are alike.
        self.keeping.budget, self._slot_bytes = slots * a_slot, a_slot

        def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.states = torch.zeros((slots, _state_size(self.model)), device=device)
        self._raw = np.zeros((slots, CODE_WIDTH), dtype=np.float32)  # codes before the person's range comes in
        self.extents: dict[int, tuple[int, int]] = {}
        self._reach: dict[int, int] = {}
        self._extent, self._drawable = integers(slots, 2), integers(slots, 2)
        self._newest, self._deck = integers(RECENT), integers(slots)
        self._pictures, self._tiles = integers(slots, dtype=torch.int64), integers(slots, dtype=torch.int64)
        self.memories = self.kernels.struct(
            "Memories",
            pictures=self._pictures,
            extent=self._extent,
            states=self.states,
            tiles=self._tiles,
            drawable=self._drawable,
            newest=self._newest,
            deck=self._deck,
            side=side,
            tile=self._tile,
            tiles_across=self._across,
            state_size=self.states.shape[1],
        )
        if self._viewer:
            self._viewer.prepare(side, slots)

    def _free_slot(self, given_up: list[int]) -> int:
        """The slot of the picture that was ``given_up``, or the next one."""
        if given_up:
            (slot,) = given_up
            self.recalled.discard(slot)
            return slot
        slot = len(self)
        if slot == len(self._chunks) * CHUNK:
            self._grow()
        return slot

    def _grow(self) -> None:
        first, device = len(self._chunks) * CHUNK, self.model.device
        count = min(CHUNK, self.slots - first)
        pictures = torch.zeros((count, self.side, self.side, 4), dtype=torch.uint8, device=device)
        tiles = torch.zeros((count, self._across**2), dtype=torch.int32, device=device)
        self._chunks.append((pictures, tiles))
        for addresses, memory in ((self._pictures, pictures), (self._tiles, tiles)):
            each = memory[0].numel() * memory.element_size()
            addresses[first : first + count] = torch.tensor([memory.data_ptr() + i * each for i in range(count)])


def _state_size(model: AvatarModel) -> int:
    return len(model.head.expression_names) + 39 + PARTS * MOTION + CODE_WIDTH
