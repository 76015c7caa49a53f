"""Computation of a landmark embedding: positions of MediaPipe's landmarks on the surface of any head model.

A dozen variants of the head (identities, open mouths) are rendered without texture from 17 directions, and MediaPipe's
face landmarker is run on each render.  The ray through a detected landmark hits a triangle of the mesh, which gives one
sample of the landmark's position.  The embedding is the geometric median of the samples, averaged with that of the
mirrored landmark; their spread measures the reliability of the landmark (those of the face contour slide along the
silhouette).  The result is an `insta_runtime.head.embedding.LandmarkEmbedding`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.files import atomic_file
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.head.embedding import LANDMARKS, LandmarkEmbedding
from insta_runtime.head.model import SKIN
from insta_runtime.render.raster import Raster, rasterise
from insta_runtime.types import Camera, Float32, Float64

from .canonical_face import mirror_landmarks
from .clay_renders import head_variants, render_clay, view_rotations
from .face_models import FaceMeshModel, FaceModels, load_face_mesh
from .surface_points import geometric_median, nearest_on_surface, spread

log = logging.getLogger("telepresence")

VERSION = 2
"""Version of the procedure that computes embeddings; part of the file name of a cached embedding."""
SIZE = 640
"""Side of a rendered square image, in px."""
DISTANCE = 0.75
"""Distance from the camera to the centre of the face, in metres."""
FOCAL = 1.5
"""Focal length of the rendered images, as a multiple of `SIZE`."""
GRAZING = 0.35
"""Minimum cosine of the angle between surface normal and viewing ray at which a ray hit is used."""
MIN_HITS = 10
"""Minimum number of ray hits from which the position of a landmark is computed."""
SNAP = 5
"""Maximum distance, in px, over which a landmark of the inner lips is moved to a pixel that shows a lip."""
THROUGH = 0.012
"""Depth behind the nearest lip, in metres, beyond which a pixel shows the inside of the open mouth."""
MAX_SD = 0.004
"""Maximum spread of the sampled positions of a landmark, in metres, at which it is used for tracking."""

# Landmark numbers of MediaPipe's face mesh.  The inner lips are distinguished only while the mouth is open.
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""Landmark numbers of the inner contour of the lips."""
OUTER_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""Landmark numbers of the outer contour of the lips."""
LIDS = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
        33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)  # fmt: skip
"""Landmark numbers of the eyelids."""
CHIN = (148, 152, 176, 377, 400)  # on the contour, but the only landmarks that move with the jaw
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176,
        149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
"""Landmark numbers of the face contour; these landmarks slide along the silhouette when the head turns."""
LID_WEIGHT = 8.0
"""Factor on the fit weights of the eyelid landmarks, which are few compared with those of the cheeks."""
LIP_WEIGHT = 3.0
"""Factor on the fit weights of the lip landmarks, which are few compared with those of the cheeks."""


def embedding_for(
    model: HeadModel, models: FaceModels, progress: Callable[[float], None] | None = None
) -> LandmarkEmbedding:
    """Landmark embedding of ``model``: included in it, cached, or newly computed (a minute or two) and then cached.

    ``progress`` is called with the completed fraction, in [0, 1].  Raises UserError if the face landmarker in
    ``models`` is not available.
    """
    if model.embedding is not None:
        return model.embedding
    landmarker_path = models.landmarker()
    landmarker = hashlib.sha256(landmarker_path.read_bytes()).hexdigest()
    name = f"{model.sha256[:20]}-{landmarker[:12]}-{VERSION}.npz"
    import platformdirs

    path = Path(platformdirs.user_cache_dir("telepresence")) / "embeddings" / name
    try:
        with np.load(path, allow_pickle=False) as stored:
            return LandmarkEmbedding(**{field: stored[field] for field in stored.files})
    except (OSError, ValueError, TypeError, zipfile.BadZipFile):
        embedding = compute_embedding(model, landmarker_path, progress, models.library)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, concurrent=True) as file:
            np.savez_compressed(file, allow_pickle=False, **embedding.arrays())
    except OSError as error:  # read-only or full: it is computed again in the next call
        log.warning("%s cannot be written: %s", path, error.strerror or error)
    return embedding


def compute_embedding(
    model: HeadModel,
    landmarker_path: Path,
    progress: Callable[[float], None] | None = None,
    library: str = "litert",
) -> LandmarkEmbedding:
    """Compute the positions of MediaPipe's landmarks on the surface of ``model``, from untextured renders of it.

    ``landmarker_path`` is a ``.task`` file of the face landmarker, ``library`` the library that runs it
    (`FaceModels.library`).  ``progress`` is called with the completed fraction, in [0, 1].  The result is deterministic
    for given files and versions.
    """
    landmarker = load_face_mesh(landmarker_path, library, live=False)
    try:
        hits = _collect_hits(model, landmarker, progress or (lambda _: None))
    finally:
        landmarker.close()
    # Closed lips coincide, so positions are compared on the surface with the mouth open.
    surface = HeadRig(model, dtype=torch.float64).canonical(np.zeros(len(model.shape_dirs)), 0.6).vertices.numpy()
    skin = np.flatnonzero(model.face_group == SKIN)
    medians = np.full((LANDMARKS, 3), np.nan)
    sd = np.full(LANDMARKS, np.inf)
    counts = np.zeros(LANDMARKS, dtype=np.int64)
    for landmark, hit in enumerate(hits):
        counts[landmark] = len(hit.face)
        if counts[landmark] >= MIN_HITS:
            points = np.einsum("nkc,nk->nc", surface[model.faces[hit.face]], hit.bary)
            medians[landmark] = geometric_median(points, hit.weight)
            sd[landmark] = spread(points - medians[landmark], hit.weight)
    twins = mirror_landmarks(landmarker_path)
    mirrored = medians[twins] * (-1.0, 1.0, 1.0)
    medians = np.where(np.isnan(mirrored), medians, np.where(np.isnan(medians), mirrored, 0.5 * (medians + mirrored)))
    sd = np.maximum(np.where(np.isinf(sd), sd[twins], sd), np.where(np.isinf(sd[twins]), sd, sd[twins]))

    found = np.flatnonzero(np.isfinite(medians).all(1))
    face = np.full(LANDMARKS, -1, dtype=np.int32)
    bary = np.zeros((LANDMARKS, 3), dtype=np.float32)
    bary[:, 0] = 1.0
    for landmark in found.tolist():
        face[landmark], bary[landmark] = nearest_on_surface(medians[landmark], surface, model.faces, skin)

    keep = (sd < MAX_SD) & (face >= 0) & (np.maximum(counts, counts[twins]) >= MIN_HITS)
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


class _RayHits:
    """Ray hits of one landmark in all renders: triangles, barycentrics, and cosines of the viewing angle as weights."""

    def __init__(self, rows: list[tuple[int, Float64, float]]) -> None:
        self.face = np.array([row[0] for row in rows], dtype=np.int64)
        self.bary = np.array([row[1] for row in rows]).reshape(-1, 3)
        self.weight = np.array([row[2] for row in rows])


def _collect_hits(model: HeadModel, landmarker: FaceMeshModel, progress: Callable[[float], None]) -> list[_RayHits]:
    """Ray hits of every landmark on the skin, over all renders."""
    rows: list[list[tuple[int, Float64, float]]] = [[] for _ in range(LANDMARKS)]
    inner = set(INNER_LIPS)
    variants = list(head_variants(model))
    views = view_rotations()
    rig = HeadRig(model)
    camera = Camera(FOCAL * SIZE, FOCAL * SIZE, SIZE / 2, SIZE / 2, SIZE, SIZE)
    for number, (shape, state, mouth_open) in enumerate(variants):
        mesh = rig.pose(shape, state)
        middle = mesh.vertices[torch.as_tensor(model.masks["face"] > 0.5)].mean(0)
        for view, rotation in enumerate(views):
            turned = (mesh.vertices - middle) @ torch.as_tensor(rotation.T, dtype=torch.float32)
            in_camera = turned + torch.tensor([0.0, 0.0, DISTANCE])
            raster = rasterise(in_camera, mesh.faces, camera)
            found = landmarker.detect(render_clay(in_camera, raster))
            progress((number * len(views) + view + 1) / (len(variants) * len(views)))
            if found is None:
                continue
            pixels = found[0][:, :2].astype(np.float64)
            skin_hits = _skin_hits(pixels, in_camera.numpy().astype(np.float64), model, raster, camera)
            for landmark, face, bary, cosine in skin_hits:
                if mouth_open or landmark not in inner:
                    rows[landmark].append((face, bary, cosine))
    return [_RayHits(row) for row in rows]


def _skin_hits(
    pixels: Float64, vertices: Float64, model: HeadModel, raster: Raster, camera: Camera
) -> Iterator[tuple[int, int, Float64, float]]:
    """Skin hits (landmark, face, barycentrics, cosine), unless grazing, of the rays through ``pixels`` (L, 2)."""
    triangle, depth = raster.triangle.numpy(), raster.depth.numpy()
    skin = (triangle >= 0) & (model.face_group[triangle] == SKIN)
    inner = set(INNER_LIPS)
    for landmark, (u, v) in enumerate(pixels[:468].tolist()):  # the others are the irises
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
    """Nearest pixel to (u, v) that shows a lip and not the inside of the mouth; (-1, -1) if there is none near."""
    top, left = max(0, math.floor(v) - 12), max(0, math.floor(u) - 12)
    window = np.where(skin, depth, np.inf)[top : top + 25, left : left + 25]
    if not np.isfinite(window).any():
        return -1.0, -1.0
    rows, columns = np.nonzero(window < window.min() + THROUGH)
    away = np.hypot(columns + left + 0.5 - u, rows + top + 0.5 - v)
    nearest = int(away.argmin())
    if away[nearest] < math.sqrt(0.5):
        return u, v  # already on a lip
    if away[nearest] > SNAP:
        return -1.0, -1.0
    return float(columns[nearest] + left + 0.5), float(rows[nearest] + top + 0.5)
