"""Sampling kernels of a training step, against rays and targets of the torch reference for the same pixels.

Draws are hashes: the same seed and step give the same frames, pixels and noise on every run; host and GPU may differ in
the last bits of the Gaussian noise and of a ray, through logf, cosf and fused multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.geometry import camera_vertices
from insta_runtime.learn.replay_policy import RECENT
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.device_replay import DeviceReplay
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import farthest_around, pixel_rays, slant
from insta_runtime.types import Camera, HeadState
from tests.support.small_person import SMALL, neutral_shape, open_head, paint, performance, photograph

ROUNDING = 2e-6  # of metres and unit vectors; float32 rounding in another order
SIZE = 101  # pixels; tiles of two pixels, the last ones cut
FRAMES = 3
EACH = 4000
MOUTH_WEIGHT = 4.0
PARTS = (SMALL.learn.focus, SMALL.learn.margin)
POISON = -77


@dataclass
class Scene:
    """Posed heads and images, as inputs of `sample_rays`, on one device."""

    kernels: Kernels
    model: AvatarModel
    replay: DeviceReplay
    states: list[HeadState]
    view: Camera
    head: Struct
    poses: Struct
    depth: torch.Tensor
    triangle: torch.Tensor
    face: torch.Tensor
    mouth: torch.Tensor
    regions: torch.Tensor

    def ints(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.model.device)


@pytest.fixture
def scene(device: torch.device) -> Scene:
    kernels = Kernels(device, avatar_constants(SMALL))
    model = AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device)
    states = performance(open_head(), FRAMES)
    pictures = photograph(open_head(), states, SIZE, paint(open_head()))
    replay = DeviceReplay(model, kernels, SIZE, 16, 0)
    for picture in pictures:
        replay.add(picture)
    replay.take_in()
    faces = model.warp.canonical.faces
    posed = [model.pose(state) for state in states]
    rasters = [
        rasterise(camera_vertices(p.vertices, s), faces, pictures[0].camera) for p, s in zip(posed, states, strict=True)
    ]
    regions = torch.stack(
        [torch.as_tensor(model.head.masks[name], dtype=torch.float32, device=device) for name in ("face", "mouth")], -1
    )
    seen = [raster.interpolate(regions) for raster in rasters]
    depth = torch.stack([raster.depth for raster in rasters])
    for slot in range(FRAMES):
        replay.list_tiles(slot, depth[slot])
    return Scene(
        kernels,
        model,
        replay,
        states,
        pictures[0].camera,
        head_of(kernels, model),
        poses_of(kernels, model, torch.stack([p.vertices for p in posed]), replay),
        depth,
        torch.stack([raster.triangle for raster in rasters]).int(),
        torch.stack([s[..., 0] for s in seen]),
        torch.stack([s[..., 1] for s in seen]),
        regions.contiguous(),
    )


def head_of(kernels: Kernels, model: AvatarModel) -> Struct:
    from insta_runtime.native.posing import head_struct

    return head_struct(kernels, model)


def poses_of(kernels: Kernels, model: AvatarModel, vertices: torch.Tensor, replay: DeviceReplay) -> Struct:
    """A PoseBuffers struct with the fields that sampling reads: states, triangles, and a band of the whole cube."""
    a, b, c = vertices[:, model.warp.canonical.faces].unbind(2)
    ab, ac = b - a, c - a
    products = torch.stack([(x * y).sum(-1) for x, y in ((ab, ab), (ab, ac), (ac, ac))], -1)
    last = model.warp.resolution - 1
    bounds = torch.tensor([[0, 0, 0, last, last, last]] * len(vertices), dtype=torch.int32, device=vertices.device)
    unused = dict.fromkeys(
        ("vertices", "maps", "records", "spheres", "bits", "row", "cell", "count", "candidates"), None
    )
    return kernels.struct(
        "PoseBuffers",
        states=replay.states,
        triangles=torch.cat([a, ab, ac, products], -1).contiguous(),
        bounds=bounds,
        state_size=replay.states.shape[1],
        frames=len(vertices),
        words=0,
        capacity=0,
        **unused,
    )


@dataclass
class Drawn:
    """Outputs of `sample_rays`."""

    origin: torch.Tensor
    direction: torch.Tensor
    offset: torch.Tensor
    frame: torch.Tensor
    rgba: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    background: torch.Tensor

    def pixels(self, scene: Scene, frame: int) -> torch.Tensor:
        """Flat pixel indices of a frame's rays, computed by projection."""
        state, camera = scene.replay.states[frame], scene.view
        start = len(scene.states[0].expression) + 14
        turn = state[start : start + 9].view(3, 3)
        x, y, z = (self.direction[frame * EACH : (frame + 1) * EACH, :3] @ turn.T).unbind(-1)
        u, v = x / z * camera.fx + camera.cx - 0.5, y / z * camera.fy + camera.cy - 0.5
        assert ((u - u.round()).abs() < 1e-3).all(), "rays go through pixel centres"
        return (v.round() * camera.width + u.round()).long()


