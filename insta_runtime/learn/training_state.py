"""A training at one moment: what it takes to go on from there, in memory or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from insta_runtime import avatar_file as files
from insta_runtime.errors import UserError
from insta_runtime.render.renderer import Snapshot, take_snapshot

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

FORMAT_VERSION: Final = 1
LARGEST: Final = 65504.0
"""Of a weight: beyond it, the half precision that kernels read it in overflows."""
PARTS: Final = ("weights", "first", "second")


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on from one moment, but for its pictures.  Nothing in it is ever written to.

    Attributes:
        steps: done so far; updates: of Adam, since its moments were zero.
        shown: the averaged weights and all else that a snapshot has.
        weights: as they are learned, by the names of the field's ``state_dict``; first, second: Adam's moments of them.
    """

    steps: int
    updates: int
    shown: Snapshot
    weights: Snapshot
    first: Snapshot
    second: Snapshot

    @property
    def averaged(self) -> Snapshot:
        """The averaged weights."""
        return {name: self.shown[name] for name in self.weights}

    def is_sound(self) -> bool:
        """Whether all of it is finite, and no weight too large.  Waits for a GPU."""
        weights = torch.stack([_largest(part) for part in (self.weights, self.averaged)])
        rest = torch.stack([_largest(part) for part in (self.shown, self.first, self.second)])
        return bool((weights <= LARGEST).all() & rest.isfinite().all())

    def fits(self, other: TrainingState) -> bool:
        """Whether this is of the same field, grid and head."""
        mine, theirs = ([s.shown, s.weights, s.first, s.second] for s in (self, other))
        return [_shapes(part) for part in mine] == [_shapes(part) for part in theirs]

    def record(self, avatar: str) -> tuple[dict[str, Any], Snapshot]:
        """Header and tensors of a file beside the avatar whose seal is ``avatar``, which has what is shown."""
        header = {"version": FORMAT_VERSION, "avatar": avatar, "steps": self.steps, "updates": self.updates}
        return header, {f"{part}.{name}": t for part in PARTS for name, t in getattr(self, part).items()}

    @staticmethod
    def read(file: Path, avatar: str | None, model: AvatarModel) -> TrainingState:
        """What `record` gave, if it is of the avatar that was read into ``model``, with the seal ``avatar``.

        UserError if it is damaged or of another one.
        """
        content = files.read(file)
        if avatar is None or content.header.get("avatar") != avatar:
            raise UserError(f"{file} belongs to another avatar than the one beside it")
        parts: dict[str, Snapshot] = {part: {} for part in PARTS}
        try:
            if content.header["version"] != FORMAT_VERSION:
                raise ValueError("it is of another version")
            for name, tensor in content.tensors.items():
                part, _, key = name.partition(".")
                parts[part][key] = tensor.to(model.device)
            if any(_shapes(part) != _shapes(model.field.state_dict()) for part in parts.values()):
                raise ValueError("it does not fit the avatar's field")
            steps, updates = int(content.header["steps"]), int(content.header["updates"])
            if steps < 0 or updates < 0 or any(bool((tensor < 0.0).any()) for tensor in parts["second"].values()):
                raise ValueError("it holds what no training comes to")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise files.damaged(file, error) from None
        return TrainingState(steps, updates, take_snapshot(model), **parts)


def _largest(part: Snapshot) -> torch.Tensor:
    """The largest magnitude, a number on the device; NaN if there is one."""
    return torch.stack([tensor.abs().amax() for tensor in part.values() if tensor.numel()]).amax()


def _shapes(part: Snapshot) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in part.items()}
