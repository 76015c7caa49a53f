"""An avatar as it is saved: a directory with ``avatar.safetensors``.

The tensors are the averaged weights, the occupancy, the identity and those of optional parts; the file's metadata holds
one JSON text, ``header``, with everything else: format version, head, camera, configuration, calibration, training.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch

from insta_runtime.config import AvatarConfig, from_dict, to_dict
from insta_runtime.errors import UserError
from insta_runtime.field.conditioning import ExpressionCode
from insta_runtime.field.hashgrid import level_rows
from insta_runtime.field.tcnn import TCNN_WEIGHTS, TcnnMissing
from insta_runtime.head import HeadModel
from insta_runtime.render.model import AvatarModel, use_tcnn
from insta_runtime.render.occupancy import CandidateCells
from insta_runtime.render.renderer import Snapshot, load_snapshot, take_snapshot
from insta_runtime.torso.layer import TorsoLayer
from insta_runtime.types import Camera, Float32

FORMAT_VERSION = 1
FILE_NAME = "avatar.safetensors"
CELLS = ("occupancy.cells", "occupancy.triangle", "occupancy.masks")  # indices as float32: exact below 2^24
MAX_HEADER = 1 << 20  # characters of JSON
MAX_SIDE = 1 << 14  # pixels of a picture


class AvatarPart(Protocol):
    """Something that an avatar may have and another may lack: stored as tensors ``<part_name>.<name>``."""

    part_name: ClassVar[str]

    def tensors(self) -> Snapshot:
        """All of it as float32 tensors, on any device, each a copy or never written to again."""

    @classmethod
    def from_tensors(cls, tensors: Snapshot, model: AvatarModel) -> Self:
        """What `tensors` gave, for ``model``; they are float32, finite and on the CPU, and nothing else is sure.

        KeyError, TypeError, ValueError or RuntimeError if there can be none like it, or more than it has a use for.
        """


P = TypeVar("P", bound=AvatarPart)
PARTS: tuple[type[AvatarPart], ...] = (ExpressionCode, TorsoLayer)
"""All parts that a file may hold."""


def choose_device(name: str) -> torch.device:
    """``auto``: the CUDA device if there is one, else the CPU.  UserError for ``cuda`` without a device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device can be used: try --device cpu, and see what `telepresence doctor` says")
    return torch.device(name)


def avatar_file(path: Path) -> Path:
    """The file of an avatar, from its directory or from the file itself."""
    return path if path.suffix == ".safetensors" else path / FILE_NAME


