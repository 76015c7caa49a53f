"""Training state: a checkpoint of weights and optimiser from which training resumes, in memory or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from insta_runtime import avatar_file
from insta_runtime.errors import UserError
from insta_runtime.field.radiance import with_head_part
from insta_runtime.render.renderer import Snapshot, take_snapshot

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

FORMAT_VERSION: Final = 2
"""Format version of the training file; in version 1 expression codes had no head part."""
LARGEST: Final = 65504.0
"""Largest magnitude of a valid weight: the largest number of half precision, which kernels use."""
PARTS: Final = ("weights", "first", "second")
"""Prefixes of the names of tensors in the training file: the fields of `TrainingState` that it holds."""


@dataclass(frozen=True)
class TrainingState:
    """Checkpoint of training: everything that is needed to resume it except the training frames.  Never changed.

    Attributes:
        steps: number of training steps so far.
        updates: number of Adam updates since its moments were zero.
        shown: snapshot of the model: averaged weights, occupancy, pose refinement, underlay.
        weights: weights of the field, without averaging, by their names in its ``state_dict``.
        first, second: Adam's first and second moments of the weights.
    """

    steps: int
    updates: int
    shown: Snapshot
    weights: Snapshot
    first: Snapshot
    second: Snapshot

    @property
    def averaged(self) -> Snapshot:
        """Averaged weights of the field, by their names in its ``state_dict``."""
        return {name: self.shown[name] for name in self.weights}

    def is_valid(self) -> bool:
        """Whether all numbers are finite and no weight exceeds `LARGEST` in magnitude.  Synchronises with the GPU."""
        weights = torch.stack([_largest(part) for part in (self.weights, self.averaged)])
        rest = torch.stack([_largest(part) for part in (self.shown, self.first, self.second)])
        return bool((weights <= LARGEST).all() & rest.isfinite().all())

    def fits(self, other: TrainingState) -> bool:
        """Whether both checkpoints have tensors of the same names and shapes, so that one can replace the other."""
        mine, theirs = ([s.shown, s.weights, s.first, s.second] for s in (self, other))
        return [_shapes(part) for part in mine] == [_shapes(part) for part in theirs]

    def file_contents(self, avatar: str) -> tuple[dict[str, Any], Snapshot]:
        """Header and tensors of the training file that belongs to the avatar file with the seal ``avatar``.

        The snapshot `shown` is not among them: it is in the avatar file.
        """
        header = {"version": FORMAT_VERSION, "avatar": avatar, "steps": self.steps, "updates": self.updates}
        return header, {f"{part}.{name}": t for part in PARTS for name, t in getattr(self, part).items()}

    @staticmethod
    def read(file: Path, avatar: str | None, model: AvatarModel) -> TrainingState:
        """Read the training file that belongs to the avatar with the seal ``avatar``, already loaded into ``model``.

        The snapshot `shown` is taken from ``model``.  Raises UserError if the file is missing, damaged or belongs to
        another avatar.
        """
        content = avatar_file.read(file)
        if avatar is None or content.header.get("avatar") != avatar:
            raise UserError(f"{file} belongs to another avatar than the one in its folder: training state is not used")
        parts: dict[str, Snapshot] = {part: {} for part in PARTS}
        try:
            if content.header["version"] not in (1, FORMAT_VERSION):
                raise ValueError("it has another format version")
            for name, tensor in content.tensors.items():
                part, _, key = name.partition(".")
                parts[part][key] = tensor.to(model.device)
            if content.header["version"] == 1:
                parts = {name: with_head_part(part) for name, part in parts.items()}
            if any(_shapes(part) != _shapes(model.field.state_dict()) for part in parts.values()):
                raise ValueError("its tensors do not fit the avatar's field")
            steps, updates = int(content.header["steps"]), int(content.header["updates"])
            if steps < 0 or updates < 0 or any(bool((tensor < 0.0).any()) for tensor in parts["second"].values()):
                raise ValueError("its step numbers or moments are negative")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise avatar_file.damaged(file, error) from None
        return TrainingState(steps, updates, take_snapshot(model), **parts)


def _largest(part: Snapshot) -> torch.Tensor:
    """Largest magnitude of all tensors, a scalar tensor on their device; NaN if any number is NaN."""
    return torch.stack([tensor.abs().amax() for tensor in part.values() if tensor.numel()]).amax()


def _shapes(part: Snapshot) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in part.items()}
