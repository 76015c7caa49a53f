"""Reservoir sample of the head states that an avatar was trained on."""

from __future__ import annotations

import numpy as np
import torch

from insta_runtime.types import Float32, HeadState

CAPACITY = 512
"""Maximum number of stored states, about 150 kB of the open head's."""
LARGEST = 1e4
"""Largest valid magnitude of a number of a state; larger ones are stored as zero."""

_PARTS = {"jaw_pose": 3, "neck_pose": 3, "eye_pose": 6, "eyelids": 2, "rotation": 3, "translation": 3}


class StateReservoir:
    """Uniform random sample of at most `CAPACITY` of the head states added so far (reservoir sampling, algorithm R).

    Args:
        expressions: number of expression weights of a state.

    Attributes:
        count: number of states added so far, stored or not.
    """

    def __init__(self, expressions: int) -> None:
        self.expressions, self.count = expressions, 0
        self._rows = np.zeros((CAPACITY, expressions + sum(_PARTS.values())), dtype=np.float32)

    def __len__(self) -> int:
        return min(self.count, CAPACITY)

    @property
    def rows(self) -> Float32:
        """Stored states, (N, expressions + 20) float32, one per row; `column` returns one field of all."""
        return self._rows[: len(self)]

    def observe(self, state: HeadState) -> int | None:
        """Add a state: returns its index in `rows`, or None if the random choice leaves it out."""
        self.count += 1
        place = self.count - 1
        if place >= CAPACITY:
            # Seeded by the count, so that the same states give the same sample, also after saving and loading.
            place = int(np.random.default_rng(self.count).integers(self.count))
        if place >= CAPACITY:
            return None
        parts = [np.ravel(getattr(state, name)) for name in ("expression", *_PARTS)]
        row = np.concatenate(parts)
        self._rows[place] = np.where(np.abs(row) <= LARGEST, row, 0.0)
        return place

    def column(self, name: str) -> Float32:
        """Values of the field ``name`` of `HeadState`, flattened, for all N stored states: one row per state."""
        if name == "expression":
            return self.rows[:, : self.expressions]
        names = list(_PARTS)
        first = self.expressions + sum(_PARTS[before] for before in names[: names.index(name)])
        return self.rows[:, first : first + _PARTS[name]]

    def state(self, place: int) -> HeadState:
        """The stored state at the index ``place`` of `rows`; its capture time is not stored and is zero."""
        fields = {name: self.column(name)[place].copy() for name in ("expression", *_PARTS)}
        return HeadState(**fields | {"eye_pose": fields["eye_pose"].reshape(2, 3)})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors for the avatar file: ``states`` (N, expressions + 20) and ``count`` (1,)."""
        return {"states": torch.from_numpy(self.rows.copy()), "count": torch.tensor([float(self.count)])}

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], expressions: int) -> StateReservoir:
        """Reservoir from the tensors that `tensors` returned.  Raises KeyError or ValueError if they are invalid."""
        reservoir = StateReservoir(expressions)
        rows, count = tensors["states"].numpy(), tensors["count"]
        width = reservoir._rows.shape[1]
        if count.shape != (1,) or not 0 <= float(count) <= 1 << 24 or float(count) % 1.0:
            raise ValueError("its count of head states is invalid")
        reservoir.count = int(count)
        if rows.shape != (len(reservoir), width) or (np.abs(rows) > LARGEST).any():
            raise ValueError("its stored head states do not fit the head model")
        reservoir._rows[: len(reservoir)] = rows
        return reservoir
