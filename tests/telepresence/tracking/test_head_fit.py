"""Head fit on landmarks that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadRig
from insta_runtime.types import HeadState
from telepresence.tracking.head_fit import HeadFitter, NormalEquations, Pinhole
from telepresence.tracking.landmark_basis import landmark_basis


def angle_between(a, b):
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def test_basis_agrees_with_the_rig(subject):
    """The landmark basis gives the landmarks of the posed mesh, including jaw joint and correctives."""
    rng = np.random.default_rng(5)
    head = subject.head
    shape = rng.normal(0.0, 0.3, len(head.shape_dirs)).astype(np.float32)
    basis = landmark_basis(head).with_identity(shape)
    units = rng.uniform(0.0, 0.5, basis.units)
    expression = np.zeros(len(head.expression_names), np.float32)
    lids = np.zeros(2, np.float32)
    if basis.has_jaw:
        expression[: basis.units - 2], lids = units[:-2], units[-2:].astype(np.float32)
    else:
        expression[:] = units
    jaw = np.array([0.3, 0.05, -0.02]) if basis.has_jaw else np.zeros(3)
    state = HeadState(expression, jaw_pose=jaw.astype(np.float32), eyelids=lids)
    vertices = HeadRig(head, dtype=torch.float64).pose(shape, state).vertices.numpy()
    expected = head.embedding.points(vertices, head.faces)[basis.indices]
    assert np.abs(basis.points(units, jaw) - expected).max() < 1e-6


def test_jacobian_against_finite_differences(subject):
    rng = np.random.default_rng(2)
    fitter, pose = subject.fitter, subject.pose(np.random.default_rng(2))
    face = subject.face(pose, rng, noise=1.0)
    _, _, jacobian = fitter.residuals(pose, face)
    step = 1e-6
    for column in range(jacobian.shape[2]):
        delta = np.zeros(jacobian.shape[2])
        delta[column] = step
        # `moved` clamps units to their bounds, so the step goes inwards.
        if column >= 6 and column < 6 + fitter.basis.units:
            delta[column] = -step if pose.units[column - 6] > 0.5 else step
        ahead, _, _ = fitter.residuals(fitter.moved(pose, delta), face)
        here, _, _ = fitter.residuals(pose, face)
        if column >= 6 and column < 6 + fitter.basis.units:
            before, after = pose.units, fitter.moved(pose, delta).units
            if before[column - 6] == after[column - 6]:
                continue  # a unit that is fixed by its bounds
        numeric = -(ahead - here) / delta[column]
        scale = np.abs(jacobian[:, :, column]).max() + 1e-9
        assert np.abs(numeric - jacobian[:, :, column]).max() < 1e-3 * scale


@pytest.mark.parametrize(("noise", "degrees", "depth", "units"), [(0.0, 0.3, 0.003, 0.04), (0.6, 0.4, 0.004, 0.05)])
def test_recovers_known_poses(open_subject, noise, degrees, depth, units):
    rng = np.random.default_rng(11)
    turns, depths, errors = [], [], []
    for _ in range(12):
        truth = open_subject.pose(rng)
        fit = open_subject.fitter.fit(open_subject.face(truth, rng, noise, score_noise=0.05), None)
        turns.append(angle_between(fit.rotation, truth.rotation))
        depths.append(abs(fit.translation[2] / truth.translation[2] - 1))
        errors.append(np.abs(fit.units - truth.units).mean())
    assert np.mean(turns) < degrees
    assert np.mean(depths) < depth
    assert np.mean(errors) < units


def test_flame_layout_is_fitted(subject):
    rng = np.random.default_rng(4)
    for _ in range(5):
        truth = subject.pose(rng)
        fit = subject.fitter.fit(subject.face(truth, rng, noise=0.5), None)
        assert fit.error < 1.0
        assert angle_between(fit.rotation, truth.rotation) < 1.5
        assert np.abs(fit.jaw - truth.jaw).max() < 0.12


def test_cold_equals_warm(open_subject):
    rng = np.random.default_rng(8)
    fitter = open_subject.fitter
    truth = open_subject.pose(rng)
    warm = None
    for _ in range(6):
        face = open_subject.face(truth, np.random.default_rng(8), noise=0.5)
        warm = fitter.fit(face, warm)
    cold = fitter.fit(face, None)
    assert angle_between(cold.rotation, warm.rotation) < 0.5
    assert np.abs(cold.translation - warm.translation).max() < 0.002


def test_deterministic(open_subject):
    rng = np.random.default_rng(6)
    face = open_subject.face(open_subject.pose(rng), rng, noise=1.0)
    one, two = (open_subject.fitter.fit(face, None) for _ in range(2))
    assert np.array_equal(one.units, two.units)
    assert np.array_equal(one.rotation, two.rotation)


def test_the_focal_length_hardly_changes_the_error(open_subject):
    rng = np.random.default_rng(9)
    face = open_subject.face(open_subject.pose(rng, turn=0.1), rng, noise=1.2)
    right = open_subject.fitter.fit(face, None).error
    camera = open_subject.camera
    double = HeadFitter(open_subject.basis, Pinhole(2 * camera.focal, camera.cx, camera.cy, camera.scale))
    assert abs(double.fit(face, None).error / right - 1) < 0.25


def test_outliers_have_little_influence(open_subject):
    rng = np.random.default_rng(10)
    truth = open_subject.pose(rng)
    face = open_subject.face(truth, rng, noise=0.3)
    wild = rng.choice(open_subject.basis.indices, 20, replace=False)
    face.points[wild, :2] += rng.normal(0.0, 60.0, (20, 2)).astype(np.float32)
    fit = open_subject.fitter.fit(face, None)
    assert angle_between(fit.rotation, truth.rotation) < 2.0


def test_units_stay_within_their_bounds(open_subject):
    rng = np.random.default_rng(12)
    face = open_subject.face(open_subject.pose(rng), rng, noise=15.0, score_noise=1.0)
    fit = open_subject.fitter.fit(face, None)
    assert fit.units.min() >= 0.0
    assert fit.units.max() <= 1.0


def test_bounded_least_squares():
    """Compared with an exhaustive search on a grid."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        root = rng.normal(size=(6, 3))
        system = NormalEquations(root.T @ root + 0.1 * np.eye(3), rng.normal(size=3))
        step = system.solve_within(np.full(3, -0.2), np.full(3, 0.2))
        grid = np.stack(np.meshgrid(*[np.linspace(-0.2, 0.2, 41)] * 3), -1).reshape(-1, 3)
        cost = 0.5 * np.einsum("ni,ij,nj->n", grid, system.matrix, grid) - grid @ system.vector
        mine = 0.5 * step @ system.matrix @ step - step @ system.vector
        assert np.abs(step).max() <= 0.2
        assert mine <= cost.min() + 1e-9


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0, np.pi - 1e-7, np.pi])
def test_axis_angle_round_trip(angle):
    for axis in ([1.0, 0, 0], [0, 0.6, -0.8], [-0.36, 0.48, 0.8]):
        matrix = rotation_matrix(angle * np.array(axis))
        assert np.abs(rotation_matrix(axis_angle(matrix)) - matrix).max() < 1e-7
