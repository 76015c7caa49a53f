"""Where MediaPipe's landmarks lie on any head: render it, ask the landmarker, look where the landmarks land.

A dozen variants of the head (identities, open mouths) are drawn as plain clay from 17 directions.  Each
landmark of each picture is a ray; the triangle that it meets is one vote for the place of the landmark on the
template.  The votes' geometric median, averaged with that of the mirrored landmark, is the embedding; their
spread says how far the landmark can be trusted (those of the face contour slide along the silhouette).
"""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.files import atomic_file
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.head.embedding import LANDMARKS, LandmarkEmbedding
from insta_runtime.head.model import SKIN
from insta_runtime.render.raster import Raster, rasterise
from insta_runtime.types import Camera, Float32, Float64, HeadState

from .models import import_mediapipe

VERSION = 2  # of the procedure; part of the name of a cached result
SIZE = 640
DISTANCE = 0.75  # metres from the camera to the middle of the face
FOCAL = 1.5  # x SIZE
GRAZING = 0.35  # cosine between surface and view below which a vote does not count
MIN_VOTES = 10
SNAP = 5  # pixels that an inner-lip landmark may lie off the lip
THROUGH = 0.012  # metres behind the lips at which a ray has fallen through them
MAX_SD = 0.004
SEED = 4
IDENTITIES = 6
IDENTITY_SCALE = 0.8

# Landmark numbers of MediaPipe's face mesh.  Only an open mouth tells the inner lips apart.
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
OUTER_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIDS = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
        33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)  # fmt: skip
CHIN = (148, 152, 176, 377, 400)  # on the contour, yet the only ones that see the jaw open
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176,
        149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
LID_WEIGHT, LIP_WEIGHT = 8.0, 3.0  # opening and closing would drown in the many landmarks of the cheeks


def embedding_for(
    model: HeadModel, landmarker_path: Path, progress: Callable[[float], None] | None = None
) -> LandmarkEmbedding:
    """The embedding that came with the head, or the cached one, or a new one (half a minute), then cached."""
    if model.embedding is not None:
        return model.embedding
    landmarker = hashlib.sha256(landmarker_path.read_bytes()).hexdigest()
    name = f"{model.sha256[:20]}-{landmarker[:12]}-{VERSION}.npz"
    import platformdirs

    path = Path(platformdirs.user_cache_dir("telepresence")) / "embeddings" / name
    try:
        with np.load(path, allow_pickle=False) as stored:
            return LandmarkEmbedding(**{field: stored[field] for field in stored.files})
    except (OSError, ValueError, TypeError, zipfile.BadZipFile):
        embedding = compute_embedding(model, landmarker_path, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, concurrent=True) as file:
        np.savez_compressed(file, allow_pickle=False, **embedding.arrays())
    return embedding


def compute_embedding(
    model: HeadModel, landmarker_path: Path, progress: Callable[[float], None] | None = None
) -> LandmarkEmbedding:
    """Ask MediaPipe's Face Landmarker (the ``.task`` file) about renders of ``model``.

    ``progress`` is called with the part done, in [0, 1].  Deterministic for given files and versions.
    """
    votes = _votes(model, landmarker_path, progress or (lambda _: None))
    # Lips that touch cannot be told apart by place: think of the surface as it is with the mouth open.
    surface = HeadRig(model, dtype=torch.float64).canonical(np.zeros(len(model.shape_dirs)), 0.6).vertices.numpy()
    skin = np.flatnonzero(model.face_group == SKIN)
    medians = np.full((LANDMARKS, 3), np.nan)
    sd = np.full(LANDMARKS, np.inf)
    counts = np.zeros(LANDMARKS, dtype=np.int64)
    for landmark, vote in enumerate(votes):
        counts[landmark] = len(vote.face)
        if counts[landmark] >= MIN_VOTES:
            points = np.einsum("nkc,nk->nc", surface[model.faces[vote.face]], vote.bary)
            medians[landmark] = _geometric_median(points, vote.weight)
            sd[landmark] = _spread(points - medians[landmark], vote.weight)
    twins = mirror_landmarks(landmarker_path)
    mirrored = medians[twins] * (-1.0, 1.0, 1.0)
    medians = np.where(np.isnan(mirrored), medians, np.where(np.isnan(medians), mirrored, 0.5 * (medians + mirrored)))
    sd = np.maximum(np.where(np.isinf(sd), sd[twins], sd), np.where(np.isinf(sd[twins]), sd, sd[twins]))

    found = np.flatnonzero(np.isfinite(medians).all(1))
    face = np.full(LANDMARKS, -1, dtype=np.int32)
    bary = np.zeros((LANDMARKS, 3), dtype=np.float32)
    bary[:, 0] = 1.0
    for landmark in found.tolist():
        face[landmark], bary[landmark] = _nearest_on_surface(medians[landmark], surface, model.faces, skin)

    keep = (sd < MAX_SD) & (face >= 0) & (np.maximum(counts, counts[twins]) >= MIN_VOTES)
    keep[list(OVAL)] = False
    forced = np.array([*INNER_LIPS, *LIDS, *CHIN])
    keep[forced] = face[forced] >= 0
    weight = np.where(keep, 1.0 / (1.0 + (sd / 0.0025) ** 2), 0.0)
    weight /= weight[keep].mean()
    weight[list(LIDS)] *= LID_WEIGHT
    weight[[*INNER_LIPS, *OUTER_LIPS]] *= LIP_WEIGHT
    return LandmarkEmbedding(
        face=face,
        bary=bary,
        sd=np.where(np.isfinite(sd), sd, 1.0).astype(np.float32),
        keep=keep,
        weight=weight.astype(np.float32),
    )


