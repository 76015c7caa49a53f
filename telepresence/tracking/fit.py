"""The head fit: rotation, translation, face units (and jaw) that put the head's landmarks on the detected ones.

Iteratively reweighted Gauss-Newton on the maximum a-posteriori problem

    sum_l w_l rho(|f (R x_l(u) + t)_xy / z + c - y_l| / sigma)
      + sum_u lambda_u (u - score_u)^2 + temporal_u (u - u_before)^2          with u in [low, high],

with Huber's rho, weights by region, trust and visibility, an analytic Jacobian, and the bounds by an active set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Float64

from .basis import JAW_PITCH, JAW_WEIGHT, LandmarkBasis
from .bundle import project, robust
from .landmarks import FaceLandmarks

SIGMA = 2.5  # px of a picture whose longest side is 512: the noise of a landmark
HUBER = 2.5  # sigmas where the loss turns linear
VISIBLE = (0.0, 0.4)  # cosine of normal and view between which a landmark's weight rises from the floor to 1
VISIBILITY_FLOOR = 0.02
WARM_ITERATIONS, COLD_ITERATIONS = 2, 6
REFERENCE_INTERVAL = 1 / 30  # s: the temporal weights are meant for this frame rate
POSE = 6  # rotation, translation


@dataclass(frozen=True)
class Pinhole:
    """What the fit knows of the camera: focal length and principal point in px, and its px per px of a 512 picture."""

    focal: float
    cx: float
    cy: float
    scale: float

    @staticmethod
    def of_picture(width: int, height: int, focal: float) -> Pinhole:
        """The camera whose principal point is the middle of the picture."""
        return Pinhole(focal, width / 2, height / 2, max(width, height) / 512)


@dataclass(frozen=True)
class HeadFit:
    """Where a head is and what its face does, in float64.

    rotation (3, 3) and translation (3,): head to camera; units (U,), jaw (3,) rad; residual (L, 2) px: detected minus
    projected; error: mean distance over the L landmarks, px of a picture whose longest side is 512.
    """

    rotation: Float64
    translation: Float64
    units: Float64
    jaw: Float64
    residual: Float64
    error: float


@dataclass(frozen=True)
class Sightings:
    """Points of the rigid head found in a picture.

    points: (M, 3) m, head space; covariances (M, 3, 3) m^2 of them.   pixels: (M, 2) px, found with an error of
    ``sigma`` px in each direction.
    """

    points: Float64
    pixels: Float64
    covariances: Float64
    sigma: float


def initial_fit(basis: LandmarkBasis, camera: Pinhole, face: FaceLandmarks) -> HeadFit:
    """A first guess from one picture: the similarity that carries the head's landmarks onto MediaPipe's 3-D points.

    MediaPipe's depth has the scale of its x, as in a weak perspective; the least-squares similarity is Umeyama's.
    """
    units = np.clip(basis.priors.mean(face.scores), basis.priors.low, basis.priors.high)
    jaw = _jaw_prior(basis, face)
    source, target = basis.points(units, jaw), face.points[basis.indices].astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    left, stretch, right = np.linalg.svd((target - target_mean).T @ (source - source_mean))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = (left * sign) @ right
    scale = float((stretch * sign).sum() / ((source - source_mean) ** 2).sum())
    depth = camera.focal / scale
    middle = (target_mean[:2] - (camera.cx, camera.cy)) / camera.focal * depth
    translation = np.array([middle[0], middle[1], depth]) - turn @ source_mean
    return HeadFit(turn, translation, units, jaw, np.zeros((len(source), 2)), np.inf)


class HeadFitter:
    """Fits one person before one camera, picture by picture."""

    def __init__(self, basis: LandmarkBasis, camera: Pinhole) -> None:
        self.basis = basis
        self.camera = camera

    def fit(
        self,
        face: FaceLandmarks,
        before: HeadFit | None,
        interval: float = REFERENCE_INTERVAL,
        texture: Sightings | None = None,
        start: HeadFit | None = None,
    ) -> HeadFit:
        """The fit to ``face`` and ``texture``; warm from ``before``, ``interval`` seconds ago, or cold if that is None.

        ``start`` is a better guess of the pose than ``before``.
        """
        if start is None:
            start = before if before is not None else initial_fit(self.basis, self.camera, face)
        temporal = (
            self.basis.priors.temporal * (REFERENCE_INTERVAL / max(interval, 1e-3)) if before is not None else 0.0
        )
        anchor = before.units if before is not None else start.units
        fit = start
        for _ in range(WARM_ITERATIONS if before is not None else COLD_ITERATIONS):
            system = self.linearise(fit, face)
            if texture is not None:
                self._see(system, fit, texture)
            system.pull(POSE, self.basis.priors.weight, self.basis.priors.mean(face.scores) - fit.units)
            if before is not None:
                system.pull(POSE, temporal, anchor - fit.units)
            if self.basis.has_jaw:
                system.pull(POSE + self.basis.units, JAW_WEIGHT, _jaw_prior(self.basis, face) - fit.jaw)
            fit = self.moved(fit, self._bounded_step(system, fit.units))
        return self.measured(fit, face)

    def linearise(self, fit: HeadFit, face: FaceLandmarks) -> NormalEquations:
        """The weighted least-squares problem of the landmarks around ``fit``, in (pose, units, jaw)."""
        residual, weight, jacobian = self.residuals(fit, face)
        return NormalEquations.of(residual, weight, jacobian)

    def follow(self, before: HeadFit, face: FaceLandmarks) -> HeadFit:
        """``before`` moved as its landmarks moved: whatever they missed then they are taken to miss now."""
        residual, weight, jacobian = self.residuals(before, face, pose_only=True)
        residual = residual - before.residual.T / (SIGMA * self.camera.scale)
        system = NormalEquations.of(residual, weight, jacobian)
        step = np.linalg.solve(system.matrix, system.vector)
        rotation, translation = rotation_matrix(step[:3]) @ before.rotation, before.translation + step[3:]
        return replace(before, rotation=rotation, translation=translation)

    def pose_information(self, fit: HeadFit, face: FaceLandmarks) -> Float64:
        """(6, 6): how surely the landmarks place the head, whatever the face does, if their errors were independent."""
        system = self.linearise(fit, face)
        system.pull(POSE, self.basis.priors.weight, np.zeros(self.basis.units))
        if self.basis.has_jaw:
            system.pull(POSE + self.basis.units, JAW_WEIGHT, np.zeros(3))
        cross = system.matrix[:POSE, POSE:]
        information: Float64 = system.matrix[:POSE, :POSE] - cross @ np.linalg.solve(
            system.matrix[POSE:, POSE:], cross.T
        )
        return information

    def _see(self, system: NormalEquations, fit: HeadFit, texture: Sightings) -> None:
        """Add what ``texture`` says about the pose."""
        camera = self.camera
        expected, by_point, by_pose = project(texture.points, fit.rotation[None], fit.translation[None], camera.focal)
        residual = texture.pixels - (camera.cx, camera.cy) - expected[:, 0]
        by_point, by_pose = by_point[:, 0], by_pose[:, 0]
        spread = texture.sigma**2 * np.eye(2) + by_point @ texture.covariances @ by_point.transpose(0, 2, 1)
        sure = np.linalg.inv(spread)
        distance = np.sqrt(np.einsum("ma,mab,mb->m", residual, sure, residual))
        sure *= robust(distance)[:, None, None]
        weighted = np.einsum("mai,mab->mib", by_pose, sure)
        system.matrix[:POSE, :POSE] += np.einsum("mib,mbj->ij", weighted, by_pose)
        system.vector[:POSE] += np.einsum("mib,mb->i", weighted, residual)

    def residuals(
        self, fit: HeadFit, face: FaceLandmarks, *, pose_only: bool = False
    ) -> tuple[Float64, Float64, Float64]:
        """Detected minus projected (2, L) in sigmas, weights (L,), and the projections' Jacobian (2, L, P).

        With ``pose_only`` P is 6: the face stays as it is.
        """
        basis, camera = self.basis, self.camera
        sigma = SIGMA * camera.scale
        points, by_units, by_jaw = basis.jacobian(fit.units, fit.jaw)
        turned = points @ fit.rotation.T
        seen = turned + fit.translation
        inverse_z = 1.0 / np.maximum(seen[:, 2], 1e-3)
        ratio = seen[:, :2] * inverse_z[:, None]
        residual = (face.points[basis.indices, :2] - (camera.focal * ratio + (camera.cx, camera.cy))) / sigma

        # d(projection)/d(camera-space point), one row for u and one for v.
        gain = (camera.focal / sigma) * inverse_z
        zero = np.zeros_like(gain)
        gradients = (
            np.stack([gain, zero, -gain * ratio[:, 0]], 1),
            np.stack([zero, gain, -gain * ratio[:, 1]], 1),
        )
        columns = POSE if pose_only else POSE + basis.units + (3 if by_jaw is not None else 0)
        jacobian = np.empty((2, len(points), columns))
        for axis, gradient in enumerate(gradients):
            rows = jacobian[axis]
            rows[:, 0] = turned[:, 1] * gradient[:, 2] - turned[:, 2] * gradient[:, 1]  # turned x gradient
            rows[:, 1] = turned[:, 2] * gradient[:, 0] - turned[:, 0] * gradient[:, 2]
            rows[:, 2] = turned[:, 0] * gradient[:, 1] - turned[:, 1] * gradient[:, 0]
            rows[:, 3:6] = gradient
            if pose_only:
                continue
            in_head = gradient @ fit.rotation
            rows[:, POSE : POSE + basis.units] = _contract(in_head, by_units)
            if by_jaw is not None:
                rows[:, POSE + basis.units :] = _contract(in_head, by_jaw)

        view = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        facing = -((basis.normals @ fit.rotation.T) * view).sum(1)
        visible = np.clip((facing - VISIBLE[0]) / (VISIBLE[1] - VISIBLE[0]), VISIBILITY_FLOOR, 1.0)
        distance = np.hypot(residual[:, 0], residual[:, 1])
        robust = HUBER / np.maximum(distance, HUBER)
        return np.ascontiguousarray(residual.T), basis.weights * visible * robust, jacobian

    def moved(self, fit: HeadFit, step: Float64) -> HeadFit:
        """``fit`` after a step in (pose, units, jaw); units stay within their bounds."""
        units = self.basis.units
        return HeadFit(
            rotation_matrix(step[:3]) @ fit.rotation,
            fit.translation + step[3:6],
            np.clip(fit.units + step[POSE : POSE + units], self.basis.priors.low, self.basis.priors.high),
            fit.jaw + step[POSE + units :] if self.basis.has_jaw else fit.jaw,
            fit.residual,
            fit.error,
        )

    def measured(self, fit: HeadFit, face: FaceLandmarks) -> HeadFit:
        """``fit`` with its residual and error."""
        residual = face.points[self.basis.indices, :2] - self.project(fit)
        error = float(np.hypot(residual[:, 0], residual[:, 1]).mean() / self.camera.scale)
        return HeadFit(fit.rotation, fit.translation, fit.units, fit.jaw, residual, error)

    def project(self, fit: HeadFit) -> Float64:
        """(L, 2) px: where the fitted head's landmarks lie in the picture."""
        seen = self.basis.points(fit.units, fit.jaw) @ fit.rotation.T + fit.translation
        return self.camera.focal * seen[:, :2] / seen[:, 2:] + (self.camera.cx, self.camera.cy)

    def _bounded_step(self, system: NormalEquations, units: Float64) -> Float64:
        low = np.full(system.size, -np.inf)
        high = np.full(system.size, np.inf)
        inside = slice(POSE, POSE + self.basis.units)
        low[inside], high[inside] = self.basis.priors.low - units, self.basis.priors.high - units
        return system.solve_within(low, high)


