"""Avatar of one subject: model, camera and metadata, saved as a folder with ``avatar.safetensors``.

The tensors of the file are the averaged weights, the occupancy grid, the identity code and those of optional parts; its
header holds format version, head, camera, configuration, calibration, training progress and the subject's consent.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch

from insta_runtime import avatar_file as files
from insta_runtime import avatar_migration
from insta_runtime.config import AvatarConfig, from_dict, to_dict
from insta_runtime.errors import UserError
from insta_runtime.field.expression_code import ExpressionCode
from insta_runtime.field.hashgrid import level_rows
from insta_runtime.field.tcnn import TCNN_WEIGHTS, TcnnMissing
from insta_runtime.head import HeadModel, fingerprint
from insta_runtime.render.model import AvatarModel, use_tcnn
from insta_runtime.render.occupancy import CandidateCells
from insta_runtime.render.renderer import Snapshot, load_snapshot, take_snapshot
from insta_runtime.torso.layer import TorsoLayer
from insta_runtime.types import Camera, Float32

log = logging.getLogger(__name__)

FILE_NAME = "avatar.safetensors"
"""Name of the avatar file in the folder of an avatar."""
CELLS = ("occupancy.cells", "occupancy.triangle", "occupancy.masks")
"""Names of the tensors of the candidate cells; indices are stored as float32, which is exact below 2^24."""
MAX_SIDE = 1 << 14
"""Maximum width and height in pixels of the images of an avatar's camera."""


class AvatarPart(Protocol):
    """Protocol of the optional parts of an avatar, whose tensors the avatar file stores as ``<part_name>.<name>``."""

    part_name: ClassVar[str]

    def tensors(self) -> Snapshot:
        """Float32 tensors of the part for the avatar file, on any device, by name; they must not change afterwards."""

    @classmethod
    def from_tensors(cls, tensors: Snapshot, model: AvatarModel) -> Self:
        """Restore the part for ``model`` from stored tensors: finite, float32, on the CPU, and otherwise unchecked.

        Raises KeyError, TypeError, ValueError or RuntimeError if tensors are missing, invalid or unexpected.
        """


P = TypeVar("P", bound=AvatarPart)
PARTS: tuple[type[AvatarPart], ...] = (ExpressionCode, TorsoLayer)
"""Classes of all optional parts that an avatar file may hold."""


def choose_device(name: str) -> torch.device:
    """Torch device for ``auto`` (CUDA if available, else the CPU), ``cuda`` or ``cpu``.

    Raises UserError for ``cuda`` without a CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device can be used: try --device cpu, and see what `telepresence doctor` says")
    return torch.device(name)


def avatar_file(path: Path) -> Path:
    """Path of the avatar file for the path of an avatar's folder or of the file itself."""
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def is_stored(path: Path) -> bool:
    """Whether there is an avatar file or its previous version at ``path``, a folder or file; it may be damaged."""
    file = avatar_file(path)
    return file.is_file() or files.previous(file).is_file()


@dataclass(frozen=True)
class AvatarContents:
    """Immutable contents of an avatar file, ready to be written by any thread.

    Attributes:
        header: JSON-serialisable header.
        tensors: float32 tensors on any device.
    """

    header: dict[str, Any]
    tensors: Snapshot

    def write(self, path: Path, *, keep: bool = True) -> str:
        """Write the avatar file into the folder ``path`` atomically; returns its seal (`avatar_file.seal`).

        ``keep`` keeps the replaced file as the previous one.  Raises UserError if the file cannot be written.
        """
        return files.write(avatar_file(path), self.header, self.tensors, keep=keep)


