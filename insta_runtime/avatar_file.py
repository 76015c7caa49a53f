"""The file that an avatar, or what its training needs to go on, is kept in: safetensors, sealed with a SHA-256.

It is written aside, flushed to the disk, and put in place whole; the one before it stays beside it.  So a whole one is
there, whatever happens while it is written.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file

MAX_HEADER: Final = 1 << 20
"""Characters of JSON."""
PIECE: Final = 1 << 22
"""Bytes that are copied from a device, hashed or written at a time: others get their turn in between."""


@dataclass(frozen=True)
class Content:
    """What is in a file: ``header``, a JSON object, and ``tensors``, all finite float32 on the CPU.

    ``sha256`` is its seal, None in files that were written before there were seals.
    """

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    sha256: str | None


def previous(file: Path) -> Path:
    """Where the file before ``file`` is kept."""
    return file.with_suffix(".previous.safetensors")


def write(file: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor], *, keep: bool = False) -> str:
    """Write ``file`` whole or not at all, durably; ``keep`` keeps the one before it (`previous`).

    Args:
        header: what JSON can hold. tensors: float32, on any device; nobody writes to them meanwhile.

    Returns:
        The seal.

    Raises UserError if it cannot be written; what was there stays.
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


def read(file: Path) -> Content:
    """What `write` wrote.  Raises UserError for anything else: absent, truncated, changed by a single bit."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"there is no avatar at {file}: `telepresence fit` makes one")
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
        text = metadata.get("header", "")
        header = json.loads(text) if len(text) <= MAX_HEADER else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(file, error) from None
    if not isinstance(header, dict):
        raise damaged(file, "it has no header")
    if not all(t.dtype == torch.float32 for t in tensors.values()):
        raise damaged(file, "it holds what are not 32-bit numbers")
    sha256 = metadata.get("sha256")
    arrays = {name: tensor.numpy() for name, tensor in sorted(tensors.items())}
    if sha256 is not None and _seal(text, arrays) != sha256:
        raise damaged(file, "its contents are not what was written (SHA-256)")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise damaged(file, "it holds what are not finite numbers")
    return Content(header, tensors, sha256)


def brief(value: object) -> str:
    """What a file says, fit for a message: one line, not long."""
    return " ".join(str(value).split())[:120]


def damaged(file: Path, reason: object) -> UserError:
    """The error of a file that is not what was written."""
    return UserError(f"{file} is damaged or no avatar: {brief(reason)}")


def foreign(file: Path, reason: object) -> UserError:
    """The error of an avatar that is what was written, and yet not as this program writes them."""
    return UserError(
        f"{file} was not saved as this version of the program saves avatars ({brief(reason)}):"
        " open it with the version that saved it, or begin a new avatar in another folder"
    )


def seal(header: str, tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of a file's contents, 64 hexadecimal digits: its header's text, then names, shapes and numbers."""
    return _seal(header, {name: _on_host(tensor) for name, tensor in sorted(tensors.items())})


def seal_of(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """The seal that `write` gives these."""
    return seal(json.dumps(header), tensors)


def _seal(header: str, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, array in arrays.items():
        digest.update(json.dumps([name, array.shape]).encode())
        for piece in _pieces(array):
            digest.update(piece)
    return digest.hexdigest()


def _on_host(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor as little-endian float32 in host memory; from a GPU in pieces, on the current stream."""
    flat = tensor.detach().reshape(-1)
    if not flat.is_cuda:
        return np.ascontiguousarray(flat.numpy(), dtype="<f4").reshape(tensor.shape)
    parts = [part.cpu().numpy() for part in flat.split(PIECE // 4)]
    return np.concatenate(parts).astype("<f4", copy=False).reshape(tensor.shape)


def _preamble(metadata: dict[str, str], arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """The head of a safetensors file: its length, then JSON that says where each tensor lies."""
    places: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        places[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(places).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at multiples of eight bytes
    return struct.pack("<Q", len(text)) + text


def _pieces(array: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    raw = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), PIECE):
        yield raw[start : start + PIECE]
