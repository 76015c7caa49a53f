"""How large to render and how much to train, from measured times: pure functions, no clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

SIZES: Final = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Sides in pixels at which the avatar is rendered; the stream's side stays the same whatever this is."""

SLOWER: Final = 1.15
"""A picture that takes this many times its budget makes the next one smaller."""

FASTER: Final = 0.8
"""A larger picture is tried once it is predicted to take at most this part of the budget."""


@dataclass(frozen=True)
class Resolution:
    """The side at which to render (pixels), the smoothed time of a picture of that side (ms), the largest side."""

    side: int = 128
    ms: float | None = None
    largest: int = SIZES[-1]

    def after(self, measured_ms: float, budget_ms: float) -> Resolution:
        """The resolution for the next picture, after one of this side that took ``measured_ms``.

        The time of a picture grows with its area; the gap between ``SLOWER`` and ``FASTER`` keeps the side
        from swinging between two neighbours.
        """
        ms = measured_ms if self.ms is None else 0.7 * self.ms + 0.3 * measured_ms
        index = SIZES.index(self.side)
        if ms > SLOWER * budget_ms and index > 0:
            return self._resized(SIZES[index - 1], ms)
        if self.side < self.largest:
            larger = self._resized(SIZES[index + 1], ms)
            if larger.ms is not None and larger.ms <= FASTER * budget_ms:
                return larger
        return replace(self, ms=ms)

    def _resized(self, side: int, ms: float) -> Resolution:
        return replace(self, side=side, ms=ms * (side / self.side) ** 2)


def largest_side(stream: int) -> int:
    """The largest side worth rendering for a stream of ``stream`` pixels."""
    return max((side for side in SIZES if side <= stream), default=SIZES[0])


def training_pause(step_s: float, duty: float) -> float:
    """Seconds to rest after a training step of ``step_s``, so that training takes ``duty`` of its thread's time."""
    return step_s * (1.0 - duty) / duty


LEAST_RAYS: Final = 0.125
"""Part of its rays that a training step keeps, however busy the display is."""


def ray_part(part: float, load: float) -> float:
    """The part of its rays that a step on the display's GPU may draw, after a picture that took ``load`` of its time.

    A picture must not take more than half of the time until the next one: a step that was begun is not interrupted.
    """
    return max(LEAST_RAYS, 0.8 * part) if load > 0.5 else min(1.0, 1.05 * part)


CORES_PART: Final = 0.5
"""Part of the cores that training may use beside a GPU: for what it does not compute there."""


@dataclass(frozen=True)
class CpuShare:
    """How a machine is shared: intra-op threads of rendering and training, the part of its time that training works."""

    render_threads: int
    train_threads: int
    duty: float

    @staticmethod
    def of(cores: int, train_share: float, device: str = "cpu") -> CpuShare:
        """Training gets ``train_share`` (0..1) of the cores or of a GPU's time, rendering the other cores but one."""
        on_cpu = device == "cpu"
        train = max(1, int(cores * (train_share if on_cpu else CORES_PART)))
        duty = train_share * cores / train if on_cpu else train_share
        return CpuShare(max(1, cores - train - 1), train, min(1.0, max(duty, 0.01)))


AT_ONCE: Final = 4
"""Processor cores that tracking and drawing on the processor fill together."""


def take_turns(cores: int, device: str) -> bool:
    """Whether tracking and drawing had better wait for each other on a machine of so many ``cores``.

    Side by side on too few of them both take twice as long: no more pictures come of it, only older ones.
    """
    return device == "cpu" and cores < AT_ONCE
