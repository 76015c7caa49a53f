"""Takes and tracked folders on disk: what `telepresence track` writes and every other command reads.

The format is described in docs/formats.md.  Reading needs numpy, torch and Pillow alone.  A folder may come
from anyone, so everything in it is checked before it is used; what is wrong gives a one-line `UserError`.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .geometry import rotation_matrix
from .types import Bytes, Camera, Float32, HeadState, Observation, Take

if TYPE_CHECKING:
    from .head import HeadRig

FORMAT_VERSION = 1
MAX_FRAMES = 1_000_000
MAX_CODES = 1024  # identity or expression components
MAX_SIZE = 4096  # px
MAX_ARRAY_BYTES = 1 << 30
MAX_COORDINATE = 1e4  # no code, angle or metre of a face is larger

_STATE_SHAPES: dict[str, tuple[int, ...]] = {
    "jaw_pose": (3,),
    "neck_pose": (3,),
    "eye_pose": (2, 3),
    "eyelids": (2,),
    "rotation": (3,),
    "translation": (3,),
}


def frame_name(index: int) -> str:
    """The stem of picture ``index`` in ``frames/``, ``alpha/`` and ``body/``."""
    return f"{index:06d}"


def write_take(file: Path | IO[bytes], take: Take) -> None:
    """Write ``take`` as an uncompressed ``.npz`` to a path or an open binary file."""
    growing = GrowingTake(take.shape, take.camera, take.crop, take.head_sha256, take.fps)
    for state, valid in zip(take.states, take.valid, strict=True):
        growing.add(state, bool(valid))
    growing.write(file)


class GrowingTake:
    """A take whose states come one by one, and that can be written again and again at the cost of its bytes."""

    def __init__(
        self, shape: Float32, camera: Camera, crop: tuple[float, float, float], head_sha256: str, fps: float
    ) -> None:
        """As in `Take`."""
        self._facts: dict[str, Any] = {
            "version": np.int64(FORMAT_VERSION),
            "shape": shape.astype(np.float32),
            "K": camera.matrix(),
            "size": np.array([camera.width, camera.height], dtype=np.int64),
            "crop": np.array(crop, dtype=np.float64),
            "head_sha256": np.array(head_sha256),
            "fps": np.float64(fps),
        }
        self._columns: dict[str, NDArray[Any]] = {}  # with room to grow
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, state: HeadState, valid: bool) -> None:
        """Append ``state``."""
        row: dict[str, Any] = {**state.arrays(), "t_capture_ns": np.int64(state.t_capture_ns), "valid": np.bool_(valid)}
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                kind = np.float32 if isinstance(value, np.ndarray) else value.dtype
                column = self._columns[name] = np.zeros((64, *np.shape(value)), kind)
            elif self._count == len(column):
                column = self._columns[name] = np.concatenate([column, np.zeros_like(column)])
            column[self._count] = value
        self._count += 1

    def write(self, file: Path | IO[bytes]) -> None:
        """Write all states so far as an uncompressed ``.npz``."""
        arrays: dict[str, Any] = {name: column[: self._count] for name, column in self._columns.items()}
        np.savez(file, **self._facts, **arrays)


def read_take(path: Path) -> Take:
    """The take in a ``take.npz`` or in a tracked folder.  Raises UserError if it is not one."""
    path = Path(path)
    if path.is_dir():
        path = path / "take.npz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a take.npz or the folder that `telepresence track` wrote")
    try:
        return _parse_take(_load_arrays(path))
    except _DAMAGE as error:
        raise UserError(f"{path} is not a take ({_one_line(error)}): make one with `telepresence track`") from None


@dataclass(frozen=True)
class TrackedFolder:
    """A tracked video: pictures, mattes and the take that belongs to them.

    Attributes:
        path: the folder.
        take: states, camera and crop; ``take.states[i]`` belongs to picture i.
        meta: the checked contents of meta.json: ``format_version, head, source, fps, frames, ...``.
    """

    path: Path
    take: Take
    meta: dict[str, Any]

    @staticmethod
    def open(path: Path) -> TrackedFolder:
        """Open and check a tracked folder.  Pictures are read when asked for.  Raises UserError."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: make a tracked folder with `telepresence track VIDEO --out DIR`")
        meta = _read_meta(path / "meta.json")
        take = read_take(path)
        if meta["frames"] != len(take.states):
            raise UserError(f"{path} is damaged: meta.json speaks of {meta['frames']} frames, take.npz of others")
        if meta["head"]["sha256"] != take.head_sha256:
            raise UserError(f"{path} is damaged: meta.json and take.npz name different heads")
        return TrackedFolder(path, take, meta)

    def __len__(self) -> int:
        return len(self.take.states)

    @property
    def frames(self) -> NDArray[np.int64]:
        """Indices of the pictures in which a face was tracked, ascending."""
        return np.flatnonzero(self.take.valid).astype(np.int64)

    @property
    def head_file(self) -> Path | None:
        """The head model file that the user brought, or None for the open default head."""
        name = self.meta["head"].get("file")
        return Path(name) if name else None

    def picture(self, index: int) -> Bytes:
        """Picture ``index``: (H, W, 3) uint8 sRGB."""
        return _read_image(self.path / "frames" / f"{frame_name(index)}.jpg", "RGB", self.take.camera)

    def alpha(self, index: int) -> Bytes:
        """Matte x neck ramp of picture ``index``: (H, W) uint8, 255 = head."""
        return _read_image(self.path / "alpha" / f"{frame_name(index)}.png", "L", self.take.camera)

    def body(self, index: int) -> Bytes | None:
        """Matte of the whole body in picture ``index``, no ramp: (H, W) uint8; None in folders without ``body/``."""
        if not (self.path / "body").is_dir():
            return None
        return _read_image(self.path / "body" / f"{frame_name(index)}.png", "L", self.take.camera)

    def observation(self, index: int) -> Observation:
        """Picture ``index`` with its mattes, camera and state."""
        take, alpha, body = self.take, self.alpha(index), self.body(index)
        body = np.maximum(alpha, body) if body is not None else None
        return Observation(index, self.picture(index), alpha, take.camera, take.states[index], body)


