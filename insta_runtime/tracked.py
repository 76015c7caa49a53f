"""Tracked folders and takes on disk: tracked videos that `telepresence track` writes and other commands read.

The format is described in docs/formats.md.  Reading needs only numpy, torch and Pillow.  Folders are untrusted input:
everything is checked before use, and faults raise a one-line `UserError`.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
"""Format version of takes and tracked folders."""
MAX_FRAMES = 1_000_000
"""Maximum number of frames of a take."""
MAX_CODES = 1024
"""Maximum number of identity or expression components."""
MAX_SIZE = 4096
"""Maximum width and height of a frame in pixels."""
MAX_ARRAY_BYTES = 1 << 30
"""Maximum size in bytes of all arrays of a take together, uncompressed."""
MAX_COORDINATE = 1e4
"""Maximum magnitude of a code, angle or length in a take."""

_STATE_SHAPES: dict[str, tuple[int, ...]] = {
    "jaw_pose": (3,),
    "neck_pose": (3,),
    "eye_pose": (2, 3),
    "eyelids": (2,),
    "rotation": (3,),
    "translation": (3,),
}


def frame_name(index: int) -> str:
    """File name without extension of frame ``index`` (six digits) in ``frames/``, ``alpha/`` and ``body/``."""
    return f"{index:06d}"


def write_take(file: Path | IO[bytes], take: Take) -> None:
    """Write ``take`` as an uncompressed ``.npz`` to a path or an open binary file."""
    growing = GrowingTake(take.shape, take.camera, take.crop, take.head_sha256, take.fps)
    for state, valid in zip(take.states, take.valid, strict=True):
        growing.add(state, bool(valid))
    growing.write(file)


class GrowingTake:
    """Take under construction: head states are appended one by one, and it can be written at any time."""

    def __init__(
        self, shape: Float32, camera: Camera, crop: tuple[float, float, float], head_sha256: str, fps: float
    ) -> None:
        """The arguments are the fields of `Take` that stay the same for all states."""
        self._facts: dict[str, Any] = {
            "version": np.int64(FORMAT_VERSION),
            "shape": shape.astype(np.float32),
            "K": camera.matrix(),
            "size": np.array([camera.width, camera.height], dtype=np.int64),
            "crop": np.array(crop, dtype=np.float64),
            "head_sha256": np.array(head_sha256),
            "fps": np.float64(fps),
        }
        self._columns: dict[str, NDArray[Any]] = {}  # allocated in advance, doubled when full
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, state: HeadState, valid: bool) -> None:
        """Append ``state``; ``valid`` is False if no face was tracked in its frame."""
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
        """Write all states so far as an uncompressed ``.npz`` to a path or an open binary file."""
        arrays: dict[str, Any] = {name: column[: self._count] for name, column in self._columns.items()}
        np.savez(file, **self._facts, **arrays)


def read_take(path: Path) -> Take:
    """Read a take from a ``take.npz`` or a tracked folder.  Raises UserError if it is missing or invalid."""
    path = Path(path)
    if path.is_dir():
        path = path / "take.npz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a take.npz or the folder that `telepresence track` wrote")
    return _checked_take(path, path)


def _checked_take(file: Path | IO[bytes], name: Path) -> Take:
    try:
        return _parse_take(_load_arrays(file))
    except _DAMAGE as error:
        raise UserError(f"{name} is not a take ({_one_line(error)}): make one with `telepresence track`") from None


@dataclass(frozen=True)
class TrackedFolder:
    """Tracked video on disk or in memory: frames, mattes and the take with their head states.

    Attributes:
        path: the folder; for one that is held in memory, its name in error messages.
        take: states, camera and crop; ``take.states[i]`` belongs to frame i.
        meta: checked contents of meta.json: ``format_version, head, source, fps, frames, ...``.
        files: contents of the files by their path in the folder, if it is held in memory; None if it is on disk.
    """

    path: Path
    take: Take
    meta: dict[str, Any]
    files: Mapping[str, bytes] | None = None

    @staticmethod
    def open(path: Path) -> TrackedFolder:
        """Open and check a tracked folder; images are read on access.  Raises UserError if it is invalid."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: make a tracked folder with `telepresence track VIDEO --out DIR`")
        try:
            meta = (path / "meta.json").read_bytes()
        except OSError:
            raise _unreadable_meta(path) from None
        return TrackedFolder._checked(path, meta, read_take(path))

    @staticmethod
    def in_memory(path: Path, files: Mapping[str, bytes]) -> TrackedFolder:
        """Check a tracked folder that is held in memory, as `open` does; raises UserError if it is invalid.

        ``files`` are the contents of its files by their path in the folder; ``path`` is its name in error messages.
        """
        take = _checked_take(io.BytesIO(files["take.npz"]), path / "take.npz")
        return replace(TrackedFolder._checked(path, files["meta.json"], take), files=files)

    @staticmethod
    def _checked(path: Path, meta_json: bytes, take: Take) -> TrackedFolder:
        meta = _parse_meta(path, meta_json)
        if meta["frames"] != len(take.states):
            raise UserError(f"{path} is damaged: meta.json has {meta['frames']} frames, take.npz {len(take.states)}")
        if meta["head"]["sha256"] != take.head_sha256:
            raise UserError(f"{path} is damaged: meta.json and take.npz belong to different head models")
        return TrackedFolder(path, take, meta)

    def __len__(self) -> int:
        return len(self.take.states)

    @property
    def frames(self) -> NDArray[np.int64]:
        """Indices of the frames in which a face was tracked, ascending."""
        return np.flatnonzero(self.take.valid).astype(np.int64)

    @property
    def head_file(self) -> Path | None:
        """Path of the head model file with which the video was tracked, or None for the open default head."""
        name = self.meta["head"].get("file")
        return Path(name) if name else None

    def picture(self, index: int) -> Bytes:
        """Image of frame ``index``: (H, W, 3) uint8 sRGB."""
        return self._image(f"frames/{frame_name(index)}.jpg", "RGB")

    def alpha(self, index: int) -> Bytes:
        """Matte of the head in frame ``index``, which fades out over the neck: (H, W) uint8, 255 = head."""
        return self._image(f"alpha/{frame_name(index)}.png", "L")

    def body(self, index: int) -> Bytes | None:
        """Matte of the whole body in frame ``index``: (H, W) uint8, 255 = body; None in folders without ``body/``."""
        if self.files is None and not (self.path / "body").is_dir():
            return None
        return self._image(f"body/{frame_name(index)}.png", "L")

    def observation(self, index: int) -> Observation:
        """Frame ``index`` as an observation for training: image, mattes, camera and head state."""
        take, alpha, body = self.take, self.alpha(index), self.body(index)
        body = np.maximum(alpha, body) if body is not None else None
        return Observation(index, self.picture(index), alpha, take.camera, take.states[index], body)

    def _image(self, name: str, mode: str) -> Bytes:
        path = self.path / name
        return _read_image(path if self.files is None else io.BytesIO(self.files[name]), path, mode, self.take.camera)