class _Votes:
    """What the renders say about one landmark: triangles, places in them, and how frontal each was seen."""

    def __init__(self, rows: list[tuple[int, Float64, float]]) -> None:
        self.face = np.array([row[0] for row in rows], dtype=np.int64)
        self.bary = np.array([row[1] for row in rows]).reshape(-1, 3)
        self.weight = np.array([row[2] for row in rows])


def _votes(model: HeadModel, landmarker_path: Path, progress: Callable[[float], None]) -> list[_Votes]:
    """For each landmark, every place on the skin where a render put it."""
    mp = import_mediapipe()
    vision = mp.tasks.vision
    options = vision.FaceLandmarkerOptions(
        base_options=mp.tasks.BaseOptions(model_asset_path=str(landmarker_path)), running_mode=vision.RunningMode.IMAGE
    )
    rows: list[list[tuple[int, Float64, float]]] = [[] for _ in range(LANDMARKS)]
    inner = set(INNER_LIPS)
    variants = list(_variants(model))
    views = _views()
    rig = HeadRig(model)
    camera = Camera(FOCAL * SIZE, FOCAL * SIZE, SIZE / 2, SIZE / 2, SIZE, SIZE)
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        for number, (shape, state, mouth_open) in enumerate(variants):
            mesh = rig.pose(shape, state)
            middle = mesh.vertices[torch.as_tensor(model.masks["face"] > 0.5)].mean(0)
            for view, rotation in enumerate(views):
                turned = (mesh.vertices - middle) @ torch.as_tensor(rotation.T, dtype=torch.float32)
                in_camera = turned + torch.tensor([0.0, 0.0, DISTANCE])
                raster = rasterise(in_camera, mesh.faces, camera)
                picture = clay(in_camera, raster)
                result = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=picture))
                progress((number * len(views) + view + 1) / (len(variants) * len(views)))
                if not result.face_landmarks:
                    continue
                pixels = np.array([(p.x * SIZE, p.y * SIZE) for p in result.face_landmarks[0]])
                hits = _hits(pixels, in_camera.numpy().astype(np.float64), model, raster, camera)
                for landmark, face, bary, cosine in hits:
                    if mouth_open or landmark not in inner:
                        rows[landmark].append((face, bary, cosine))
    return [_Votes(row) for row in rows]


