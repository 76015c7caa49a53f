"""Head fit: rotation, translation, face units and jaw that align the head model's landmarks with detected landmarks.

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

from .bundle_adjustment import project, robust
from .landmark_basis import JAW_PITCH, JAW_WEIGHT, LandmarkBasis
from .landmarks import FaceLandmarks

SIGMA = 2.5
"""Standard deviation of a detected landmark's position, in px of an image whose longest side is 512."""
HUBER = 2.5
"""Residual length, as a multiple of `SIGMA`, above which the Huber loss is linear."""
VISIBLE = (0.0, 0.4)
"""Cosines of the angle between normal and view direction over which a landmark's visibility weight rises to 1."""
VISIBILITY_FLOOR = 0.02
"""Minimum visibility weight: that of a landmark that faces away from the camera."""
WARM_ITERATIONS = 2
"""Number of Gauss-Newton iterations of a fit that starts from the previous frame."""
COLD_ITERATIONS = 6
"""Number of Gauss-Newton iterations of a fit without a previous frame."""
REFERENCE_INTERVAL = 1 / 30
"""Interval between two frames, in seconds, to which the temporal weights of the landmark basis refer."""
POSE = 6
"""Number of pose variables: three of rotation, then three of translation."""


@dataclass(frozen=True)
class Pinhole:
    """Pinhole camera without distortion: ``focal`` length and principal point (``cx``, ``cy``) in px of the frame.

    ``scale`` is the longest side of the frame divided by 512; dividing px by it gives px of a 512 px image.
    """

    focal: float
    cx: float
    cy: float
    scale: float

    @staticmethod
    def of_frame(width: int, height: int, focal: float) -> Pinhole:
        """Camera of ``width`` x ``height`` px frames with ``focal`` length in px; the principal point is the centre."""
        return Pinhole(focal, width / 2, height / 2, max(width, height) / 512)


@dataclass(frozen=True)
class HeadFit:
    """Head pose and expression fitted to the landmarks of one frame, in float64.

    rotation (3, 3) and translation (3,), metres: head to camera.  units (U,): expression weights, followed by eyelid
    closings if the head model has them (`LandmarkBasis`).  jaw (3,): axis-angle, rad.  residual (L, 2), px: detected
    minus projected landmarks.  error: mean length of the residuals, in px of an image whose longest side is 512.
    """

    rotation: Float64
    translation: Float64
    units: Float64
    jaw: Float64
    residual: Float64
    error: float


@dataclass(frozen=True)
class TextureMatches:
    """M image corners on the rigid head found in a frame (2-D to 3-D correspondences).

    points: (M, 3) m, head space.  covariances: (M, 3, 3) m^2, of the points.  pixels: (M, 2) positions in the frame.
    sigma: standard deviation of a position in the frame per axis, px.
    """

    points: Float64
    pixels: Float64
    covariances: Float64
    sigma: float


