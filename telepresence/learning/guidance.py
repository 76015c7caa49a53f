"""Which directions and expressions of a face have been seen, and what to ask for next: pure functions.

Nothing of it is required: what was not asked for is learned as well, once it is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Float32, HeadState

DIRECTIONS: Final = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
"""Sectors of the ring as the person means them, anticlockwise as they see themselves in a mirror, from their right."""
TURNED: Final = math.radians(12.0)
"""A head that is turned by so much looks into a sector of the ring ..."""
AHEAD: Final = math.radians(8.0)
"""... and by less than that straight ahead."""
FLATTER: Final = 1.4
"""Heads nod less than they turn: pitch counts so many times."""
ENOUGH: Final = 3
"""Pictures after which a direction or an expression has been seen."""

OPEN: Final = 0.35
"""Of the unit ``jawOpen``: the mouth is open ..."""
OPEN_JAW: Final = math.radians(6.0)
"""... or the jaw turned by so much, where a head model has joints."""
SMILE: Final = 0.4
"""Mean of the units ``mouthSmile*``."""
BROWS: Final = 0.35
"""Of the unit ``browInnerUp``."""
SPOKEN: Final = 0.02
"""Mean change of the mouth's units (or, for a jaw, radians) from picture to picture, above which somebody talks ..."""
SPEECH: Final = 12
"""... if it lasts for so many pictures of the newest `SPEECH` x 2."""


@dataclass(frozen=True)
class Prompt:
    """Something to see, under the ``key`` of `/status`, and how to ask for it."""

    key: str
    hint: str


PROMPTS: Final = (
    Prompt("ahead", "Look straight into the camera."),
    Prompt("left", "Turn your head to the left."),
    Prompt("right", "Turn your head to the right."),
    Prompt("talk", "Say a sentence or two."),
    Prompt("smile", "Smile, and show your teeth."),
    Prompt("up", "Look up a little."),
    Prompt("open", "Open your mouth."),
    Prompt("down", "Look down a little."),
    Prompt("brows", "Raise your eyebrows."),
)
"""In the order in which they are asked for: what is seen most in a call comes first."""


@dataclass(frozen=True)
class Guidance:
    """How often each direction and expression has been seen.

    ``ring`` counts `DIRECTIONS`, ``seen`` the keys of `PROMPTS` that ``head`` can show; ``spoken`` says of the
    newest pictures whether the mouth moved since the one before, ``mouth`` how it stood in the newest.
    """

    names: tuple[str, ...]
    ring: tuple[int, ...] = (0,) * len(DIRECTIONS)
    seen: tuple[tuple[str, int], ...] = ()
    spoken: tuple[bool, ...] = ()
    mouth: tuple[float, ...] | None = None

    @staticmethod
    def of(names: Sequence[str]) -> Guidance:
        """Nothing seen yet, of a head whose expression units have these names."""
        units = set(names)
        can = {
            "smile": {"mouthSmileLeft", "mouthSmileRight"} <= units,
            "brows": "browInnerUp" in units,
        }
        return Guidance(tuple(names), seen=tuple((wish.key, 0) for wish in PROMPTS if can.get(wish.key, True)))

    def after(self, state: HeadState) -> Guidance:
        """With one more picture, in which the face was in ``state``."""
        turn, nod = direction(state.rotation)
        angle = math.hypot(turn, FLATTER * nod)
        found = self._expressions(state)
        ring = list(self.ring)
        if angle >= TURNED:
            sector = round(math.atan2(FLATTER * nod, -turn) / (2.0 * math.pi / len(DIRECTIONS))) % len(DIRECTIONS)
            ring[sector] += 1
            # Up and to the left is left as well as up.
            found |= set(DIRECTIONS[sector].split())
        elif angle < AHEAD:
            found.add("ahead")
        mouth = self._mouth(state)
        moved = self.mouth is not None and float(np.abs(np.subtract(mouth, self.mouth)).mean()) > SPOKEN
        spoken = (*self.spoken, moved)[-2 * SPEECH :]
        if sum(spoken) >= SPEECH:
            found.add("talk")
        seen = tuple((key, count + (key in found)) for key, count in self.seen)
        return replace(self, ring=tuple(ring), seen=seen, spoken=spoken, mouth=mouth)

    @property
    def directions(self) -> tuple[float, ...]:
        """How much of each of `DIRECTIONS` has been seen, 0 to 1."""
        return tuple(min(count / ENOUGH, 1.0) for count in self.ring)

    @property
    def expressions(self) -> dict[str, bool]:
        """Which of the wishes have been fulfilled, by key."""
        return {key: count >= self._enough(key) for key, count in self.seen}

    @property
    def hint(self) -> str | None:
        """What to ask for next; None when all that is asked for has been seen."""
        done = self.expressions
        return next((wish.hint for wish in PROMPTS if not done.get(wish.key, True)), None)

    def _enough(self, key: str) -> int:
        return 1 if key == "talk" else ENOUGH

    def _unit(self, state: HeadState, *units: str) -> float:
        values = [float(state.expression[self.names.index(unit)]) for unit in units if unit in self.names]
        return sum(values) / len(values) if values else 0.0

    def _expressions(self, state: HeadState) -> set[str]:
        found = set()
        if self._unit(state, "jawOpen") > OPEN or float(np.linalg.norm(state.jaw_pose)) > OPEN_JAW:
            found.add("open")
        if self._unit(state, "mouthSmileLeft", "mouthSmileRight") > SMILE:
            found.add("smile")
        if self._unit(state, "browInnerUp") > BROWS:
            found.add("brows")
        return found

    def _mouth(self, state: HeadState) -> tuple[float, ...]:
        units = ("jawOpen", "mouthFunnel", "mouthPucker", "mouthClose", "mouthStretchLeft")
        if "jawOpen" in self.names:
            return tuple(self._unit(state, unit) for unit in units)
        return tuple(float(angle) for angle in state.jaw_pose)


def direction(rotation: Float32) -> tuple[float, float]:
    """Where a head with this rotation (axis-angle, to the camera) looks: to its own left and up, in radians."""
    ahead = rotation_matrix(rotation) @ np.array([0.0, 0.0, 1.0])
    return float(np.arctan2(ahead[0], -ahead[2])), float(np.arctan2(-ahead[1], np.hypot(ahead[0], ahead[2])))
