"""Reader of the open head model, which `tools/bake_open_head.py` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head.check import check_numbers
from insta_runtime.head.embedding import LandmarkEmbedding
from insta_runtime.head.model import REGIONS, HeadModel
from insta_runtime.types import Float32

OPEN_HEAD = Path(__file__).parents[1] / "data" / "open_head.npz"
"""Path of the open default head, which is part of the package."""


def open_head_model(arrays: dict[str, NDArray[Any]], name: str, sha256: str) -> HeadModel:
    """Head model from the ``arrays`` of an open head file, whose displacements are float16 in millimetres.

    ``name`` is the path of the file, for messages.  Raises UserError if it is not an open head of this version.
    """
    try:
        model = _model(arrays, sha256)
    except (KeyError, ValueError, TypeError, IndexError):
        raise UserError(f"{name} is not an open head of this version; give none to use the built-in one") from None
    numbers = {key: array for key, array in arrays.items() if array.dtype.kind == "f"}
    check_numbers(name, numbers, model.faces, model.skin_weights, len(model.template))
    return model


def _model(arrays: dict[str, NDArray[Any]], sha256: str) -> HeadModel:
    meta = json.loads(str(arrays["meta"]))
    names = tuple(str(name) for name in arrays["expression_names"])
    faces = arrays["faces"].astype(np.int64)
    count = len(arrays["template"])

    def shaped(array: NDArray[Any], *shape: int) -> NDArray[Any]:
        if array.shape != shape:
            raise ValueError(f"shape {array.shape} instead of {shape}")
        return array

    def directions(name: str) -> Float32:
        array = shaped(arrays[name], len(arrays[name]), count, 3)
        return array.astype(np.float32) * np.float32(1e-3)

    shape_dirs, expression_dirs = directions("shape_dirs_mm"), directions("expression_dirs_mm")
    if len(names) != len(expression_dirs):
        raise ValueError("there are more expression units than names")
    embedding = None
    if "landmark_face" in arrays:
        embedding = LandmarkEmbedding(
            **{name: arrays[f"landmark_{name}"] for name in ("face", "bary", "sd", "keep", "weight")}
        )
    return HeadModel(
        name=str(meta["name"]),
        basis="arkit52",
        sha256=sha256,
        licence=str(meta["licence"]),
        template=shaped(arrays["template"], count, 3).astype(np.float32),
        shape_dirs=shape_dirs,
        expression_dirs=expression_dirs,
        expression_names=names,
        pose_dirs=None,
        joints=shaped(arrays["joints"], 5, 3).astype(np.float32),
        joint_shape_dirs=shaped(arrays["joint_shape_dirs"], len(shape_dirs), 5, 3).astype(np.float32),
        skin_weights=shaped(arrays["skin_weights"], count, 5).astype(np.float32),
        eyelid_dirs=expression_dirs[[names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]],
        faces=shaped(faces, len(faces), 3),
        face_group=shaped(arrays["face_group"], len(faces)).astype(np.int8),
        masks={name: shaped(arrays[f"mask_{name}"], count).astype(np.float32) for name in REGIONS},
        embedding=embedding,
    )