def _variants(model: HeadModel) -> Iterator[tuple[Float32, HeadState, bool]]:
    """(shape, state, whether the mouth is open): the mean face, other people, open mouths, raised brows."""
    rng = np.random.default_rng(SEED)
    mean = np.zeros(len(model.shape_dirs), dtype=np.float32)
    units = len(model.expression_names)
    yield mean, HeadState.neutral(units), False
    for _ in range(IDENTITIES):
        someone = mean.copy()
        steady = min(60, len(mean))  # the leading components hold what is known about people
        someone[:steady] = IDENTITY_SCALE * rng.standard_normal(steady)
        yield someone, HeadState.neutral(units), False
    if model.basis == "flame":
        for angle in (0.15, 0.22, 0.3, 0.37, 0.26):
            yield mean, replace(HeadState.neutral(units), jaw_pose=np.array([angle, 0.0, 0.0], np.float32)), True
        return
    lower, upper = ("mouthLowerDownLeft", "mouthLowerDownRight"), ("mouthUpperUpLeft", "mouthUpperUpRight")
    brows = ("browInnerUp", "browOuterUpLeft", "browOuterUpRight")
    for names, opening in ((lower, 0.35), (upper, 0.5), ((), 0.65), (lower + upper, 0.4), (brows, 0.0)):
        state = HeadState.neutral(units)
        state.expression[[model.expression_names.index(name) for name in names]] = 0.7
        state.expression[model.expression_names.index("jawOpen")] = opening
        yield mean, state, opening > 0.0


def _views() -> list[Float64]:
    """17 rotations (3, 3) from head to camera axes: a fan of yaw at eye level, narrower ones above and below."""
    angles = [(yaw, 0.0) for yaw in (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)]
    angles += [(yaw, pitch) for pitch in (-0.25, 0.25) for yaw in (-0.5, -0.25, 0.0, 0.25, 0.5)]
    rotations = []
    for yaw, pitch in angles:
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        rotations.append(np.diag([1.0, -1.0, -1.0]) @ nod @ turn)
    return rotations