def draw(
    scene: Scene,
    step: int = 5,
    wanted: int = EACH,
    seed: int = 3,
    parts: tuple[float, float] = PARTS,
    mouth_from: int = 0,
) -> Drawn:
    count, device = FRAMES * EACH, scene.model.device

    def poisoned(*shape: int) -> torch.Tensor:
        return torch.full(shape, torch.nan, device=device)

    out = Drawn(
        poisoned(count, 4),
        poisoned(count, 4),
        poisoned(count),
        torch.full((count,), POISON, dtype=torch.int32, device=device),
        poisoned(count, 4),
        poisoned(count),
        poisoned(count),
        poisoned(count, 3),
    )
    rays = scene.kernels.struct(
        "Rays", origin=out.origin, direction=out.direction, offset=out.offset, frame=out.frame, count=count
    )
    slots = scene.ints(*range(FRAMES))
    scene.kernels.launch(
        "sample_rays",
        scene.head,
        scene.poses,
        scene.replay.frames,
        rays,
        scene.ints(step, FRAMES, wanted),
        seed,
        FRAMES,
        slots,
        slots,
        scene.depth,
        scene.triangle,
        scene.regions,
        *parts,
        MOUTH_WEIGHT,
        mouth_from,
        out.rgba,
        out.target,
        out.weight,
        out.background,
        items=count,
    )
    return out


