"""How one snapshot becomes the next in the pictures that are shown: evenly over a short time, whatever their rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FADE_S: Final = 0.8
"""A snapshot is shown alone so many seconds after it was loaded.  They come about once a second: it is shorter, so that
each arrives, and hardly shorter, so that no picture differs from the one before it by more than it must."""


@dataclass
class Fade:
    """One snapshot's way to the next, in seconds of any clock that only goes forward.

    Attributes:
        done: how far it is, 0 to 1.
    """

    done: float = 1.0
    _began: float = 0.0

    @property
    def under_way(self) -> bool:
        return self.done < 1.0

    def begin(self, now: float) -> None:
        """A snapshot has come, and what is shown now fades into it."""
        self.done, self._began = 0.0, now

    def settle(self) -> None:
        """The snapshot is shown alone."""
        self.done = 1.0

    def advance(self, now: float) -> float:
        """The part of what is left of the way that a picture of the moment ``now`` goes: 1 if it arrives."""
        done = min(1.0, max(self.done, (now - self._began) / FADE_S))
        part = 1.0 if done >= 1.0 else (done - self.done) / (1.0 - self.done)
        self.done = done
        return part
