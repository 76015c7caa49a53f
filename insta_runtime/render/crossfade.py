"""Crossfade between two weight snapshots: linear in time, independent of the frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FADE_S: Final = 0.8
"""Duration of a crossfade in seconds: slightly less than the interval between snapshots (about one second), so that
each fade completes and the change from frame to frame is small."""


@dataclass
class Crossfade:
    """Progress of the crossfade from one weight snapshot to the next; times are seconds of any monotonic clock.

    Attributes:
        done: completed share of the fade, 0 to 1.
    """

    done: float = 1.0
    _began: float = 0.0

    @property
    def under_way(self) -> bool:
        """Whether the fade is not complete."""
        return self.done < 1.0

    def begin(self, now: float) -> None:
        """Start a fade at the time ``now``."""
        self.done, self._began = 0.0, now

    def settle(self) -> None:
        """Complete the fade at once."""
        self.done = 1.0

    def advance(self, now: float) -> float:
        """Advance the fade to the time ``now`` in seconds.

        Returns the share of the remaining distance to the new weights that this step covers; 1 if the fade is complete.
        """
        done = min(1.0, max(self.done, (now - self._began) / FADE_S))
        part = 1.0 if done >= 1.0 else (done - self.done) / (1.0 - self.done)
        self.done = done
        return part