def load_frame(folder: TrackedFolder | Path, index: int, head: HeadRig) -> tuple[Bytes, Bytes, Float32]:
    """One picture of a tracked folder with all that is needed to learn from it.

    Args:
        folder: an open folder, or its path.
        index: which picture, 0-based; one of ``folder.frames``.
        head: the rig of the head model with which the folder was tracked.

    Returns:
        picture (H, W, 3) uint8 sRGB, alpha (H, W) uint8, and the posed vertices (V, 3) float32 in camera space
        (OpenCV axes, metres): vertex (x, y, z) is seen at pixel ``K @ (x, y, z) / z`` with ``folder.take.camera``.

    Raises UserError if the folder is damaged or was tracked with another head.
    """
    if not isinstance(folder, TrackedFolder):
        folder = TrackedFolder.open(folder)
    take = folder.take
    if head.model.sha256 != take.head_sha256:
        raise UserError(
            f"{folder.path} was tracked with another head model than {head.model.name}: give it with --head"
        )
    if not 0 <= index < len(folder):
        raise UserError(f"{folder.path} has no picture {index}: it holds {len(folder)}")
    state = take.states[index]
    vertices = head.pose(take.shape, state).vertices.detach().cpu().numpy()
    posed = vertices @ rotation_matrix(state.rotation).T + state.translation
    return folder.picture(index), folder.alpha(index), posed.astype(np.float32)


class _Malformed(Exception):
    """What is wrong with a file, in a few words."""


_DAMAGE = (  # all that a damaged or hostile .npz has been seen to raise
    _Malformed, OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_ARRAY_BYTES:
            raise _Malformed("it is too large")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _parse_take(arrays: dict[str, NDArray[Any]]) -> Take:
    def numbers(name: str, *shape: int | None, kind: str = "f") -> NDArray[Any]:
        if name not in arrays:
            raise _Malformed(f"{name} is missing")
        array = arrays[name]
        fits = len(array.shape) == len(shape) and all(
            wanted is None or wanted == got for wanted, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype.kind != kind or not fits:
            raise _Malformed(f"{name} has dtype {array.dtype} and shape {array.shape}")
        if kind == "f" and not (np.isfinite(array).all() and (np.abs(array) <= MAX_COORDINATE).all()):
            raise _Malformed(f"{name} is not finite")
        return array

    version = int(numbers("version", kind="i"))
    if version != FORMAT_VERSION:
        raise _Malformed(f"its format is version {version}, this program reads {FORMAT_VERSION}")
    expression = numbers("expression", None, None)
    count, units = expression.shape
    if not (0 < count <= MAX_FRAMES and 0 < units <= MAX_CODES):
        raise _Malformed(f"expression has shape {expression.shape}")
    fields = {name: numbers(name, count, *shape).astype(np.float32) for name, shape in _STATE_SHAPES.items()}
    fields["expression"] = expression.astype(np.float32)
    times = numbers("t_capture_ns", count, kind="i")
    shape = numbers("shape", None).astype(np.float32)
    if len(shape) > MAX_CODES:
        raise _Malformed(f"shape has {len(shape)} components")
    width, height = (int(value) for value in numbers("size", 2, kind="i"))
    if not (0 < width <= MAX_SIZE and 0 < height <= MAX_SIZE):
        raise _Malformed(f"pictures of {width} x {height}")
    matrix = numbers("K", 3, 3)
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise _Malformed("K has no focal length")
    left, top, side = (float(value) for value in numbers("crop", 3))
    fps = float(numbers("fps"))
    if not (side > 0 and fps > 0):
        raise _Malformed("crop or fps is not positive")
    states = tuple(
        HeadState(t_capture_ns=int(times[i]), **{name: values[i] for name, values in fields.items()})
        for i in range(count)
    )
    return Take(
        states=states,
        valid=numbers("valid", count, kind="b"),
        shape=shape,
        camera=Camera.from_matrix(matrix, width, height),
        crop=(left, top, side),
        head_sha256=str(numbers("head_sha256", kind="U"))[:64],
        fps=fps,
    )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8")[: 1 << 20])
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} cannot be read: this is not a folder that `telepresence track` wrote") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} is of format version {version}, this program reads {FORMAT_VERSION}: track it again")
    head = meta.get("head")
    if not (
        isinstance(head, dict)
        and isinstance(head.get("sha256"), str)
        and isinstance(head.get("file"), str | None)
        and isinstance(meta.get("frames"), int)
    ):
        raise UserError(f"{path} lacks the head or the number of frames: track the video again")
    return meta


def _read_image(path: Path, mode: str, camera: Camera) -> Bytes:
    from PIL import Image

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if image.size != (camera.width, camera.height):
                raise UserError(
                    f"{path} is {image.size[0]} x {image.size[1]}, the take says {camera.width} x {camera.height}"
                )
            return np.array(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({_one_line(error)}): track the video again") from None
