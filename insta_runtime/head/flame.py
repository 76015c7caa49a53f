"""Reader of FLAME head models (Li et al. 2017; 2020, 2023 and 2023 Open) from the published ``.pkl`` or an ``.npz``.

Users provide the file themselves, because FLAME's licences do not permit redistribution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head.check import check_numbers
from insta_runtime.head.lids import eyelid_directions
from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, PARENTS, SKIN, HeadModel
from insta_runtime.head.regions import region_masks
from insta_runtime.types import Float32

VERTICES, TRIANGLES, JOINTS, CORRECTIVES = 5023, 9976, 5, 36
SHAPES, EXPRESSIONS = 300, 100
LAYOUT: dict[str, tuple[int, ...]] = {
    "v_template": (VERTICES, 3),
    "f": (TRIANGLES, 3),
    "shapedirs": (VERTICES, 3, SHAPES + EXPRESSIONS),
    "posedirs": (VERTICES, 3, CORRECTIVES),
    "J_regressor": (JOINTS, VERTICES),
    "weights": (VERTICES, JOINTS),
    "kintree_table": (2, JOINTS),
}
"""Shapes of the required arrays of a FLAME file by name."""
LICENCE = "FLAME, from your own file, under the licence that you have from its authors (https://flame.is.tue.mpg.de)."


def flame_model(arrays: dict[str, NDArray[Any]], name: str, sha256: str) -> HeadModel:
    """Head model from the ``arrays`` of a FLAME file by their names there; ``name`` is its path, for messages.

    Raises UserError if arrays are missing, have other shapes (`LAYOUT`) or hold invalid numbers.
    """
    for key, shape in LAYOUT.items():
        if key not in arrays:
            raise UserError(f"{name} is not a FLAME head: it has no array {key!r}")
        if arrays[key].shape != shape:
            raise UserError(f"{name} is not a FLAME head: {key!r} is {arrays[key].shape}, not {shape}")
    if tuple(arrays["kintree_table"][0, 1:]) != PARENTS[1:]:
        raise UserError(f"{name} is not a FLAME head: its joints are not root, neck, jaw and eyes")

    check_numbers(name, {key: arrays[key] for key in LAYOUT}, arrays["f"], arrays["weights"], VERTICES)

    def directions(array: NDArray[Any]) -> Float32:
        """Reorder (V, 3, N) to (N, V, 3)."""
        return np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32)

    template = arrays["v_template"].astype(np.float32)
    shape_dirs = directions(arrays["shapedirs"][..., :SHAPES])
    faces = arrays["f"].astype(np.int64)
    weights = arrays["weights"].astype(np.float32)
    regressor = arrays["J_regressor"].astype(np.float32)
    joints = regressor @ template
    group = np.array([SKIN, SKIN, SKIN, EYE_LEFT, EYE_RIGHT], dtype=np.int8)[weights[faces[:, 0]].argmax(1)]
    return HeadModel(
        name=Path(name).stem,
        basis="flame",
        sha256=sha256,
        licence=LICENCE,
        template=template,
        shape_dirs=shape_dirs,
        expression_dirs=directions(arrays["shapedirs"][..., SHAPES:]),
        expression_names=tuple(f"expression_{i:02d}" for i in range(EXPRESSIONS)),
        pose_dirs=directions(arrays["posedirs"]),
        joints=joints,
        joint_shape_dirs=np.einsum("jv,svc->sjc", regressor, shape_dirs, optimize=True),
        skin_weights=weights,
        eyelid_dirs=eyelid_directions(template, faces, group, joints),
        faces=faces,
        face_group=group,
        masks=region_masks(template, faces, group, joints, weights),
        embedding=None,
    )