def clay(vertices_cam: torch.Tensor, raster: Raster) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 of a mesh as smooth, untextured clay, lit from the upper left of the camera."""
    faces = raster.faces
    corner = vertices_cam[faces]
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    smooth = torch.zeros_like(vertices_cam).index_add_(0, faces.flatten(), normal.repeat_interleave(3, 0))
    shade = raster.interpolate(torch.nn.functional.normalize(smooth, dim=1))
    light = torch.nn.functional.normalize(torch.tensor([-0.35, -0.5, -1.0]), dim=0)
    brightness = 0.25 + 0.75 * (torch.nn.functional.normalize(shade, dim=-1) @ light).clamp_min(0.0)
    picture = brightness[..., None] * torch.tensor([0.80, 0.66, 0.58])
    picture[~raster.mask] = torch.tensor([0.35, 0.38, 0.42])
    return np.ascontiguousarray((picture * 255.0).to(torch.uint8).numpy())


def _hits(
    pixels: Float64, vertices: Float64, model: HeadModel, raster: Raster, camera: Camera
) -> Iterator[tuple[int, int, Float64, float]]:
    """(landmark, face, barycentrics, cosine) where the rays of ``pixels`` (L, 2) meet the skin, not grazing."""
    triangle, depth = raster.triangle.numpy(), raster.depth.numpy()
    skin = (triangle >= 0) & (model.face_group[triangle] == SKIN)
    inner = set(INNER_LIPS)
    for landmark, (u, v) in enumerate(pixels[:468].tolist()):  # what follows are the irises
        if landmark in inner:
            u, v = _onto_lip(u, v, skin, depth)
        column, row = math.floor(u), math.floor(v)
        if not (0 <= column < camera.width and 0 <= row < camera.height and skin[row, column]):
            continue
        face = int(triangle[row, column])
        ray = np.array([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0])
        corners = vertices[model.faces[face]]
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        cosine = -float(normal @ ray / (np.linalg.norm(normal) * np.linalg.norm(ray) + 1e-12))
        if cosine < GRAZING:
            continue
        # The ray meets the triangle's plane where bary @ corners is parallel to it.
        bary = np.clip(np.linalg.solve(corners.T, ray), 0.0, None)
        yield landmark, face, bary / bary.sum(), cosine


def _onto_lip(u: float, v: float, skin: NDArray[np.bool_], depth: Float32) -> tuple[float, float]:
    """The nearest place to (u, v) that shows a lip, not the mouth behind it; (-1, -1) if there is none near."""
    top, left = max(0, math.floor(v) - 12), max(0, math.floor(u) - 12)
    window = np.where(skin, depth, np.inf)[top : top + 25, left : left + 25]
    if not np.isfinite(window).any():
        return -1.0, -1.0
    rows, columns = np.nonzero(window < window.min() + THROUGH)
    away = np.hypot(columns + left + 0.5 - u, rows + top + 0.5 - v)
    nearest = int(away.argmin())
    if away[nearest] < math.sqrt(0.5):
        return u, v  # it shows already
    if away[nearest] > SNAP:
        return -1.0, -1.0
    return float(columns[nearest] + left + 0.5), float(rows[nearest] + top + 0.5)


def _geometric_median(points: Float64, weights: Float64) -> Float64:
    """The point (3,) with the least weighted sum of distances to ``points`` (N, 3) (Weiszfeld's iteration)."""
    median = np.average(points, axis=0, weights=weights)
    for _ in range(50):
        pull = weights / np.maximum(np.linalg.norm(points - median, axis=1), 1e-6)
        median = np.average(points, axis=0, weights=pull)
    return median


def _spread(offsets: Float64, weights: Float64) -> float:
    """The root mean square of ``offsets`` (N, 3) on a surface, if they were normal: 1.2 x their median length.

    A few votes fall through the lips or beside the nose; they say nothing about the others.
    """
    length = np.linalg.norm(offsets, axis=1)
    order = np.argsort(length)
    share = np.cumsum(weights[order])
    return 1.2 * float(length[order[np.searchsorted(share, 0.5 * share[-1])]])


def _nearest_on_surface(
    point: Float64, vertices: Float64, faces: NDArray[np.int64], among: NDArray[np.int64]
) -> tuple[int, Float64]:
    """The triangle of ``among`` nearest to ``point`` and the barycentrics (3,) of its nearest point."""
    centre = vertices[faces[among]].mean(1)
    close = among[np.argsort(((centre - point) ** 2).sum(1))[:64]]
    best = (np.inf, -1, np.zeros(3))
    for face in close:
        corners = vertices[faces[face]]
        bary = _nearest_in_triangle(point, corners)
        distance = float(((bary @ corners - point) ** 2).sum())
        if distance < best[0]:
            best = (distance, int(face), bary)
    return best[1], best[2]


def _nearest_in_triangle(point: Float64, corners: Float64) -> Float64:
    """Barycentrics (3,) of the point of a triangle nearest to ``point``: inside, else on the nearest edge."""
    edges = corners[1:] - corners[0]
    inner = np.linalg.solve(edges @ edges.T, edges @ (point - corners[0]))
    bary = np.array([1.0 - inner.sum(), *inner])
    if (bary >= 0.0).all():
        return bary
    candidates = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge = corners[b] - corners[a]
        along = np.clip((point - corners[a]) @ edge / (edge @ edge), 0.0, 1.0)
        on_edge = np.zeros(3)
        on_edge[[a, b]] = 1.0 - along, along
        candidates.append(on_edge)
    return min(candidates, key=lambda c: float(((c @ corners - point) ** 2).sum()))


# --------------------------------------------------------------------------- the canonical face inside the .task


def mirror_landmarks(landmarker_path: Path) -> NDArray[np.int64]:
    """(478,) the landmark on the other side of the face, from the canonical face inside the ``.task`` file."""
    points = canonical_face(landmarker_path).astype(np.float64)
    distance = np.linalg.norm(points[:, None] * (-1.0, 1.0, 1.0) - points, axis=2)
    irises = np.array([473, 474, 475, 476, 477, 468, 469, 470, 471, 472])
    return np.concatenate([distance.argmin(1), irises])


def canonical_face(landmarker_path: Path) -> Float32:
    """Vertices (468, 3) of MediaPipe's canonical face: centimetres, x to the subject's left, y up, z forward.

    They lie in the geometry metadata of the ``.task`` archive: message field 1 is the mesh, whose field 3
    repeats the floats (x, y, z, u, v) of each vertex.
    """
    with zipfile.ZipFile(landmarker_path) as archive:
        metadata = archive.read("geometry_pipeline_metadata_landmarks.binarypb")
    mesh = next(value for field, value in _fields(metadata) if field == 1 and isinstance(value, bytes))
    floats = [value for field, value in _fields(mesh) if field == 3 and isinstance(value, float)]
    return np.array(floats, dtype=np.float32).reshape(-1, 5)[:, :3]


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """(field number, value) of an encoded protocol buffer message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            yield field, varint()
        elif wire == 2:
            length = varint()
            yield field, message[at : at + length]
            at += length
        elif wire == 5:
            yield field, struct.unpack_from("<f", message, at)[0]
            at += 4
        else:
            raise ValueError(f"wire type {wire} is not in this message")