@dataclass
class Avatar:
    """One person's avatar: the model, the camera it was learned with, and what is known about its making.

    Attributes:
        camera: of the cropped pictures it was learned from.
        calibration: the tracker's calibration of this person and camera, JSON-able; None for exact states.
        seconds, steps: training so far.
    """

    model: AvatarModel
    camera: Camera
    calibration: dict[str, Any] | None = None
    seconds: float = 0.0
    steps: int = 0
    _parts: dict[str, AvatarPart] = field(default_factory=dict)
    _snapshot: Snapshot | None = None

    @staticmethod
    def create(
        head: HeadModel,
        shape: Float32,
        camera: Camera,
        config: AvatarConfig,
        device: str | torch.device,
        cells: CandidateCells | None = None,
    ) -> Avatar:
        """A new, untrained avatar of the person with identity code ``shape`` (S,)."""
        target = choose_device(device) if isinstance(device, str) else device
        avatar = Avatar(AvatarModel(head, shape, config, target, config.learn.seed, cells), camera)
        avatar.attach(avatar.model.code)
        return avatar

    def update(self, snapshot: Snapshot, steps: int, seconds: float | None = None) -> None:
        """Take over what was learned; this is what `save` writes."""
        self._snapshot, self.steps = snapshot, steps
        self.seconds = self.seconds if seconds is None else seconds

    def part(self, kind: type[P]) -> P | None:
        """The part of this kind, if the avatar has one."""
        found = self._parts.get(kind.part_name)
        return found if isinstance(found, kind) else None

    def attach(self, part: AvatarPart) -> None:
        """Take over a part of one of the kinds in `PARTS`, in place of an earlier one; `save` writes it."""
        self._parts[part.part_name] = part

    def save(self, path: Path) -> None:
        """Write the avatar into the directory ``path``, whole or not at all.

        Raises UserError if it cannot be written.
        """
        from safetensors.torch import save

        model = self.model
        header = {
            "version": FORMAT_VERSION,
            "head": {"name": model.head.name, "basis": model.head.basis, "sha256": model.head.sha256},
            "camera": {name: getattr(self.camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")},
            "config": to_dict(model.config),
            "calibration": self.calibration,
            "seconds": self.seconds,
            "steps": self.steps,
        }
        tensors = self._snapshot if self._snapshot is not None else take_snapshot(model)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        for name, part in self._parts.items():
            tensors |= {f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in part.tensors().items()}
        tensors["shape"] = torch.from_numpy(model.shape.astype(np.float32))
        grid = model.occupancy
        for name, tensor in zip(CELLS, (grid.cells, grid.triangle, grid.masks), strict=True):
            tensors[name] = tensor.cpu().float()
        target = avatar_file(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(save(tensors, {"header": json.dumps(header)}))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        except OSError as error:
            raise UserError(f"the avatar cannot be written to {target}: {error.strerror}") from None
        finally:
            with suppress(OSError):
                aside.unlink()

    @staticmethod
    def load(path: Path, head: HeadModel, device: str | torch.device) -> Avatar:
        """Read an avatar that was learned with ``head``.

        Raises UserError for a file that is absent, damaged, of another version or of another head.
        """
        file = avatar_file(path)
        header, tensors = _read(file)
        version, learned_with = header.get("version"), header.get("head")
        if version != FORMAT_VERSION:
            raise UserError(f"{file} has avatar format {_brief(version)}; this program reads {FORMAT_VERSION}")
        if not isinstance(learned_with, dict) or learned_with.get("sha256") != head.sha256:
            name = _brief(learned_with.get("name") if isinstance(learned_with, dict) else learned_with)
            raise UserError(f"{file} was learned with another head model ({name}): give that one with --head")
        target = choose_device(device) if isinstance(device, str) else device
        try:
            config = from_dict(AvatarConfig, header["config"])
            shape = tensors.pop("shape").numpy()
            if shape.shape != (head.shape_dirs.shape[0],):
                raise ValueError("its identity does not fit the head model")
            parts = {kind: _taken(tensors, f"{kind.part_name}.") for kind in PARTS}
            by_tcnn = TCNN_WEIGHTS in tensors
            # A wrong configuration may ask for more memory than there is: look before the field is made.
            if not by_tcnn and sum(level_rows(config.radiance)) != len(tensors["grid.table"]):
                raise ValueError("its hash grid does not fit its configuration")
            cells = _candidate_cells(tensors, config.occupancy.resolution, len(head.faces))
            avatar = Avatar.create(head, shape, _camera(header["camera"]), config, target, cells)
            if by_tcnn:
                use_tcnn(avatar.model)
            load_snapshot(avatar.model, tensors)
            avatar.model.learned = True
            for kind, stored in parts.items():
                if stored:
                    avatar.attach(kind.from_tensors(stored, avatar.model))
                elif kind is ExpressionCode:
                    # It was learned before anybody took note of ranges.
                    plain = replace(config.conditioning, standardise=False)
                    avatar.attach(ExpressionCode(head, plain))
            avatar.model.code = avatar.part(ExpressionCode) or avatar.model.code
            avatar.calibration = header["calibration"]
            if not isinstance(avatar.calibration, dict | None):
                raise ValueError("its calibration is not a table")
            avatar.seconds, avatar.steps = float(header["seconds"]), int(header["steps"])
        except TcnnMissing:
            raise
        except (UserError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise _damaged(file, error) from None
        return avatar


def _taken(tensors: Snapshot, prefix: str) -> Snapshot:
    """Take the tensors whose names begin with ``prefix`` out of a file's, and leave it off."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _candidate_cells(tensors: Snapshot, resolution: int, triangles: int) -> CandidateCells:
    """Take the candidate cells out of a file's tensors.  ValueError if there can be none like them."""
    index, triangle, masks = (tensors.pop(name) for name in CELLS)
    cells = CandidateCells(index.long(), triangle.long(), masks)
    sound = index.dim() == 1 and triangle.shape == index.shape and masks.shape == (len(index), 2) and len(index) > 0
    if not (
        sound
        and bool((index == cells.index).all() and (cells.index.diff() > 0).all())
        and bool((triangle == cells.triangle).all() and ((triangle >= 0) & (triangle < triangles)).all())
        and bool(((masks >= 0.0) & (masks <= 1.0)).all())
        and cells.index[0] >= 0
        and cells.index[-1] < resolution**3
    ):
        raise ValueError("its occupancy does not fit its configuration")
    return cells


def _read(file: Path) -> tuple[dict[str, Any], Snapshot]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"there is no avatar at {file}: `telepresence fit` makes one")
    try:
        with safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get("header", "")
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(text) if len(text) <= MAX_HEADER else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from None
    if not isinstance(header, dict):
        raise _damaged(file, "it has no header")
    if not all(t.dtype == torch.float32 and np.isfinite(t.numpy()).all() for t in tensors.values()):
        raise _damaged(file, "it holds what are not finite 32-bit numbers")
    return header, tensors


def _camera(values: Any) -> Camera:
    """The camera of a header.  TypeError, ValueError or ArithmeticError if there can be none like it."""
    camera = Camera(**values)
    if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in (camera.width, camera.height)):
        raise ValueError("its camera has no picture")
    fx, fy, cx, cy = (float(number) for number in (camera.fx, camera.fy, camera.cx, camera.cy))
    if not (all(map(math.isfinite, (fx, fy, cx, cy))) and fx > 0.0 and fy > 0.0):
        raise ValueError("its camera has no focal length or centre")
    return Camera(fx, fy, cx, cy, camera.width, camera.height)


def _brief(value: object) -> str:
    """What a file says, fit for a message: one line, not long."""
    return " ".join(str(value).split())[:120]


def _damaged(file: Path, reason: object) -> UserError:
    return UserError(f"{file} is damaged or no avatar: {_brief(reason)}")
