"""File format of avatars and training states: safetensors with a JSON header and a SHA-256 checksum (the seal).

A file is written atomically and durably (`insta_runtime.files`), and the previous one is kept beside it, so that a
complete file exists at every moment.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file

MAX_HEADER: Final = 1 << 20
"""Maximum length of the JSON header in characters."""
PIECE: Final = 1 << 22
"""Bytes that are copied from a device, hashed or written at once, so that other threads can run in between."""


@dataclass(frozen=True)
class FileContents:
    """Contents of an avatar or training file.

    Attributes:
        header: JSON object.
        tensors: tensors by name, all finite float32 on the CPU.
        sha256: seal of the file; None in files of format version 1, which had none.
    """

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    sha256: str | None


def previous(file: Path) -> Path:
    """Path at which the previous version of ``file`` is kept."""
    return file.with_suffix(".previous.safetensors")


def write(file: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor], *, keep: bool = False) -> str:
    """Write an avatar or training file atomically and durably; returns its seal (`seal`).

    Args:
        file: path of the file; its folder is created if necessary.
        header: JSON-serialisable header.
        tensors: float32 tensors on any device, which must not be changed meanwhile.
        keep: keep the replaced file at the path `previous`.

    Raises UserError if the file cannot be written; an existing file is then unchanged.
    """
    text = json.dumps(header)
    arrays = {name: _on_host(tensor) for name, tensor in sorted(tensors.items())}
    sha256 = _seal(text, arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, durable=True, backup=previous(file) if keep else None) as target:
            target.write(_preamble({"header": text, "sha256": sha256}, arrays))
            for array in arrays.values():
                for piece in _pieces(array):
                    target.write(piece)
    except OSError as error:
        raise UserError(f"the avatar cannot be written to {file}: {error.strerror}") from None
    return sha256


def read(file: Path) -> FileContents:
    """Read and verify an avatar or training file that `write` wrote.

    Raises UserError if it is absent, truncated, altered, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"there is no avatar at {file}: make one with `telepresence fit`")
    try:
        with _readable(file) as path, safe_open(path, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
        text = metadata.get("header", "")
        header = json.loads(text) if len(text) <= MAX_HEADER else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(file, error) from None
    if not isinstance(header, dict):
        raise damaged(file, "it has no header")
    if not all(t.dtype == torch.float32 for t in tensors.values()):
        raise damaged(file, "its tensors are not all float32")
    sha256 = metadata.get("sha256")
    arrays = {name: tensor.numpy() for name, tensor in sorted(tensors.items())}
    if sha256 is not None and _seal(text, arrays) != sha256:
        raise damaged(file, "its contents do not match its SHA-256 checksum")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise damaged(file, "it holds numbers that are not finite")
    return FileContents(header, tensors, sha256)


@contextmanager
def _readable(file: Path) -> Iterator[str]:
    """Path of ``file`` for safetensors, which refuses names that are not UTF-8: those are opened by descriptor."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        with file.open("rb") as opened:
            yield f"/dev/fd/{opened.fileno()}"
    else:
        yield str(file)


def brief(value: object) -> str:
    """Text of a ``value`` from a file for an error message: one line of at most 120 characters."""
    return " ".join(str(value).split())[:120]


def damaged(file: Path, reason: object) -> UserError:
    """Exception, to be raised by the caller, for a file that is damaged or of another kind."""
    return UserError(f"{file} is damaged or not an avatar file: {brief(reason)}")


def foreign(file: Path, reason: object) -> UserError:
    """Exception, to be raised by the caller, for an intact avatar file that this version of the program cannot use."""
    return UserError(
        f"{file} was saved by an incompatible version of the program ({brief(reason)}):"
        " open it with the version that saved it, or start a new avatar in another folder"
    )


def seal(header: str, tensors: dict[str, torch.Tensor]) -> str:
    """Seal of a file: SHA-256 in hexadecimal of the JSON text ``header`` and of names, shapes and values of tensors."""
    return _seal(header, {name: _on_host(tensor) for name, tensor in sorted(tensors.items())})


def seal_of(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Seal of a file with this header and these tensors, as `write` returns it, without writing the file."""
    return seal(json.dumps(header), tensors)


def _seal(header: str, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, array in arrays.items():
        digest.update(json.dumps([name, array.shape]).encode())
        for piece in _pieces(array):
            digest.update(piece)
    return digest.hexdigest()


def _on_host(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Tensor as a little-endian float32 array in host memory; copied from a GPU in pieces, on the current stream."""
    flat = tensor.detach().reshape(-1)
    if not flat.is_cuda:
        return np.ascontiguousarray(flat.numpy(), dtype="<f4").reshape(tensor.shape)
    parts = [part.cpu().numpy() for part in flat.split(PIECE // 4)]
    return np.concatenate(parts).astype("<f4", copy=False).reshape(tensor.shape)


def _preamble(metadata: dict[str, str], arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Header of a safetensors file: its length, then JSON with the position of each tensor."""
    places: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        places[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(places).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of eight bytes
    return struct.pack("<Q", len(text)) + text


def _pieces(array: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    raw = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), PIECE):
        yield raw[start : start + PIECE]
