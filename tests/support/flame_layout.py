"""A head in FLAME's layout, made from the open head: what tests load where a user would bring FLAME.

Nothing of FLAME is in it.  Skin and eyeballs of the open head are re-meshed to FLAME's counts, its identity and
expression directions are continued by smooth waves, and the correctives are small.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from insta_runtime.head import load_head
from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, JOINTS, SKIN

VERTICES, TRIANGLES = 5023, 9976


def flame_layout() -> dict[str, np.ndarray]:
    """The arrays of a FLAME file, by FLAME's names."""
    head = load_head()
    rng = np.random.default_rng(7)
    faces = head.faces[np.isin(head.face_group, (SKIN, EYE_LEFT, EYE_RIGHT))]
    used = np.unique(faces)
    faces = np.searchsorted(used, faces)
    # Splitting a triangle adds one vertex and two triangles; what is then too much is cut from the collar.
    splits = VERTICES - len(used)
    collar = head.skin_weights[used, 0][faces].sum(1)
    faces = faces[np.sort(np.argsort(collar)[: TRIANGLES - 2 * splits])]
    split = np.sort(rng.choice(np.flatnonzero((faces < used.size).all(1)), splits, replace=False))
    centre = np.arange(len(used), VERTICES)
    a, b, c = faces[split].T
    parents = np.stack([a, b, c], axis=1)
    faces = np.concatenate(
        [
            np.delete(faces, split, 0),
            np.stack([a, b, centre], 1),
            np.stack([b, c, centre], 1),
            np.stack([c, a, centre], 1),
        ]
    )

    def remesh(values: np.ndarray) -> np.ndarray:
        """(..., V, C) of the open head -> (..., 5023, C)."""
        kept = values[..., used, :].astype(np.float64)
        return np.concatenate([kept, kept[..., parents, :].mean(-2)], axis=-2)

    template = remesh(head.template)
    waves = rng.normal(0.0, 15.0, (400, 3)) @ template.T + rng.uniform(0.0, 6.3, (400, 1))
    smooth = 3e-4 * np.sin(waves)[:, :, None] * rng.normal(size=(400, 1, 3))
    still = np.array([name.startswith(("jaw", "eyeBlink")) for name in head.expression_names])
    moves = remesh(head.expression_dirs[~still])
    directions = np.concatenate([remesh(head.shape_dirs), smooth[: 300 - len(head.shape_dirs)], moves, smooth])[:400]
    weights = remesh(head.skin_weights)
    eyes = weights[:, 3:].max(1) > 0.5
    directions[300:, eyes] = 0.0
    regressor = np.zeros((5, VERTICES))
    for joint, place in enumerate(head.joints):
        near = np.argsort(np.linalg.norm(template - place, axis=1))[:60]
        rows = np.vstack([template[near].T, np.ones(len(near))])
        regressor[joint, near] = np.linalg.pinv(rows) @ [*place, 1.0]
    correctives = np.zeros((36, VERTICES, 3))
    correctives[9:18] = smooth[300:309] * weights[:, 2, None]  # of the jaw
    return {
        "v_template": template,
        "f": faces.astype(np.uint32),
        "shapedirs": np.ascontiguousarray(directions.transpose(1, 2, 0)),
        "posedirs": np.ascontiguousarray(correctives.transpose(1, 2, 0)),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], range(len(JOINTS))], dtype=np.int64),
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def write_pickle(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As FLAME is published: Python 2's protocol, a chumpy variable, a sparse regressor, and things beside arrays.

    Neither chumpy nor scipy is needed: only the names of their classes go into the file.
    """
    variable, sparse = _named_class("chumpy.ch", "Ch"), _named_class("scipy.sparse.csc", "csc_matrix")
    shapedirs, regressor = variable(), sparse()
    shapedirs.__dict__ |= {"x": arrays["shapedirs"], "_dirty_vars": {"x"}, "_itr": None}
    columns, rows = np.nonzero(arrays["J_regressor"].T)
    indptr = np.searchsorted(columns, np.arange(VERTICES + 1))
    regressor.__dict__ |= {"_shape": arrays["J_regressor"].shape, "maxprint": 50}
    regressor.__dict__ |= {"data": arrays["J_regressor"][rows, columns]}
    regressor.__dict__ |= {"indices": rows.astype(np.int32), "indptr": indptr.astype(np.int32)}
    content = {**arrays, "shapedirs": shapedirs, "J_regressor": regressor, "bs_style": "lbs", "bs_type": "lrotmin"}
    added = {"chumpy", "chumpy.ch", "scipy", "scipy.sparse", "scipy.sparse.csc"}
    saved = {name: sys.modules.get(name) for name in added}
    try:
        sys.modules.update({name: ModuleType(name) for name in added})
        for cls in (variable, sparse):
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
        path.write_bytes(pickle.dumps(content, protocol=2))
    finally:
        for name, module in saved.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
    return path


def _named_class(module: str, name: str) -> type:
    return type(name, (), {"__module__": module})
