"""Bundle adjustment of several views of one rigid head: positions of its points and pose of each view.

Gauss-Newton on a robust loss of the reprojection error, with the points eliminated by the Schur complement.  The poses
from landmarks are Gaussian priors, so that the frame of reference stays that of the landmarks; every point has a wide
prior around its initial position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float64

POINT_SD = 0.03
"""Standard deviation, in metres, of the Gaussian prior of a point around its initial position."""
ROBUST = 2.0
"""Scale of the robust Cauchy loss, in standard deviations of an observation; larger residuals are mostly mismatches."""


@dataclass
class BundleViews:
    """Bundle-adjustment problem with K views of P points of a rigid head; `adjust` changes poses and points in place.

    rotations (K, 3, 3), translations (K, 3) m: head to camera.  points (P, 3) m, head space; guesses (P, 3): their
    prior means.  pixels (P, K, 2): observed positions, px from the principal point; seen (P, K): which of them exist.
    prior_rotations, prior_translations, information (K, 6, 6): Gaussian priors of the poses; the information matrix is
    for small rotations about the camera's axes, then translations.
    """

    rotations: Float64
    translations: Float64
    points: Float64
    guesses: Float64
    pixels: Float64
    seen: NDArray[np.bool_]
    prior_rotations: Float64
    prior_translations: Float64
    information: Float64

    def adjust(self, focal: float, sigma: float, rounds: int) -> Float64:
        """Refine points and poses by ``rounds`` Gauss-Newton iterations; returns covariances (P, 3, 3) of points, m^2.

        The covariances are those for known poses.  ``focal``: focal length in px.  ``sigma``: standard deviation of an
        observation, in px.
        """
        views = len(self.rotations)
        prior = np.eye(3) / POINT_SD**2
        inverse = np.tile(prior, (len(self.points), 1, 1))
        for _ in range(rounds):
            residual, by_point, by_pose = project(self.points, self.rotations, self.translations, focal)
            residual = (self.pixels - residual) / sigma
            by_point, by_pose = by_point / sigma, by_pose / sigma
            weight = np.where(self.seen, robust(np.linalg.norm(residual, axis=2)), 0.0)
            residual[~self.seen] = 0.0
            points = np.einsum("pk,pkai,pkaj->pij", weight, by_point, by_point) + prior
            to_point = np.einsum("pk,pkai,pka->pi", weight, by_point, residual) + (self.guesses - self.points) @ prior
            poses = np.einsum("pk,pkai,pkaj->kij", weight, by_pose, by_pose) + self.information
            away = np.stack(
                [axis_angle(known @ now.T) for known, now in zip(self.prior_rotations, self.rotations, strict=True)]
            )
            away = np.concatenate([away, self.prior_translations - self.translations], axis=1)
            to_pose = np.einsum("pk,pkai,pka->ki", weight, by_pose, residual)
            to_pose += np.einsum("kij,kj->ki", self.information, away)
            cross = np.einsum("pk,pkai,pkaj->pkij", weight, by_pose, by_point).reshape(len(self.points), views * 6, 3)
            inverse = np.linalg.inv(points)
            half = cross @ inverse  # (P, 6K, 3)
            reduced = -np.tensordot(half, cross, axes=((0, 2), (0, 2)))
            for view in range(views):
                at = slice(6 * view, 6 * view + 6)
                reduced[at, at] += poses[view]
            step = np.linalg.solve(reduced, to_pose.reshape(-1) - np.einsum("pci,pi->c", half, to_point))
            moved = np.einsum("pij,pj->pi", inverse, to_point - np.einsum("pci,c->pi", cross, step))
            self.points = self.points + moved
            self.translations = self.translations + step.reshape(views, 6)[:, 3:]
            turns = [rotation_matrix(turn) for turn in step.reshape(views, 6)[:, :3]]
            self.rotations = np.stack(turns) @ self.rotations
        return inverse


def project(
    points: Float64, rotations: Float64, translations: Float64, focal: float
) -> tuple[Float64, Float64, Float64]:
    """Project points (P, 3) into K views: positions (P, K, 2) in px from the principal point, and two Jacobians.

    The Jacobian by the point is (P, K, 2, 3); that by the pose (small rotation about the camera's axes, then
    translation) is (P, K, 2, 6).  ``rotations`` (K, 3, 3) and ``translations`` (K, 3) map points to camera space.
    """
    turned = np.einsum("kij,pj->pki", rotations, points)
    seen = turned + translations
    inverse_z = 1.0 / np.maximum(seen[..., 2], 1e-3)
    ratio = seen[..., :2] * inverse_z[..., None]
    in_camera = np.zeros((*seen.shape[:2], 2, 3))
    in_camera[..., 0, 0] = in_camera[..., 1, 1] = focal * inverse_z
    in_camera[..., 2] = -focal * inverse_z[..., None] * ratio
    by_pose = np.concatenate([np.cross(turned[..., None, :], in_camera), in_camera], axis=-1)
    return focal * ratio, np.einsum("pkai,kij->pkaj", in_camera, rotations), by_pose


def robust(distance: Float64) -> Float64:
    """Weights in (0, 1] of reweighted least squares with a Cauchy loss, for residual lengths in standard deviations."""
    weight: Float64 = 1.0 / (1.0 + (distance / ROBUST) ** 2)
    return weight
