"""An avatar as it is saved: a directory with ``avatar.safetensors``.

The tensors are the averaged weights, the occupancy, the identity and those of optional parts; the file's header holds
everything else: format version, head, camera, configuration, calibration, training, the person's consent.
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

FORMAT_VERSION = 2
UNSEALED = 1  # the version that had no seal, no consent and no fingerprint
FILE_NAME = "avatar.safetensors"
CELLS = ("occupancy.cells", "occupancy.triangle", "occupancy.masks")  # indices as float32: exact below 2^24
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


def is_stored(path: Path) -> bool:
    """Whether there is an avatar at ``path``, whole or not."""
    file = avatar_file(path)
    return file.is_file() or files.previous(file).is_file()


@dataclass(frozen=True)
class Record:
    """An avatar as it was at one moment, ready to be written by any thread: nothing in it is ever changed.

    ``header`` is what JSON can hold, ``tensors`` are float32 on any device.
    """

    header: dict[str, Any]
    tensors: Snapshot

    def write(self, path: Path, *, keep: bool = True) -> str:
        """Write it into the directory ``path`` whole or not at all; the one before it is kept beside it.

        Returns the file's seal.  Raises UserError if it cannot be written.
        """
        return files.write(avatar_file(path), self.header, self.tensors, keep=keep)


@dataclass
class Avatar:
    """One person's avatar: the model, the camera it was learned with, and what is known about its making.

    Attributes:
        camera: of the cropped pictures it was learned from.
        calibration: the tracker's calibration of this person and camera, JSON-able; None for exact states.
        seconds, steps: training so far.
        consent: whether the person has agreed that it is kept.
        sha256: the seal of the file that it was read from.
        spoilt: it was read from the previous file, as the newest is damaged.
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

    def record(self) -> Record:
        """What `save` writes, as it is now; belongs to the thread that learns."""
        model = self.model
        header = {
            "version": FORMAT_VERSION,
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
        return Record(header, tensors)

    def save(self, path: Path) -> None:
        """Write the avatar into the directory ``path``, whole or not at all; the one before it is kept beside it.

        Raises UserError if it cannot be written.
        """
        # What is damaged must not take the place of the one that is not.
        self.sha256 = self.record().write(path, keep=not self.spoilt)
        self.spoilt = False

    @staticmethod
    def load(path: Path, head: HeadModel, device: str | torch.device) -> Avatar:
        """Read an avatar that was learned with ``head``: the newest that is whole.

        Raises UserError if there is none, or if it is of another version or of another head; of an older version of
        this one, too, which had other tensors.
        """
        file = avatar_file(path)
        content, spoilt = _newest(file)
        file = files.previous(file) if spoilt else file
        header, tensors = content.header, content.tensors
        version, learned_with = header.get("version"), header.get("head")
        if version != FORMAT_VERSION and not (version == UNSEALED and content.sha256 is None):
            raise UserError(
                f"{file} has avatar format {files.brief(version)}; this program reads {UNSEALED} to {FORMAT_VERSION}"
            )
        if version == FORMAT_VERSION and content.sha256 is None:
            raise files.damaged(file, "it has no seal")
        if not isinstance(learned_with, dict) or learned_with.get("sha256") != head.sha256:
            name = files.brief(learned_with.get("name") if isinstance(learned_with, dict) else learned_with)
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
            avatar.consent, avatar.sha256, avatar.spoilt = header.get("consent") is True, content.sha256, spoilt
            if version != UNSEALED and header["person"] != fingerprint(shape):
                raise ValueError("it is of another person than it says")
        except TcnnMissing:
            raise
        except (UserError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
            # Whose seal is right was not spoilt on the disk.
            raise (files.damaged if content.sha256 is None else files.foreign)(file, reason) from None
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


def _newest(file: Path) -> tuple[files.Content, bool]:
    """The contents of ``file``, or of the one before it if this is damaged or missing; and which it was."""
    try:
        return files.read(file), False
    except UserError as error:
        if not files.previous(file).is_file():
            raise
        try:
            content = files.read(files.previous(file))
        except UserError:
            raise error from None
        log.warning("%s; going on with the one before it", error)
        return content, True


def _camera(values: Any) -> Camera:
    """The camera of a header.  TypeError, ValueError or ArithmeticError if there can be none like it."""
    camera = Camera(**values)
    if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in (camera.width, camera.height)):
        raise ValueError("its camera has no picture")
    fx, fy, cx, cy = (float(number) for number in (camera.fx, camera.fy, camera.cx, camera.cy))
    if not (all(map(math.isfinite, (fx, fy, cx, cy))) and fx > 0.0 and fy > 0.0):
        raise ValueError("its camera has no focal length or centre")
    return Camera(fx, fy, cx, cy, camera.width, camera.height)
