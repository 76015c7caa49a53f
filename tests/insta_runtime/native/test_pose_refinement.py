"""Pose refinement kernels against the torch reference: gradients and steps of motions, corrected poses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.config import AvatarConfig, FieldConfig, PoseRefinementConfig
from insta_runtime.field.hashgrid import HashGrid
from insta_runtime.field.radiance import RadianceField
from insta_runtime.geometry import rotation_matrix
from insta_runtime.learn.pose_refinement import FramePoseMotion, fit_table, motion_shift, predict_motions
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.field import LOSS_SCALE, PackedField, flatten
from insta_runtime.native.kernels import Kernels
from insta_runtime.render.pose_refinement import (
    COLUMNS,
    MOTIONS,
    PoseRefinement,
    count_features,
    move_head,
    part_motions,
    pose_features,
)
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION, PARTS, TURN_RADIUS

FIELD = FieldConfig(levels=5, features=2, log2_entries=10, base=4, finest=40, hidden=16)
SIDE = 0.6
EXPRESSIONS = 4


@pytest.fixture(scope="module")
def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def _kernels(device: torch.device) -> Kernels:
    return Kernels(device, avatar_constants(AvatarConfig(radiance=FIELD)))


def _random_state(generator: np.random.Generator) -> HeadState:
    turn = np.array([np.pi, 0.0, 0.0]) + generator.normal(0.0, 0.2, 3)
    place = np.array([0.02, -0.03, 0.6]) + generator.normal(0.0, 0.03, 3)
    return HeadState(
        generator.uniform(0.0, 1.0, EXPRESSIONS).astype(np.float32),
        rotation=turn.astype(np.float32),
        translation=place.astype(np.float32),
    )


def test_gradients_of_samples_reach_the_heads_of_their_frames(
    device: torch.device, generator: np.random.Generator
) -> None:
    kernels, frames, each, a_ray = _kernels(device), 3, 32, 5
    count = frames * each
    field = RadianceField(FIELD, torch.Generator().manual_seed(1)).to(device)
    grid: HashGrid = field.grid
    with torch.no_grad():  # large values, so that gradients are significant
        grid.table.copy_(torch.from_numpy(generator.normal(0.0, 0.5, grid.table.shape)).to(grid.table).half().float())
    packed = PackedField(kernels, FIELD)
    packed.load(flatten(field.state_dict(), FIELD))

    def floats(*shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(generator.uniform(low, high, shape).astype(np.float32)).to(device)

    steps = count * a_ray
    kept = generator.random(steps) < 0.7
    slot = np.full(steps, -1, dtype=np.int32)
    slot[kept] = generator.permutation(kept.sum())  # samples have any order
    ray = np.repeat(np.arange(count, dtype=np.int32), a_ray)
    ray[7] = -1  # an entry that belongs to no ray
    total = int(kept.sum())
    position, step_t = floats(steps, 3, low=0.05, high=0.95), floats(steps, low=0.3, high=0.9)
    origin, direction = floats(count, 4), torch.nn.functional.normalize(floats(count, 3), dim=1)
    direction = torch.cat([direction, torch.ones(count, 1, device=device)], dim=1)

    def ints(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    masks = floats(steps, PARTS, low=0.0, high=0.6)
    masks[: steps // 2] = 0.0  # most samples belong to the head alone
    rays = kernels.struct(
        "Rays", origin=origin, direction=direction, offset=floats(count), frame=ints(count), count=count
    )
    samples = kernels.struct(
        "Samples",
        first=ints(count),
        steps=ints(count),
        step_ray=torch.from_numpy(ray).to(device),
        step_t=step_t,
        slot=torch.from_numpy(slot).to(device),
        position=position,
        direction=floats(steps, 3),
        masks=masks,
        frame=ints(steps),
        totals=torch.tensor([steps, total, 0, 0], dtype=torch.int32, device=device),
        histogram=ints(10),
        capacity=steps,
        max_steps=9,
        max_samples=9,
    )
    gradient = floats(steps, FIELD.levels, FIELD.features).half().float()
    if device.type == "cuda":  # sample by sample within a level; on a CPU feature by feature
        stored = gradient.permute(1, 0, 2).contiguous().half()
    else:
        stored = gradient.permute(1, 2, 0).contiguous()
    gradients = torch.zeros(frames, MOTIONS, device=device)
    kernels.launch(
        "pose_gradients", rays, samples, packed.weights, stored.flatten(), SIDE, frames, gradients, items=steps
    )

    expected = torch.zeros_like(gradients)
    for frame in range(frames):
        own = np.flatnonzero((slot >= 0) & (ray >= 0) & (ray // each == frame))
        of, at = torch.from_numpy(ray[own]).to(device).long(), torch.from_numpy(slot[own]).to(device).long()
        points = origin[of, :3] + step_t[torch.from_numpy(own).to(device), None] * direction[of, :3]
        motion = torch.zeros(MOTIONS, device=device, requires_grad=True)
        features = grid(position[at] + motion_shift(motion, points, masks[at]) / SIDE).view(len(own), -1)
        (features * gradient[at].reshape(len(own), -1)).sum().backward()  # type: ignore[no-untyped-call]
        assert motion.grad is not None
        expected[frame] = motion.grad
    scale = float(expected.abs().max())
    assert scale > 1.0
    torch.testing.assert_close(gradients, expected, rtol=0.0, atol=1e-4 * scale)


def test_motions_take_the_same_step(device: torch.device, generator: np.random.Generator) -> None:
    kernels, slots = _kernels(device), 4
    table = torch.zeros(count_features(EXPRESSIONS), COLUMNS)
    table[:, 1] = 1.0
    twins = [FramePoseMotion(_random_state(generator), table) for _ in range(slots)]
    start = torch.from_numpy(generator.normal(0.0, 1e-3, (slots, MOTIONS)).astype(np.float32))
    predicted = torch.from_numpy(generator.normal(0.0, 1e-3, (slots, MOTIONS)).astype(np.float32))
    for twin, motion in zip(twins, start, strict=True):
        twin.now = motion.clone()
    motions, predictions = start.to(device), predicted.to(device)
    moments, ages = torch.zeros(slots, 2, MOTIONS, device=device), torch.zeros(slots, MOTIONS, device=device)
    rate, fades = 3e-4, 0.02
    control = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.5, rate, 0.0], device=device)
    for drawn in ([0, 2], [2, 2], [1, 0]):  # including one slot drawn twice
        gradients = torch.from_numpy(generator.normal(0.0, 1.0, (2, MOTIONS)).astype(np.float32))
        for slot, gradient in zip(drawn, gradients, strict=True):
            twins[slot].step(gradient, rate, predicted[slot], fades)
        order = torch.tensor(drawn, dtype=torch.int32, device=device)
        arguments = order, gradients.to(device) * LOSS_SCALE, control, predictions, fades, motions, moments, ages
        kernels.launch("pose_adam_step", 2, *arguments, items=MOTIONS)
    expected = torch.stack([twin.now for twin in twins])
    torch.testing.assert_close(motions.cpu(), expected, rtol=0.0, atol=2e-8)
    assert torch.equal(motions[3].cpu(), start[3]), "a frame that was not drawn keeps its motion"

    control[5] = float("nan")
    before = motions.clone()
    kernels.launch("pose_adam_step", 2, *arguments, items=MOTIONS)
    assert torch.equal(motions, before), "with a NaN loss no motion changes"


def test_corrected_poses_are_those_of_the_torch_reference(device: torch.device, generator: np.random.Generator) -> None:
    kernels, slots, size = _kernels(device), 3, EXPRESSIONS + 30 + PARTS * MOTION + 16
    states = [_random_state(generator) for _ in range(slots)]
    motions = generator.normal(0.0, 5e-3, (slots, MOTIONS)).astype(np.float32)
    tracked = np.stack([np.r_[rotation_matrix(s.rotation).ravel(), s.translation] for s in states]).astype(np.float32)
    rows, posed = torch.full((slots, size), 7.0, device=device), torch.full((2, size), 7.0, device=device)
    gradients = torch.ones(2, MOTIONS, device=device)
    drawn = torch.tensor([2, 0], dtype=torch.int32, device=device)
    inputs = torch.from_numpy(tracked).to(device), torch.from_numpy(motions).to(device)
    kernels.launch("apply_pose_corrections", EXPRESSIONS, size, 2, drawn, *inputs, rows, posed, gradients, items=2)
    column = EXPRESSIONS + 14
    for place, slot in enumerate((2, 0)):
        twin = move_head(states[slot], motions[slot])
        expected = np.r_[rotation_matrix(twin.rotation).ravel(), twin.translation].astype(np.float32)
        for row in (rows[slot], posed[place]):
            np.testing.assert_allclose(row[column : column + 12].cpu().numpy(), expected, atol=1e-6)
            assert (row[:column] == 7.0).all()
            parts = row[column + 16 : column + 16 + PARTS * MOTION].cpu().numpy()
            np.testing.assert_allclose(parts.reshape(PARTS, MOTION), part_motions(motions[slot]), atol=1e-7)
            assert (row[column + 12 : column + 16] == 7.0).all()
            assert (row[column + 16 + PARTS * MOTION :] == 7.0).all()
    assert (rows[1] == 7.0).all()
    assert not gradients.any()


def test_a_systematic_error_is_predicted_for_states_not_in_training(generator: np.random.Generator) -> None:
    """A pose error that depends on the expression is learned, and corrected for other states."""
    states = [_random_state(generator) for _ in range(300)]
    cause = np.array([0.004, -0.002, 0.0, 0.003, 0.0, 0.001] * (1 + PARTS), dtype=np.float32)
    cause[MOTION:] *= -0.5
    motions = np.stack([(s.expression[1] - 0.5) * cause for s in states]).astype(np.float32)
    features = torch.from_numpy(np.stack([pose_features(s) for s in states]))
    ages = torch.full((300,), 9.0)
    table = fit_table(
        features[:250], torch.from_numpy(motions[:250]), ages[:250], torch.arange(250), PoseRefinementConfig().ridge
    )
    guessed = predict_motions(table, features[250:]).numpy()
    assert np.abs(guessed - motions[250:]).max() < 0.15 * np.abs(motions).max()
    learned = PoseRefinement(table.numpy())
    for state, motion in zip(states[250:255], guessed, strict=False):
        (shown, parts), expected = learned.refine(state), move_head(state, motion)
        np.testing.assert_allclose(parts, part_motions(motion), atol=1e-6)
        np.testing.assert_allclose(shown.rotation, expected.rotation, atol=1e-5)
        np.testing.assert_allclose(shown.translation, expected.translation, atol=1e-6)
    shown, parts = PoseRefinement.identity(EXPRESSIONS).refine(states[0])
    assert np.array_equal(shown.rotation, states[0].rotation)
    assert not parts.any()


def test_noise_is_not_predicted(generator: np.random.Generator) -> None:
    """A part whose motions are noise gets a strong penalty, while the motion of another part is still predicted."""
    states = [_random_state(generator) for _ in range(120)]
    features = torch.from_numpy(np.stack([pose_features(s) for s in states]))
    motions = torch.from_numpy(generator.normal(0.0, 1e-3, (120, MOTIONS)).astype(np.float32))
    motions[:, :MOTION] = (features[:, 1:2] - features[:, 1:2].mean()) * 2e-3
    table = fit_table(features, motions, torch.full((120,), 9.0), torch.arange(120), 0.01)
    guessed = predict_motions(
        table, torch.from_numpy(np.stack([pose_features(_random_state(generator)) for _ in range(50)]))
    )
    spread = guessed.std(dim=0)
    assert float(spread[:MOTION].min()) > 0.7 * float(motions[:, 0].std())
    assert float(spread[MOTION:].max()) < 0.3e-3


def test_tables_of_an_older_format_move_the_whole_head(generator: np.random.Generator) -> None:
    old = generator.normal(0.0, 1e-3, (count_features(EXPRESSIONS), 4 + MOTION)).astype(np.float32)
    old[:, 1], old[:, 2], old[:, 3] = 1.0, -9.0, 9.0
    state = _random_state(generator)
    shown, parts = PoseRefinement.from_table(old).refine(state)
    assert not np.allclose(shown.rotation, state.rotation, atol=1e-6)
    np.testing.assert_allclose(parts, 0.0, atol=1e-9)


def test_predictions_do_not_extrapolate_beyond_the_training_states(generator: np.random.Generator) -> None:
    states = [_random_state(generator) for _ in range(60)]
    features = torch.from_numpy(np.stack([pose_features(s) for s in states]))
    motions = features[:, 1:2] * torch.full((1, MOTIONS), 1e-3)
    table = fit_table(features, motions, torch.full((60,), 9.0), torch.arange(60), 1e-3)
    far = features[:1] + 50.0
    assert float(predict_motions(table, far).abs().max()) <= 3.0 * float(motions.abs().max())
    assert TURN_RADIUS > 0.0
