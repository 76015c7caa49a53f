"""What a person does with their face, as far as it was seen: a fair sample of tracked states."""

from __future__ import annotations

import numpy as np
import torch

from insta_runtime.types import Float32, HeadState

CAPACITY = 512  # states: some 100 kB, and rare extremes of a call are among them
LARGEST = 1e4  # no number of a state is larger

_PARTS = {"jaw_pose": 3, "neck_pose": 3, "eye_pose": 6, "eyelids": 2, "rotation": 3, "translation": 3}


class Repertoire:
    """At most `CAPACITY` of the states that were observed, each as likely to be here as any other (algorithm R).

    Args:
        expressions: how many expression weights a state has.

    Attributes:
        rows: (N, expressions + 20) float32, the states as rows of numbers; `column` takes them apart.
        count: states observed so far.
    """

    def __init__(self, expressions: int) -> None:
        self.expressions, self.count = expressions, 0
        self._rows = np.zeros((CAPACITY, expressions + sum(_PARTS.values())), dtype=np.float32)

    def __len__(self) -> int:
        return min(self.count, CAPACITY)

    @property
    def rows(self) -> Float32:
        return self._rows[: len(self)]

    def observe(self, state: HeadState) -> int | None:
        """Take note of a state: the place that it gets among `rows`, or None if the lot falls against it."""
        self.count += 1
        place = self.count - 1
        if place >= CAPACITY:
            # Seeded by the count alone: the same call gives the same sample, and a stored one goes on as it would.
            place = int(np.random.default_rng(self.count).integers(self.count))
        if place >= CAPACITY:
            return None
        parts = [np.ravel(getattr(state, name)) for name in ("expression", *_PARTS)]
        row = np.concatenate(parts)
        self._rows[place] = np.where(np.abs(row) <= LARGEST, row, 0.0)
        return place

    def column(self, name: str) -> Float32:
        """The field ``name`` of all states here, (N, numbers)."""
        if name == "expression":
            return self.rows[:, : self.expressions]
        names = list(_PARTS)
        first = self.expressions + sum(_PARTS[before] for before in names[: names.index(name)])
        return self.rows[:, first : first + _PARTS[name]]

    def state(self, place: int) -> HeadState:
        """The state at ``place``; when it was is not known any more."""
        fields = {name: self.column(name)[place].copy() for name in ("expression", *_PARTS)}
        return HeadState(**fields | {"eye_pose": fields["eye_pose"].reshape(2, 3)})

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a file: ``states`` (N, expressions + 20) and ``count`` (1,)."""
        return {"states": torch.from_numpy(self.rows.copy()), "count": torch.tensor([float(self.count)])}

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], expressions: int) -> Repertoire:
        """What `tensors` gave.  KeyError or ValueError if there can be none like it."""
        repertoire = Repertoire(expressions)
        rows, count = tensors["states"].numpy(), tensors["count"]
        width = repertoire._rows.shape[1]
        if count.shape != (1,) or not 0 <= float(count) <= 1 << 24 or float(count) % 1.0:
            raise ValueError("its states were not counted")
        repertoire.count = int(count)
        if rows.shape != (len(repertoire), width) or (np.abs(rows) > LARGEST).any():
            raise ValueError("its states do not fit the head model")
        repertoire._rows[: len(repertoire)] = rows
        return repertoire
