"""Reader of the open head: the npz that `tools/bake_open_head.py` writes."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path

import numpy as np

from insta_runtime.head.embedding import LandmarkEmbedding
from insta_runtime.head.model import REGIONS, HeadModel
from insta_runtime.types import Float32

OPEN_HEAD = Path(__file__).parents[1] / "data" / "open_head.npz"


def read_open_head(path: Path = OPEN_HEAD) -> HeadModel:
    """The head in ``path``.  Raises ValueError, KeyError or OSError if it is not what the bake tool wrote."""
    data = path.read_bytes()
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    meta = json.loads(str(stored["meta"]))
    names = tuple(str(name) for name in stored["expression_names"])

    def metres(name: str) -> Float32:
        return stored[name].astype(np.float32) * np.float32(1e-3)

    expression_dirs = metres("expression_dirs_mm")
    embedding = None
    if "landmark_face" in stored:
        embedding = LandmarkEmbedding(
            **{name: stored[f"landmark_{name}"] for name in ("face", "bary", "sd", "keep", "weight")}
        )
    return HeadModel(
        name=meta["name"],
        basis="arkit52",
        sha256=hashlib.sha256(data).hexdigest(),
        licence=meta["licence"],
        template=stored["template"],
        shape_dirs=metres("shape_dirs_mm"),
        expression_dirs=expression_dirs,
        expression_names=names,
        pose_dirs=None,
        joints=stored["joints"],
        joint_shape_dirs=stored["joint_shape_dirs"],
        skin_weights=stored["skin_weights"],
        eyelid_dirs=expression_dirs[[names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]],
        faces=stored["faces"].astype(np.int64),
        face_group=stored["face_group"],
        masks={name: stored[f"mask_{name}"].astype(np.float32) for name in REGIONS},
        embedding=embedding,
    )
