"""The synthetic actor as a live camera, and as a clip; every frame carries its ground truth."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.types import Bytes
from telepresence.actor.performance import PERIOD, Performance
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.sources.source import SourceIdentity

if TYPE_CHECKING:
    from telepresence.actor.actor import Actor

COMPRESSION: Final = 1
"""Level of zlib at which frames are cached: the fastest one."""


class SyntheticSource:
    """Live camera before the synthetic actor, at ``size`` x ``size`` pixels.

    Frames are rendered at ``drawn`` pixels, enlarged, and cached in compressed form, without loss: the performance
    repeats after `performance.PERIOD` seconds.  During the first period only every second frame is rendered, to leave
    processor time to other stages; the second period renders the others, and afterwards all frames come from the cache.
    """

    def __init__(self, size: int = 512, *, drawn: int = 256, fps: float = 12.5, seed: int = 0) -> None:
        from telepresence.actor.actor import Actor

        self.name = "synthetic"
        self.fps = fps
        self._size = size
        self._drawn = drawn
        self._actor = Actor(seed)
        self._performance = Performance(self._actor.head.expression_names, seed)
        self._round = round(PERIOD * fps)  # number of frames until the performance repeats
        self._kept: dict[int, bytes] = {}  # image, alpha and body matte, compressed
        self._start = time.monotonic()
        self._last = -1
        self._drew_last = False

    @property
    def actor(self) -> Actor:
        """The actor that is rendered."""
        return self._actor

    @property
    def identity(self) -> SourceIdentity:
        """Identity of the actor."""
        return SourceIdentity(self._actor.head.sha256, self._actor.shape)

    def read(self, timeout: float) -> CameraFrame | None:
        """Next frame when it is due; None after ``timeout`` seconds."""
        now = time.monotonic()
        number = math.floor((now - self._start) * self.fps)
        if number <= self._last:
            number = self._last + 1
        if self._drew_last and number == self._last + 1 and number % self._round not in self._kept:
            number += 1
        wait = self._start + number / self.fps - now
        if wait > timeout:
            time.sleep(timeout)
            return None
        time.sleep(max(wait, 0.0))
        self._drew_last = number % self._round not in self._kept
        self._last = number
        return self._frame(number)

    def _frame(self, number: int) -> CameraFrame:
        state = self._performance((number % self._round) * PERIOD / self._round)
        state = state.at(int((self._start + number / self.fps) * 1e9))
        camera = self._actor.camera(self._size)
        rgb, alpha, body = self._image(number % self._round)
        return CameraFrame(number, state.t_capture_ns, rgb, GroundTruth(state, alpha, camera, body))

    def _image(self, number: int) -> tuple[Bytes, Bytes, Bytes]:
        """Image, alpha and body matte of frame ``number`` of the performance, enlarged to the output size."""
        if number not in self._kept:
            state = self._performance(number * PERIOD / self._round)
            layers = self._actor.layers(state, self._actor.camera(self._drawn))
            self._kept[number] = zlib.compress(b"".join(layer.tobytes() for layer in layers), COMPRESSION)
        values = np.frombuffer(bytearray(zlib.decompress(self._kept[number])), np.uint8)
        side, colours = self._drawn, 3 * self._drawn**2
        rgb, mattes = values[:colours].reshape(side, side, 3), values[colours:].reshape(2, side, side)
        alpha, body = (_enlarge(matte[..., None], self._size)[..., 0] for matte in mattes)
        return _enlarge(rgb, self._size), alpha, body

    def close(self) -> None:
        """Drop the cached frames."""
        self._kept.clear()


def actor_clip(
    frames: int, fps: float = 12.5, size: int = 512, seed: int = 0, actor: Actor | None = None
) -> Iterator[CameraFrame]:
    """Clip of the actor: ``frames`` frames of ``size`` x ``size`` px with their ground truth, generated without delay.

    Capture times start at 0.  ``actor``: an existing actor, which saves building one.
    """
    from telepresence.actor.actor import Actor

    rendered_actor = actor or Actor(seed)
    performance = Performance(rendered_actor.head.expression_names, seed)
    camera = rendered_actor.camera(size)
    for number in range(frames):
        state = performance(number / fps)
        rgb, alpha, body = rendered_actor.layers(state, camera)
        yield CameraFrame(number, state.t_capture_ns, rgb, GroundTruth(state, alpha, camera, body))


def _enlarge(image: Bytes, size: int) -> Bytes:
    """Resize (H, W, C) uint8 to (size, size, C), bicubic."""
    import torch
    from torch.nn import functional

    if image.shape[0] == size:
        return image
    channels_first = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    large = functional.interpolate(channels_first, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return np.ascontiguousarray(large[0].permute(1, 2, 0).numpy())