@dataclass(frozen=True)
class NormalEquations:
    """``matrix @ step = vector``: (P, P) and (P,), changed in place by ``pull``."""

    matrix: Float64
    vector: Float64

    @staticmethod
    def of(residual: Float64, weight: Float64, jacobian: Float64) -> NormalEquations:
        """From residuals (2, L), weights (L,) and Jacobian (2, L, P)."""
        root = np.sqrt(weight)
        rows = (jacobian * root[:, None]).reshape(-1, jacobian.shape[2])
        return NormalEquations(rows.T @ rows, rows.T @ (residual * root).reshape(-1))

    @property
    def size(self) -> int:
        return len(self.vector)

    def pull(self, start: int, weight: Float64 | float, towards: Float64) -> None:
        """Add a prior: variables from ``start`` on want to move by ``towards``, with ``weight``."""
        index = np.arange(start, start + len(towards))
        self.matrix[index, index] += weight
        self.vector[index] += weight * towards

    def solve_within(self, low: Float64, high: Float64, rounds: int = 6) -> Float64:
        """The step that solves them in [low, high], by the primal-dual active set method.

        A variable is held at a bound while it would go beyond, and let go once the others push it back inside.
        """
        diagonal = np.diag(self.matrix)
        never = high <= low
        # Where a variable stands at its bound and is pushed outwards, it will most likely stay.
        at_low, at_high = never | ((low >= 0.0) & (self.vector < 0.0)), (high <= 0.0) & (self.vector > 0.0) & ~never
        step = np.zeros_like(self.vector)
        for _ in range(rounds):
            held = at_low | at_high
            step = np.where(at_low, low, np.where(at_high, high, 0.0))
            free, fixed = np.flatnonzero(~held), np.flatnonzero(held)
            rest = self.vector[free] - self.matrix[np.ix_(free, fixed)] @ step[fixed]
            step[free] = np.linalg.solve(self.matrix[np.ix_(free, free)], rest)
            wanted = step + np.where(held, self.vector - self.matrix @ step, 0.0) / diagonal
            now_low, now_high = never | (wanted < low), ~never & (wanted > high)
            if (now_low == at_low).all() and (now_high == at_high).all():
                break
            at_low, at_high = now_low, now_high
        return np.clip(step, low, high)


def _jaw_prior(basis: LandmarkBasis, face: FaceLandmarks) -> Float64:
    return np.array([JAW_PITCH * face.scores.get("jawOpen", 0.0) if basis.has_jaw else 0.0, 0.0, 0.0])


def _contract(gradient: Float64, directions: Float64) -> NDArray[np.float64]:
    """Gradients (L, 3) times directions (3, L, U): (L, U)."""
    result = gradient[:, 0, None] * directions[0]
    result += gradient[:, 1, None] * directions[1]
    result += gradient[:, 2, None] * directions[2]
    return result
