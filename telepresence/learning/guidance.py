"""Guidance of the subject: counts of the head directions and expressions seen, and the next prompt to the user.

Prompts are optional: directions and expressions are learned without a prompt, too.  All functions are pure.
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
"""Eight equal sectors of head directions around the camera's direction, named from the subject's point of view."""
TURNED: Final = math.radians(12.0)
"""Minimum angle (radians) between head direction and camera at which a frame counts for a sector of `DIRECTIONS`."""
AHEAD: Final = math.radians(8.0)
"""Maximum angle (radians) between head direction and camera at which the head counts as facing the camera."""
PITCH_WEIGHT: Final = 1.4
"""Factor on pitch when it is combined with yaw, because heads rotate less far in pitch."""
ENOUGH: Final = 3
"""Number of frames after which a direction or an expression counts as seen."""

OPEN: Final = 0.35
"""Value of the face unit ``jawOpen`` above which the mouth is open."""
OPEN_JAW: Final = math.radians(6.0)
"""Rotation of the jaw joint, radians, above which the mouth is open; for head models with a jaw joint."""
SMILE: Final = 0.4
"""Mean value of the face units ``mouthSmileLeft`` and ``mouthSmileRight`` above which the subject smiles."""
BROWS: Final = 0.35
"""Value of the face unit ``browInnerUp`` above which the eyebrows are raised."""
SPOKEN: Final = 0.02
"""Mean change of the mouth units (or of the jaw angles, radians) between two frames above which the mouth moves."""
SPEECH: Final = 12
"""Number of frames with a moving mouth, among the newest 2 x `SPEECH`, that count as talking."""


@dataclass(frozen=True)
class Prompt:
    """Request to the subject: ``key`` names the direction or expression in `/status`, ``hint`` is the text shown."""

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
"""All prompts in the order in which they are shown: the most frequent poses of a call first."""


@dataclass(frozen=True)
class Guidance:
    """Immutable counts of the head directions and expressions of one subject that were seen.

    Attributes:
        names: names of the head model's expression units.
        ring: number of frames for each sector of `DIRECTIONS`.
        seen: (key, number of frames) for each of `PROMPTS` that the head model can express.
        spoken: for each of the newest frames, whether the mouth moved since the frame before.
        mouth: mouth units, or jaw angles (radians), of the newest frame; None before the first.
    """

    names: tuple[str, ...]
    ring: tuple[int, ...] = (0,) * len(DIRECTIONS)
    seen: tuple[tuple[str, int], ...] = ()
    spoken: tuple[bool, ...] = ()
    mouth: tuple[float, ...] | None = None

    @staticmethod
    def of(names: Sequence[str]) -> Guidance:
        """Initial guidance, without any frame, for a head model with the expression units ``names``."""
        units = set(names)
        can = {
            "smile": {"mouthSmileLeft", "mouthSmileRight"} <= units,
            "brows": "browInnerUp" in units,
        }
        return Guidance(tuple(names), seen=tuple((each.key, 0) for each in PROMPTS if can.get(each.key, True)))

    def after(self, state: HeadState) -> Guidance:
        """The counts after one more frame with the face in ``state``."""
        turn, nod = direction(state.rotation)
        angle = math.hypot(turn, PITCH_WEIGHT * nod)
        found = self._expressions(state)
        ring = list(self.ring)
        if angle >= TURNED:
            sector = round(math.atan2(PITCH_WEIGHT * nod, -turn) / (2.0 * math.pi / len(DIRECTIONS))) % len(DIRECTIONS)
            ring[sector] += 1
            # A diagonal sector counts for both of its directions.
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
        """Progress (0 to 1) for each of `DIRECTIONS`: number of frames seen divided by `ENOUGH`."""
        return tuple(min(count / ENOUGH, 1.0) for count in self.ring)

    @property
    def expressions(self) -> dict[str, bool]:
        """Whether each direction or expression was seen often enough, by the key of its prompt."""
        return {key: count >= self._enough(key) for key, count in self.seen}

    @property
    def hint(self) -> str | None:
        """Text of the next prompt; None when all directions and expressions were seen often enough."""
        done = self.expressions
        return next((each.hint for each in PROMPTS if not done.get(each.key, True)), None)

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
    """Head direction relative to the camera in radians: (yaw to the subject's left, pitch up).

    ``rotation`` (3,) is the axis-angle rotation from head space to camera space.
    """
    ahead = rotation_matrix(rotation) @ np.array([0.0, 0.0, 1.0])
    return float(np.arctan2(ahead[0], -ahead[2])), float(np.arctan2(-ahead[1], np.hypot(ahead[0], ahead[2])))
