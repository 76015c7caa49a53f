"""Replay buffer on the device: training images in slots at fixed addresses, as kernels read them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.learn.replay_buffer import ReplayBuffer
from insta_runtime.learn.replay_policy import RECENT, ReplayPolicy
from insta_runtime.learn.torch_replay import MATTE, MATTE_GROWS, band_pixels, dilated
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import pack_state
from insta_runtime.native.slot_memory import SlotMemory
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import HeadState, Observation
from insta_runtime.warp.warp import MOTION, PARTS

MAX_TILES = 64
"""Maximum number of tiles across an image; small images have tiles of one pixel."""
CHUNK = 16
"""Number of slots whose memory is allocated together, so that short calls take little memory."""
FIXED_STATE_NUMBERS = 39
"""Numbers of a `pack_state` row besides expression, part motions and code."""


class DeviceReplay(ReplayBuffer[int]):
    """Replay buffer whose frames live in numbered slots of device memory; keys of the policy are slot numbers.

    The first observation determines the side of the square in which images are stored; larger images are scaled down.

    Args:
        size: longest side of the images, pixels. budget_mb: memory for all slots, MiB.
        slot_overhead: bytes that the trainer keeps for each slot, as a function of the image side.
        stream: CUDA stream on which observations are stored and kernels read them; None on a CPU.

    Attributes:
        side: side of the image square in pixels, 0 before the first observation.
        slots: number of slots; those in use are the first ones.
        recalled: slots whose images were rendered by the avatar (generative replay).
        states: (slots, S) rows of `pack_state` with the cameras of the images.
        frames: the ``ReplayFrames`` struct that is passed to kernels.
    """

    def __init__(
        self,
        model: AvatarModel,
        kernels: Kernels,
        size: int,
        budget_mb: int,
        seed: int,
        slot_overhead: Callable[[int], int] | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        super().__init__(ReplayPolicy(model.code, budget_mb << 20, seed))
        self.model, self.kernels, self.size = model, kernels, size
        self.recalled: set[int] = set()
        self.side = self.slots = 0
        self.states: torch.Tensor
        self.frames: Struct
        self._frame_ids: dict[int, int] = {}
        self._slot_overhead, self._stream = slot_overhead, stream
        self._slot_bytes = 0
        self._chunks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._memory: list[tuple[SlotMemory, SlotMemory]] = []  # of the chunks, on a CPU

    @property
    def order(self) -> list[int]:
        """The slots in use, ordered by the age of their frames, oldest first."""
        return self.policy.items

    @property
    def frame_ids(self) -> list[int]:
        """Frame numbers of the stored observations, oldest first."""
        return [self._frame_ids[slot] for slot in self.order]

    @property
    def pool_sizes(self) -> tuple[int, int]:
        """Number of valid entries of ``frames.newest`` and ``frames.deck``."""
        return len(self.policy.newest), len(self.policy.pool)

    def take_in(self) -> dict[int, HeadState]:
        """Store the queued observations: the tracked head states by slot of all slots with a new image.

        The caller must pass each of these slots to `list_tiles` before it is drawn.
        """
        incoming = self.policy.pop_incoming()
        new: dict[int, HeadState] = {}
        if not incoming:
            return new
        with self._on_stream():
            changed = [self.model.code.observe(observation.state) for observation in incoming]
            for observation in incoming:
                slot = self._store(observation)
                new.pop(slot, None)  # a slot that was filled twice counts as new once, at the second place
                new[slot] = observation.state
            if any(changed):
                codes = torch.from_numpy(self.model.code.learned(self._raw_codes))
                self.states[:, -CODE_WIDTH:] = codes.to(self.states.device)
            self._update_pools()
        return new

    def add_recalled(self, observation: Observation) -> dict[int, HeadState]:
        """Store a frame that the avatar rendered; returns its slot and state as `take_in` does."""
        with self._on_stream():
            slot = self._store(observation, recalled=True)
            self._update_pools()
        return {slot: observation.state}

    def set_budget(self, budget: int) -> dict[int, int]:
        """Set the memory budget in bytes (on a CPU only): frames beyond it are evicted, and their memory is released.

        Slots in use stay the first ones: the returned moves give the new slot of each frame that changed its slot, by
        its former slot.  The caller must prepare the new slots as after `take_in`.
        """
        moves: dict[int, int] = {}
        if not self.side:
            return moves
        before, smallest = len(self), RECENT * self._slot_bytes
        evicted = self.policy.set_budget(max(smallest, min(budget, self.slots * self._slot_bytes)))
        if not evicted:
            return moves
        self.recalled.difference_update(evicted)
        used = len(self)
        holes = [slot for slot in sorted(evicted) if slot < used]
        for entry in self.policy.entries:
            if entry.item >= used:
                moves[entry.item] = entry.item = self._move(entry.item, holes.pop())
        self._release(used, before)
        self._update_pools()
        return moves

    def image(self, slot: int) -> torch.Tensor:
        """The image of a slot, a view (height, width, 4) uint8 of premultiplied RGBA."""
        width, height = self.sizes[slot]
        return self._chunks[slot // CHUNK][0][slot % CHUNK, :height, :width]

    def list_tiles(self, slot: int, depth: torch.Tensor) -> None:
        """Sort the tiles of an image into those on the head, those around it, and the rest.

        The same regions as the pixels of `learn.replay.ReplayFrame`.  ``depth`` (side, side) is the depth of the posed
        mesh, infinite where there is none.
        """
        width, height = self.sizes[slot]
        padded = self._across * self._tile
        flags = torch.zeros((2, padded, padded), device=depth.device)
        flags[0, :height, :width] = dilated(self.image(slot)[..., 3] > 255.0 * MATTE, MATTE_GROWS).float()
        flags[1, :height, :width] = depth[:height, :width].isfinite().float()
        matte, mesh = torch.nn.functional.max_pool2d(flags[None], self._tile)[0] > 0.0
        near = dilated(mesh, math.ceil(self._margins[slot] / self._tile))
        near[math.ceil(height / self._tile) :] = False
        near[:, math.ceil(width / self._tile) :] = False
        head = mesh | (matte & near)
        # A stable sort by rank lists the tiles without transferring their number to the host.
        tiles = self._chunks[slot // CHUNK][1][slot % CHUNK]
        ranks = (head.int() + near.int()).flatten()
        tiles.copy_(ranks.argsort(descending=True, stable=True))
        self._tile_counts[slot] = torch.stack([head.sum(), (near & ~head).sum()])

    def _frame_bytes(self) -> int:
        return self._slot_bytes

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _store(self, observation: Observation, *, recalled: bool = False) -> int:
        """Copy an observation into a free slot and return the slot."""
        size, binary = min(self.size, self.side or self.size), self.model.config.learn.binary_matte
        rgba, camera = observation.premultiplied(size, self.model.device, binary=binary)
        height, width = rgba.shape[:2]
        if not self.side:
            self._allocate(max(width, height))
        entry = self.policy.make_entry(observation.state, self._slot_bytes, recalled=recalled)
        slot = self._free_slot(self.policy.evict_for(entry))
        self.policy.insert(entry, slot)
        if recalled:
            self.recalled.add(slot)
        self.sizes[slot] = (width, height)
        self._frame_ids[slot] = observation.frame_id
        self._margins[slot] = band_pixels(self.model, observation.state, camera)
        self._device_sizes[slot] = torch.tensor([width, height], dtype=torch.int32)
        self.states[slot] = torch.from_numpy(pack_state(self.model, observation.state, camera))
        # Training uses ray directions as they are, without the rotation into the range of seen views.
        self.states[slot, -CODE_WIDTH - 9 : -CODE_WIDTH] = torch.eye(3).flatten()
        self._raw_codes[slot] = self.model.code.raw(observation.state)
        self.states[slot, -CODE_WIDTH:] = torch.from_numpy(self.model.code.learned(self._raw_codes[slot]))
        self.image(slot).copy_(rgba * 255.0 + 0.5)
        return slot

    def _update_pools(self) -> None:
        self.policy.update_pools()
        for slots, chosen in ((self._newest, self.policy.newest), (self._deck, self.policy.pool)):
            slots[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)

    def _allocate(self, side: int) -> None:
        """Allocate everything but the images and tile lists, once the side of the images is known."""
        device = self.model.device
        self.side, self._tile = side, math.ceil(side / MAX_TILES)
        self._across = math.ceil(side / self._tile)
        slot_bytes = side * side * 4 + self._across**2 * 4 + (self._slot_overhead(side) if self._slot_overhead else 0)
        self.slots = slots = max(RECENT, self.policy.budget // slot_bytes)
        # The newest frames are kept whatever the budget is.  All frames have the same size, so that the slots in use
        # are always the first ones.
        self.policy.budget, self._slot_bytes = slots * slot_bytes, slot_bytes

        def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.states = torch.zeros((slots, _state_size(self.model)), device=device)
        self._raw_codes = np.zeros((slots, CODE_WIDTH), dtype=np.float32)  # before standardisation
        self.sizes: dict[int, tuple[int, int]] = {}
        self._margins: dict[int, int] = {}
        self._device_sizes, self._tile_counts = integers(slots, 2), integers(slots, 2)
        self._newest, self._deck = integers(RECENT), integers(slots)
        self._images, self._tiles = integers(slots, dtype=torch.int64), integers(slots, dtype=torch.int64)
        self.frames = self.kernels.struct(
            "ReplayFrames",
            images=self._images,
            size=self._device_sizes,
            states=self.states,
            tiles=self._tiles,
            tile_counts=self._tile_counts,
            newest=self._newest,
            deck=self._deck,
            side=side,
            tile=self._tile,
            tiles_across=self._across,
            state_size=self.states.shape[1],
        )

    def _move(self, source: int, target: int) -> int:
        """Copy the frame of slot ``source`` into ``target``, except for its list of tiles; returns ``target``."""
        for values in (self.states, self._raw_codes, self._device_sizes):
            values[target] = values[source]
        self.sizes[target] = self.sizes[source]
        self._margins[target], self._frame_ids[target] = self._margins[source], self._frame_ids[source]
        self.image(target).copy_(self.image(source))
        if source in self.recalled:
            self.recalled.remove(source)
            self.recalled.add(target)
        return target

    def _release(self, first: int, end: int) -> None:
        """Give the images and tile lists of the slots ``first`` to ``end`` - 1 back to the system."""
        for chunk, memories in enumerate(self._memory):
            start = chunk * CHUNK
            for memory in memories:
                memory.release(max(0, first - start), min(CHUNK, end - start))

    def _free_slot(self, evicted: list[int]) -> int:
        """The slot of the ``evicted`` frame, or the next unused slot."""
        if evicted:
            (slot,) = evicted
            self.recalled.discard(slot)
            return slot
        slot = len(self)
        if slot == len(self._chunks) * CHUNK:
            self._allocate_chunk()
        return slot

    def _allocate_chunk(self) -> None:
        first, device = len(self._chunks) * CHUNK, self.model.device
        count = min(CHUNK, self.slots - first)
        shapes = (count, self.side, self.side, 4), (count, self._across**2)
        if device.type == "cpu":
            self._memory.append((SlotMemory(shapes[0], torch.uint8), SlotMemory(shapes[1], torch.int32)))
            images, tiles = (memory.rows for memory in self._memory[-1])
        else:
            images = torch.zeros(shapes[0], dtype=torch.uint8, device=device)
            tiles = torch.zeros(shapes[1], dtype=torch.int32, device=device)
        self._chunks.append((images, tiles))
        for addresses, memory in ((self._images, images), (self._tiles, tiles)):
            each = memory[0].numel() * memory.element_size()
            addresses[first : first + count] = torch.tensor([memory.data_ptr() + i * each for i in range(count)])


def _state_size(model: AvatarModel) -> int:
    return len(model.head.expression_names) + FIXED_STATE_NUMBERS + PARTS * MOTION + CODE_WIDTH