def initial_fit(basis: LandmarkBasis, camera: Pinhole, face: FaceLandmarks) -> HeadFit:
    """Initial head fit from one frame: the similarity that maps the head's landmarks to MediaPipe's 3-D points.

    Units and jaw are set from the blendshape scores; the residual is not computed, the error is infinite.  MediaPipe's
    depth has the scale of its x coordinate (weak perspective).  Least-squares similarity by Umeyama (1991).
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
    """Fits pose, expression and jaw of one subject's head to landmarks from one camera, frame by frame.

    Args:
        basis: landmark basis of the subject.
        camera: camera of the frames in whose pixels the landmarks are.
    """

    def __init__(self, basis: LandmarkBasis, camera: Pinhole) -> None:
        self.basis = basis
        self.camera = camera

    def fit(
        self,
        face: FaceLandmarks,
        before: HeadFit | None,
        interval: float = REFERENCE_INTERVAL,
        texture: TextureMatches | None = None,
        start: HeadFit | None = None,
    ) -> HeadFit:
        """Fit the head to the landmarks ``face``, and its pose also to ``texture``; returns the fit with its residual.

        Args:
            face: landmarks and blendshape scores of the frame.
            before: fit of the previous frame, to which units are kept close; None: there is none.
            interval: seconds since the previous frame.
            texture: matched texture corners; None: only landmarks are used.
            start: initial value of the iteration; None: ``before``, or without it `initial_fit`.
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
                self._add_texture(system, fit, texture)
            system.add_prior(POSE, self.basis.priors.weight, self.basis.priors.mean(face.scores) - fit.units)
            if before is not None:
                system.add_prior(POSE, temporal, anchor - fit.units)
            if self.basis.has_jaw:
                system.add_prior(POSE + self.basis.units, JAW_WEIGHT, _jaw_prior(self.basis, face) - fit.jaw)
            fit = self.moved(fit, self._bounded_step(system, fit.units))
        return self.measured(fit, face)

    def linearise(self, fit: HeadFit, face: FaceLandmarks) -> NormalEquations:
        """Normal equations of the landmark residuals, linearised around ``fit``; the variables are pose, units, jaw."""
        residual, weight, jacobian = self.residuals(fit, face)
        return NormalEquations.of(residual, weight, jacobian)

    def propagate(self, before: HeadFit, face: FaceLandmarks) -> HeadFit:
        """Predict the pose from the motion of the landmarks since ``before``: units and residuals are kept constant."""
        residual, weight, jacobian = self.residuals(before, face, pose_only=True)
        residual = residual - before.residual.T / (SIGMA * self.camera.scale)
        system = NormalEquations.of(residual, weight, jacobian)
        step = np.linalg.solve(system.matrix, system.vector)
        rotation, translation = rotation_matrix(step[:3]) @ before.rotation, before.translation + step[3:]
        return replace(before, rotation=rotation, translation=translation)

    def pose_information(self, fit: HeadFit, face: FaceLandmarks) -> Float64:
        """Information matrix (6, 6) of the pose (rotation, translation), with units and jaw marginalised.

        The errors of the landmarks are assumed to be independent; the rotation is small, about the camera's axes.
        """
        system = self.linearise(fit, face)
        system.add_prior(POSE, self.basis.priors.weight, np.zeros(self.basis.units))
        if self.basis.has_jaw:
            system.add_prior(POSE + self.basis.units, JAW_WEIGHT, np.zeros(3))
        cross = system.matrix[:POSE, POSE:]
        information: Float64 = system.matrix[:POSE, :POSE] - cross @ np.linalg.solve(
            system.matrix[POSE:, POSE:], cross.T
        )
        return information

    def _add_texture(self, system: NormalEquations, fit: HeadFit, texture: TextureMatches) -> None:
        """Add the residuals of the matched texture corners to the pose variables of ``system``."""
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
        """Residuals (2, L) of the landmarks, weights (L,), and Jacobian (2, L, P) of the projections.

        Residuals (detected minus projected) and projections are in multiples of the standard deviation `SIGMA`.  The P
        variables are rotation, translation, units and jaw angles; with ``pose_only`` the first six.
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
        """``fit`` after a Gauss-Newton step (P,) of rotation, translation, units and jaw angles.

        Units are clamped to their bounds; residual and error are not recomputed.
        """
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
        """``fit`` with its residual and error recomputed for the landmarks ``face``."""
        residual = face.points[self.basis.indices, :2] - self.project(fit)
        error = float(np.hypot(residual[:, 0], residual[:, 1]).mean() / self.camera.scale)
        return HeadFit(fit.rotation, fit.translation, fit.units, fit.jaw, residual, error)

    def project(self, fit: HeadFit) -> Float64:
        """Project the landmarks of the fitted head into the frame: (L, 2) px."""
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
    """Normal equations ``matrix @ step = vector`` of a least-squares problem with P variables.

    matrix (P, P), vector (P,); `add_prior` changes them in place.
    """

    matrix: Float64
    vector: Float64

    @staticmethod
    def of(residual: Float64, weight: Float64, jacobian: Float64) -> NormalEquations:
        """Normal equations of residuals (2, L) with weights (L,) and Jacobian (2, L, P) of the projections."""
        root = np.sqrt(weight)
        rows = (jacobian * root[:, None]).reshape(-1, jacobian.shape[2])
        return NormalEquations(rows.T @ rows, rows.T @ (residual * root).reshape(-1))

    @property
    def size(self) -> int:
        """Number P of variables."""
        return len(self.vector)

    def add_prior(self, start: int, weight: Float64 | float, towards: Float64) -> None:
        """Add a Gaussian prior for the steps of N consecutive variables, beginning with number ``start``.

        ``towards`` (N,) is the mean step, ``weight`` the inverse variance, one number or (N,).
        """
        index = np.arange(start, start + len(towards))
        self.matrix[index, index] += weight
        self.vector[index] += weight * towards

    def solve_within(self, low: Float64, high: Float64, rounds: int = 6) -> Float64:
        """Solve for the step (P,) with bounds ``low``, ``high`` (P,), by the primal-dual active set method.

        ``rounds`` is the maximum number of iterations.  A variable is fixed at a bound while its step would exceed the
        bound, and released once the gradient points inwards.
        """
        diagonal = np.diag(self.matrix)
        never = high <= low
        # A variable that is at its bound and pushed outwards most likely remains there.
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
    """Product (L, U), summed over the axes of space, of gradients (L, 3) and directions (3, L, U)."""
    result = gradient[:, 0, None] * directions[0]
    result += gradient[:, 1, None] * directions[1]
    result += gradient[:, 2, None] * directions[2]
    return result