@dataclass
class Avatar:
    """Avatar of one subject: model, camera of its training frames, and metadata.

    Attributes:
        model: model of the avatar.
        camera: camera of the cropped training frames.
        calibration: the tracker's calibration of subject and camera, JSON-serialisable; None if the head states are
            exact instead of tracked.
        seconds: duration of training so far, seconds.
        steps: number of training steps so far.
        consent: whether the subject has agreed that the avatar is stored.
        sha256: seal (`avatar_file.seal`) of the file that it was loaded from or saved to; None if neither.
        spoilt: whether it was loaded from the previous file because the newest is damaged or missing.
    """

    model: AvatarModel
    camera: Camera
    calibration: dict[str, Any] | None = None
    seconds: float = 0.0
    steps: int = 0
    consent: bool = False
    sha256: str | None = None
    spoilt: bool = False
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
        """New, untrained avatar of the subject with identity code ``shape`` (S,) in the head model ``head``.

        ``device`` is a torch device or a name for `choose_device`, which may raise UserError.  ``cells`` are candidate
        cells of the occupancy grid; they are computed if None.
        """
        target = choose_device(device) if isinstance(device, str) else device
        avatar = Avatar(AvatarModel(head, shape, config, target, config.learn.seed, cells), camera)
        avatar.attach(avatar.model.code)
        return avatar

    def update(self, snapshot: Snapshot, steps: int, seconds: float | None = None) -> None:
        """Set the snapshot and the training progress that `save` writes; ``seconds`` stay as they are if None."""
        self._snapshot, self.steps = snapshot, steps
        self.seconds = self.seconds if seconds is None else seconds

    def part(self, kind: type[P]) -> P | None:
        """Optional part of the class ``kind``, or None if the avatar has none."""
        found = self._parts.get(kind.part_name)
        return found if isinstance(found, kind) else None

    def attach(self, part: AvatarPart) -> None:
        """Set a part of one of the classes in `PARTS`, replacing an earlier one; `save` writes it."""
        self._parts[part.part_name] = part

    def contents(self) -> AvatarContents:
        """Contents of the avatar file for the present state; called by the training thread."""
        model = self.model
        header = {
            "version": avatar_migration.VERSION,
            "head": {"name": model.head.name, "basis": model.head.basis, "sha256": model.head.sha256},
            "person": fingerprint(model.shape),
            "consent": self.consent,
            "camera": {name: getattr(self.camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")},
            "config": to_dict(model.config),
            "calibration": self.calibration,
            "seconds": self.seconds,
            "steps": self.steps,
        }
        tensors = dict(self._snapshot if self._snapshot is not None else take_snapshot(model))
        for name, part in self._parts.items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.tensors().items()}
        tensors["shape"] = torch.from_numpy(model.shape.astype(np.float32))
        grid = model.occupancy
        for name, tensor in zip(CELLS, (grid.cells, grid.triangle, grid.masks), strict=True):
            tensors[name] = tensor.float()
        return AvatarContents(header, tensors)

    def save(self, path: Path) -> None:
        """Write the avatar file into the folder ``path`` atomically; the replaced file is kept as the previous one.

        Raises UserError if it cannot be written.
        """
        # A damaged file must not replace the intact previous one.
        self.sha256 = self.contents().write(path, keep=not self.spoilt)
        self.spoilt = False

    @staticmethod
    def load(path: Path, head: HeadModel, device: str | torch.device) -> Avatar:
        """Load an avatar that was trained with ``head`` from the folder or file ``path`` to a device, as for `create`.

        The previous file is loaded if the newest is damaged or missing.  Older format versions are migrated.  Raises
        UserError if no file is intact, or if it has an unknown format version, another head model or other tensors.
        """
        file = avatar_file(path)
        content, spoilt = _newest(file)
        file = files.previous(file) if spoilt else file
        header, tensors = avatar_migration.migrated(file, content)
        learned_with = header.get("head")
        if not isinstance(learned_with, dict) or learned_with.get("sha256") != head.sha256:
            name = files.brief(learned_with.get("name") if isinstance(learned_with, dict) else learned_with)
            raise UserError(f"{file} was trained with another head model ({name}): give that one with --head")
        target = choose_device(device) if isinstance(device, str) else device
        try:
            avatar = _restored(header, tensors, head, target)
        except TcnnMissing:
            raise
        except (UserError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
            # A file with a valid seal is not damaged.
            raise (files.damaged if content.sha256 is None else files.foreign)(file, reason) from None
        avatar.sha256, avatar.spoilt = content.sha256, spoilt
        return avatar


def _restored(header: dict[str, Any], tensors: Snapshot, head: HeadModel, device: torch.device) -> Avatar:
    """The avatar with this header and these tensors, of the present format version.

    Raises UserError, KeyError, TypeError, ValueError, RuntimeError or ArithmeticError if they are invalid.
    """
    config = from_dict(AvatarConfig, header["config"])
    shape = tensors.pop("shape").numpy()
    if shape.shape != (head.shape_dirs.shape[0],):
        raise ValueError("its identity does not fit the head model")
    parts = {kind: _taken(tensors, f"{kind.part_name}.") for kind in PARTS}
    by_tcnn = TCNN_WEIGHTS in tensors
    # A wrong configuration may require more memory than exists: this is checked before the field is made.
    if not by_tcnn and sum(level_rows(config.radiance)) != len(tensors["grid.table"]):
        raise ValueError("its hash grid does not fit its configuration")
    cells = _candidate_cells(tensors, config.occupancy.resolution, len(head.faces))
    avatar = Avatar.create(head, shape, _camera(header["camera"]), config, device, cells)
    if by_tcnn:
        use_tcnn(avatar.model)
    load_snapshot(avatar.model, tensors)
    avatar.model.learned = True
    for kind, stored in parts.items():
        if stored:
            avatar.attach(kind.from_tensors(stored, avatar.model))
        elif kind is ExpressionCode:  # old files without expression statistics: codes were not standardised
            avatar.attach(ExpressionCode(head, replace(config.conditioning, standardise=False)))
    avatar.model.code = avatar.part(ExpressionCode) or avatar.model.code
    avatar.calibration = header["calibration"]
    if not isinstance(avatar.calibration, dict | None):
        raise ValueError("its calibration is not a table")
    avatar.seconds, avatar.steps = float(header["seconds"]), int(header["steps"])
    avatar.consent = header.get("consent") is True
    if header["person"] != fingerprint(shape):
        raise ValueError("its fingerprint does not match its identity")
    return avatar


def _taken(tensors: Snapshot, prefix: str) -> Snapshot:
    """Remove the tensors whose names start with ``prefix`` and return them by the rest of their names."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _candidate_cells(tensors: Snapshot, resolution: int, triangles: int) -> CandidateCells:
    """Remove the candidate cells from the tensors of a file and return them.  Raises ValueError if they are invalid."""
    index, triangle, masks = (tensors.pop(name) for name in CELLS)
    cells = CandidateCells(index.long(), triangle.long(), masks)
    valid = index.dim() == 1 and triangle.shape == index.shape and masks.shape == (len(index), 2) and len(index) > 0
    if not (
        valid
        and bool((index == cells.index).all() and (cells.index.diff() > 0).all())
        and bool((triangle == cells.triangle).all() and ((triangle >= 0) & (triangle < triangles)).all())
        and bool(((masks >= 0.0) & (masks <= 1.0)).all())
        and cells.index[0] >= 0
        and cells.index[-1] < resolution**3
    ):
        raise ValueError("its occupancy does not fit its configuration")
    return cells


def _newest(file: Path) -> tuple[files.FileContents, bool]:
    """Contents of ``file``, or of the previous one if it is damaged or missing; and whether it was the previous one."""
    try:
        return files.read(file), False
    except UserError as error:
        if not files.previous(file).is_file():
            raise
        try:
            content = files.read(files.previous(file))
        except UserError:
            raise error from None
        log.warning("%s; using the previous file", error)
        return content, True


def _camera(values: Any) -> Camera:
    """Camera of a header.  Raises TypeError, ValueError or ArithmeticError if it is invalid."""
    camera = Camera(**values)
    if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in (camera.width, camera.height)):
        raise ValueError("its camera has an invalid image size")
    fx, fy, cx, cy = (float(number) for number in (camera.fx, camera.fy, camera.cx, camera.cy))
    if not (all(map(math.isfinite, (fx, fy, cx, cy))) and fx > 0.0 and fy > 0.0):
        raise ValueError("its camera has an invalid focal length or centre")
    return Camera(fx, fy, cx, cy, camera.width, camera.height)