def load_frame(folder: TrackedFolder | Path, index: int, head: HeadRig) -> tuple[Bytes, Bytes, Float32]:
    """Image, matte and posed head mesh of one frame of a tracked folder.

    Args:
        folder: an open folder, or its path.
        index: 0-based index of the frame; one of ``folder.frames``.
        head: rig of the head model with which the folder was tracked.

    Returns:
        Image (H, W, 3) uint8 sRGB, matte (H, W) uint8, and posed vertices (V, 3) float32 in camera space (OpenCV axes,
        metres): vertex (x, y, z) projects to the pixel ``K @ (x, y, z) / z`` with ``folder.take.camera``.

    Raises UserError if the folder is damaged, has no such frame or was tracked with another head model.
    """
    if not isinstance(folder, TrackedFolder):
        folder = TrackedFolder.open(folder)
    take = folder.take
    if head.model.sha256 != take.head_sha256:
        raise UserError(
            f"{folder.path} was tracked with another head model than {head.model.name}: give it with --head"
        )
    if not 0 <= index < len(folder):
        raise UserError(f"{folder.path} has no frame {index}: it has {len(folder)} frames")
    state = take.states[index]
    vertices = head.pose(take.shape, state).vertices.detach().cpu().numpy()
    posed = vertices @ rotation_matrix(state.rotation).T + state.translation
    return folder.picture(index), folder.alpha(index), posed.astype(np.float32)


class _Malformed(Exception):
    """Error with a short description of what is wrong with a file."""


_DAMAGE = (  # exceptions that reading a damaged or hostile .npz may raise
    _Malformed, OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _load_arrays(file: Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_ARRAY_BYTES:
            raise _Malformed("it is too large")
    if not isinstance(file, Path):
        file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
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
        raise _Malformed(f"it has format version {version}, this program reads {FORMAT_VERSION}")
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
        raise _Malformed(f"its frames have {width} x {height} pixels")
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


def _unreadable_meta(folder: Path) -> UserError:
    return UserError(f"{folder / 'meta.json'} cannot be read: give a folder that `telepresence track` wrote")


def _parse_meta(folder: Path, content: bytes) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        meta = json.loads(content.decode("utf-8")[: 1 << 20])
    except (ValueError, RecursionError):
        raise _unreadable_meta(folder) from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}: track the video again"
        )
    head = meta.get("head")
    if not (
        isinstance(head, dict)
        and isinstance(head.get("sha256"), str)
        and isinstance(head.get("file"), str | None)
        and isinstance(meta.get("frames"), int)
    ):
        raise UserError(f"{path} lacks the head or the number of frames: track the video again")
    return meta


def _read_image(file: Path | IO[bytes], path: Path, mode: str, camera: Camera) -> Bytes:
    """Decode an image of a tracked folder; ``path`` is its name in errors."""
    from PIL import Image

    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            if image.size != (camera.width, camera.height):
                raise UserError(
                    f"{path} has {image.size[0]} x {image.size[1]} pixels, its take {camera.width} x {camera.height}:"
                    " track the video again"
                )
            return np.array(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({_one_line(error)}): track the video again") from None