def test_rays_and_targets_are_those_of_the_torch_reference_for_the_same_pixels(scene: Scene) -> None:
    out = draw(scene)
    box = scene.model.warp.box
    for frame, state in enumerate(scene.states):
        part = slice(frame * EACH, (frame + 1) * EACH)
        pixels = out.pixels(scene, frame)
        depth = scene.depth[frame].view(-1)[pixels]
        far = farthest_around(scene.depth[frame]).view(-1)[pixels]
        twin = pixel_rays(state, scene.view, pixels, far, SMALL.sampling.behind)
        t = torch.stack([box.origin - twin.origins, box.origin + box.side - twin.origins]) / twin.directions
        near, far = t.amin(0).amax(-1).clamp_min(0.05), torch.minimum(t.amax(0).amin(-1), twin.far)
        hits = far > near
        seen, missed = out.direction[part][:, 3], out.direction[part][:, 3] < out.origin[part][:, 3]
        assert torch.equal(missed, ~hits)
        torch.testing.assert_close(out.origin[part][hits, :3], twin.origins[hits], atol=ROUNDING, rtol=0)
        torch.testing.assert_close(out.direction[part][hits, :3], twin.directions[hits], atol=ROUNDING, rtol=0)
        torch.testing.assert_close(out.origin[part][hits, 3], near[hits], atol=4 * ROUNDING, rtol=0)
        torch.testing.assert_close(seen[hits], far[hits], atol=4 * ROUNDING, rtol=0)

        truth = scene.replay.image(frame).reshape(-1, 4)[pixels].float() / 255.0
        torch.testing.assert_close(out.rgba[part], truth, atol=1e-7, rtol=0)
        face, mouth = scene.face[frame].view(-1)[pixels], scene.mouth[frame].view(-1)[pixels]
        decided = ((face - 0.5).abs() > 1e-3) & ((mouth - 0.3).abs() > 1e-3)
        prior = torch.where((face > 0.5) & (truth[:, 3] > 0.9), depth * slant(scene.view, pixels), 0.0)
        torch.testing.assert_close(out.target[part][decided], prior[decided], atol=ROUNDING, rtol=0)
        weight = torch.where(mouth > 0.3, MOUTH_WEIGHT, 1.0)
        assert torch.equal(out.weight[part][decided], weight[decided])
        assert (prior > 0).sum() > 20
        assert (mouth > 0.3).any()
    assert out.frame.tolist() == [i // EACH for i in range(FRAMES * EACH)]


@pytest.mark.parametrize("part", [0, 1])
def test_pixels_are_drawn_from_tiles_on_the_head_and_around_it(scene: Scene, part: int) -> None:
    out = draw(scene, parts=(1.0 - part, float(part)))
    across = -(-SIZE // 2)
    for frame in range(FRAMES):
        pixels = out.pixels(scene, frame)
        tiles = (pixels // SIZE // 2 * across + pixels % SIZE // 2).unique().tolist()
        sizes = scene.replay._tile_counts[frame].tolist()
        first, count = sum(sizes[:part]), sizes[part]
        worth = scene.replay._chunks[0][1][frame, first : first + count].tolist()
        assert set(tiles) <= set(worth)
        assert len(tiles) > 0.9 * len(worth), "nearly all tiles are drawn"
        assert len(pixels.unique()) > 0.6 * min(EACH, 4 * count), "and most of their pixels"


def test_the_remaining_pixels_are_drawn_from_the_whole_image(scene: Scene) -> None:
    everywhere = draw(scene, parts=(0.0, 0.0)).pixels(scene, 0)
    assert len(everywhere.unique()) > 0.1 * SIZE * SIZE
    rows = np.histogram((everywhere // SIZE).cpu(), bins=4, range=(0, SIZE))[0]
    assert rows.min() > EACH / 8, "EACH / 4 on average"


def test_draws_depend_only_on_seed_and_step_and_are_uniform(scene: Scene) -> None:
    first, same, later, other = draw(scene), draw(scene), draw(scene, step=6), draw(scene, seed=4)
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(same, name)), name
    for changed in (later, other):
        assert (first.offset != changed.offset).float().mean() > 0.99
        assert (first.direction != changed.direction).any()
    for values in (first.offset, first.background):
        assert 0.0 <= values.min() < 0.02
        assert 0.98 < values.max() < 1.0
        assert abs(float(values.mean()) - 0.5) < 0.03
    assert abs(float(torch.corrcoef(first.background.T)[0, 1])) < 0.1


def test_unused_rays_miss_and_have_zero_targets(scene: Scene) -> None:
    out, full = draw(scene, wanted=EACH // 8), draw(scene)
    wanted = torch.arange(FRAMES * EACH, device=out.offset.device) % EACH < EACH // 8
    assert (out.direction[~wanted, 3] < out.origin[~wanted, 3]).all()
    assert not out.rgba[~wanted].any()
    assert not out.target[~wanted].any()
    assert all(bool(getattr(out, name).isfinite().all()) for name in vars(out))
    assert torch.equal(out.offset, full.offset)
    assert (out.direction[wanted, 3] > out.origin[wanted, 3]).any()


def test_a_state_that_is_not_finite_gives_rays_that_miss(scene: Scene) -> None:
    scene.replay.states[1] = torch.nan
    out = draw(scene)
    broken = slice(EACH, 2 * EACH)
    assert (out.direction[broken, 3] < out.origin[broken, 3]).all()
    assert not out.rgba[broken].any()
    assert (out.direction[:EACH, 3] > out.origin[:EACH, 3]).any(), "rays of the other frames are unaffected"


def test_mouth_pixels_have_their_weight_from_the_configured_step(scene: Scene) -> None:
    assert set(draw(scene, step=4, mouth_from=5).weight.unique().tolist()) == {1.0}
    assert set(draw(scene, step=5, mouth_from=5).weight.unique().tolist()) == {1.0, MOUTH_WEIGHT}


def test_a_triangle_without_area_still_has_a_region(scene: Scene) -> None:
    scene.poses.tensors["triangles"][:, :, 3:] = 0.0
    out = draw(scene)
    assert out.target.isfinite().all()
    assert set(out.weight.unique().tolist()) <= {1.0, MOUTH_WEIGHT}


def begin(scene: Scene, step: int, memories: int, frames: int = 4, in_place: bool = False, seed: int = 3) -> tuple:
    device, size = scene.model.device, scene.replay.states.shape[1]
    slots, pose = scene.ints(*[POISON] * frames), scene.ints(*[POISON] * frames)
    posed = torch.full((frames, size), torch.nan, device=device)
    codes = torch.full((64, CODE_WIDTH), torch.nan, device=device)
    scene.kernels.launch(
        "sample_frames",
        scene.replay.frames,
        scene.ints(step, memories, EACH, min(memories, RECENT), memories),
        seed,
        frames,
        int(in_place),
        SMALL.learn.code_jitter,
        slots,
        pose,
        posed,
        codes,
        items=frames * size,
    )
    return slots, pose, posed, codes


def test_every_slot_is_drawn_in_each_round_and_one_frame_is_always_new(scene: Scene) -> None:
    count, deck = 60, scene.replay._deck
    deck.copy_(torch.arange(len(deck)).flip(0))  # not in the order of slots
    order = deck.tolist()
    scene.replay._newest.copy_(deck[count - RECENT : count])
    draws = [begin(scene, step, count)[0].tolist() for step in range(40)]
    assert all(draw[0] in order[count - RECENT : count] for draw in draws)
    assert len({draw[0] for draw in draws}) > 10
    others = [slot for draw in draws for slot in draw[1:]]
    assert sorted(others[:count]) == sorted(others[count:]) == sorted(order[:count]), "shuffled rounds"
    assert others[:count] != others[count:]
    assert [begin(scene, step, count)[0].tolist() for step in range(40)] == draws
    assert [begin(scene, step, count, seed=4)[0].tolist() for step in range(40)] != draws
    scene.replay._newest[0] = order[0]
    assert begin(scene, 9, 1)[0].tolist() == [order[0]] * 4, "all four frames show the only stored image"


def test_a_frame_has_its_state_and_a_code_with_noise(scene: Scene) -> None:
    codes = []
    for step in range(50):
        slots, pose, posed, code = begin(scene, step, FRAMES)
        assert pose.tolist() == [0, 1, 2, 3]
        assert torch.equal(posed, scene.replay.states[slots.long()])
        assert code[4:].isnan().all()
        codes.append(code[:4] - posed[:, -CODE_WIDTH:])
    noise = torch.stack(codes) / SMALL.learn.code_jitter
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1.0) < 0.1
    assert 2.5 < noise.abs().max() < 6.0


def test_in_place_poses_are_numbered_by_slot(scene: Scene) -> None:
    slots, pose, posed, code = begin(scene, 7, FRAMES, in_place=True)
    assert torch.equal(slots, pose)
    assert posed.isnan().all(), "not written"
    drawn = slots.unique().long()
    assert code[drawn].isfinite().all()
    assert code[FRAMES:].isnan().all()
