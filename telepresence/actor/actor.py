"""Synthetic actor: a computer-generated person, rendered from any head state for any camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from insta_runtime.head import HeadModel, HeadRig, load_head
from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, SKIN, TEETH_LOWER, TEETH_UPPER, TONGUE
from insta_runtime.head.rig import rotation_matrix
from insta_runtime.render.raster import Raster, rasterise
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Bytes, Camera, Float32, HeadState
from telepresence.actor.hair import grow_hair
from telepresence.actor.lashes import Lashes
from telepresence.actor.light import Lighting, directions, visibility
from telepresence.actor.scenery import CLOTHES_COLOUR, clothes, paint_room
from telepresence.actor.skin import HAIR_COLOUR, paint_eye, paint_skin
from telepresence.actor.surface import blob, linear, noise, sample, unroll, vertex_normals

# Materials beyond the parts of the head model.
_HAIR, _LASHES, _CLOTHES = 6, 7, 8

NECK_RAMP = (-0.115, -0.070)
"""Heights y at rest (metres) between which the alpha of the neck rises from 0 to 1."""

_SKIN_WRAP = (0.42, 0.22, 0.14)
_PLAIN_WRAP = (0.12, 0.12, 0.12)
_SHADOW_DIRECTIONS = 48
_FIRST_PERSON = 17  # random seed of the identity of actor 0


class Actor:
    """Synthetic person with the geometry of the open head model.

    ``head``: the head model; ``rig``: its rig; ``shape`` (S,) float32: identity code of this person.
    """

    def __init__(self, seed: int = 0) -> None:
        """Build the person, which takes a few seconds; equal seeds give equal people."""
        self.head: HeadModel = load_head()
        self.rig = HeadRig(self.head)
        self.shape: Float32 = _identity(self.head, seed)
        neutral = HeadState.neutral(len(self.head.expression_names))
        self._rest = self.rig.pose(self.shape, neutral).vertices
        self._joints = self.rig.rest_pose(torch.from_numpy(self.shape)).joints
        self._skin = paint_skin(self.head, self._rest, self._joints[3:5], seed)
        self._eye = paint_eye(seed=seed)
        self._room = paint_room()
        outside = (
            (self.head.vertex_group() == SKIN) & (self.head.masks["ears"] < 0.2) & (self.head.masks["mouth"] < 0.2)
        )
        self._hair = grow_hair(self._rest[torch.from_numpy(outside)], seed)
        self._streaks = noise(torch.Generator().manual_seed(seed), 64, 48, 64, 24)[None]
        self._lashes = Lashes(self.head, self._rest, self._joints[3:5])
        self._clothes, clothes_faces = clothes()

        # The head model's rim spreads over the shoulders; it is replaced by clothes.
        template = torch.from_numpy(self.head.template)
        spread = (template[:, 0] / 0.076) ** 2 + ((template[:, 2] + 0.018) / 0.070) ** 2
        under_clothes = (template[:, 1] < -0.130) | ((template[:, 1] < -0.085) & (spread > 1.0))
        in_sight = ~under_clothes[self.rig.faces].any(1)
        worn = self.rig.faces[in_sight]
        head_count, hair_count = len(self._rest), len(self._hair.vertices)
        lash_count = len(self._lashes.parent)
        self._faces = torch.cat(
            [
                worn,
                self._hair.faces + head_count,
                self._lashes.faces + head_count + hair_count,
                clothes_faces + head_count + hair_count + lash_count,
            ]
        )
        counts = torch.tensor([len(self._hair.faces), len(self._lashes.faces), len(clothes_faces)])
        self._material = torch.cat(
            [
                torch.from_numpy(self.head.face_group)[in_sight],
                torch.tensor([_HAIR, _LASHES, _CLOTHES], dtype=torch.int8).repeat_interleave(counts),
            ]
        )
        # Texture coordinates: the position at rest; for hair, the position across and along the strip.
        no_paint = torch.zeros(lash_count, 3)
        self._coordinates = torch.cat([self._rest, self._hair.strand, no_paint, self._clothes])
        self._solid = (self._material < _HAIR) | (self._material == _CLOTHES)  # closed: back faces are not drawn
        self._towards = directions(_SHADOW_DIRECTIONS)
        self._free = self._shadow_table()
        self._openness = self._free.mean(1).mul(1.9).clamp(0.0, 1.0)

    @staticmethod
    def camera(size: int) -> Camera:
        """Default camera of the actor: ``size`` x ``size`` pixels, focal length 1.2 times ``size``."""
        return Camera(1.2 * size, 1.2 * size, size / 2, size / 2, size, size)

    def render(
        self,
        state: HeadState,
        camera: Camera,
        background: bool = True,
        *,
        samples: int = 2,
        room: NDArray[np.floating] | None = None,
    ) -> tuple[Bytes, Bytes]:
        """Render the actor in ``state`` for ``camera``.

        Returns the image (H, W, 3) uint8 with clothes and room (on black without ``background``), and alpha (H, W)
        uint8: the exact matte of head, hair and neck times the neck ramp.  Edges are smoothed with ``samples`` x
        ``samples`` samples per pixel.

        ``room`` (3, 3) rotates lamps and clothes: for a camera that has moved around the actor the head's rotation is
        ``room @ R`` and the light on the face is unchanged.  (The blurred background does not move.)
        """
        rgb, alpha, _ = self.layers(state, camera, background, samples=samples, room=room)
        return rgb, alpha

    def layers(
        self,
        state: HeadState,
        camera: Camera,
        background: bool = True,
        *,
        samples: int = 2,
        room: NDArray[np.floating] | None = None,
    ) -> tuple[Bytes, Bytes, Bytes]:
        """Image and alpha as from `render`, and the matte of the body (H, W) uint8 with clothes and without ramp."""
        with torch.no_grad():
            fine = camera.scaled(camera.width * samples, camera.height * samples)
            turn = torch.eye(3) if room is None else torch.as_tensor(room, dtype=torch.float32)
            shaded = self._shade(state, fine, turn).permute(2, 0, 1)[None]
            image = functional.avg_pool2d(shaded, samples)[0]
            colour, cover, alpha = image[:3], image[3:4], image[4]
            if background:
                size = (camera.height, camera.width)
                behind = functional.interpolate(self._room[None], size, mode="bilinear", align_corners=False)[0]
                colour = colour + (1.0 - cover) * behind
            rgb = (colour.clamp(0.0, 1.0) * 255.0 + 0.5).byte().permute(1, 2, 0).contiguous()
            mattes = (torch.cat([alpha[None], cover]) * 255.0 + 0.5).byte().contiguous().numpy()
            return rgb.numpy(), mattes[0], mattes[1]

    def _posed(self, state: HeadState, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posed vertices (N, 3) and unit normals (N, 3) in camera space, and the head's rotation (3, 3)."""
        head = self.rig.pose(self.shape, state).vertices
        normals = vertex_normals(head, self.rig.faces)
        neck = rotation_matrix(torch.from_numpy(state.neck_pose))
        hair = (self._hair.vertices - self._joints[1]) @ neck.T + self._joints[1]
        vertices = torch.cat([head, hair, self._lashes.place(head)])
        normals = torch.cat([normals, self._hair.normal @ neck.T, normals[self._lashes.parent]])
        rotation = rotation_matrix(torch.from_numpy(state.rotation))
        vertices, normals = vertices @ rotation.T, normals @ rotation.T
        # Clothes move with the neck but do not rotate.
        upright = room * torch.tensor([1.0, -1.0, -1.0])
        below = self._joints[0] + torch.tensor([0.0, 0.0, 0.02])
        clothes_at = self._clothes @ upright.T + (rotation - upright) @ below
        vertices = torch.cat([vertices, clothes_at]) + torch.from_numpy(state.translation)
        first = len(vertices) - len(self._clothes)
        knit = vertex_normals(vertices, self._faces[self._material == _CLOTHES])[first:]
        return vertices, torch.cat([normals, knit]), rotation

    def _shade(self, state: HeadState, camera: Camera, room: Tensor) -> Tensor:
        """Render one sample per pixel: (H, W, 5) screen colour times coverage, coverage, alpha."""
        vertices, normals, rotation = self._posed(state, room)
        a, b, c = (vertices.index_select(0, self._faces[:, i]) for i in range(3))
        front = (torch.linalg.cross(b - a, c - a) * a).sum(1) < 0.0
        # Open surfaces (hair, lashes) are drawn from both sides, except behind the head.
        near_side = (normals * vertices).sum(1) < 0.35 * vertices.norm(dim=1)
        drawn = torch.where(self._solid, front, near_side[self._faces[:, 0]]).nonzero().squeeze(1)
        raster = rasterise(vertices, self._faces.index_select(0, drawn), camera)
        lighting = Lighting(rotation, self._towards, room)
        surface = torch.cat([self._coordinates, normals, lighting.shadows(self._free), self._openness[:, None]], 1)

        pixel = raster.mask.flatten().nonzero().squeeze(1)
        triangle = raster.triangle.flatten().index_select(0, pixel)
        material = self._material.index_select(0, drawn).index_select(0, triangle)
        image = torch.zeros(camera.height * camera.width, 5)
        for number in range(_CLOTHES + 1):
            which = (material == number).nonzero().squeeze(1)
            if len(which) == 0:
                continue
            shown = pixel.index_select(0, which)
            fragments = _Fragments.of(raster, shown, surface, camera)
            light = self._material_light(number, fragments, lighting, state, rotation).clamp_(0.0, 4.0)
            screen = (light * (1.0 + 0.12 * light) / (1.0 + 0.30 * light)).sqrt_()  # tone mapping
            alpha = torch.full((len(which), 1), 0.0 if number == _CLOTHES else 1.0)
            if number == SKIN:
                alpha = smoothstep(fragments.coordinates[:, 1:2], *NECK_RAMP)
            image.index_copy_(0, shown, torch.cat([screen, torch.ones(len(which), 1), alpha], 1))
        return image.view(camera.height, camera.width, 5)

    def _material_light(
        self, number: int, at: _Fragments, lighting: Lighting, state: HeadState, rotation: Tensor
    ) -> Tensor:
        """Linear colour (N, 3) of the fragments of one material."""
        wrap = _SKIN_WRAP if number in (SKIN, TONGUE) else _PLAIN_WRAP
        if number == SKIN:
            paint = sample(self._skin, unroll(at.coordinates))
            light = paint[:, :3] * lighting.diffuse(at.normal, at.shadow, at.openness, wrap)
            shine = lighting.highlight(at.normal, at.view, at.shadow, ((4, 0.10), (6, 0.10)))
            return light + paint[:, 3:] * shine
        if number in (EYE_LEFT, EYE_RIGHT):
            return self._eye_light(number, at, lighting, state, rotation)
        if number == _HAIR:
            return self._hair_light(at, lighting, state, rotation)
        if number == _CLOTHES:
            knit = 1.0 + 0.05 * torch.sin(at.coordinates[:, 1:2] * 2200.0) * torch.sin(
                torch.atan2(at.coordinates[:, :1], at.coordinates[:, 2:]) * 260.0
            )
            under_chin = 1.0 - 0.45 * blob(at.coordinates, (0.0, -0.105, 0.03), (0.075, 0.055, 0.07))
            light = CLOTHES_COLOUR * knit * lighting.diffuse(at.normal, at.shadow, at.openness, wrap)
            return light * under_chin[:, None]
        if number in (TEETH_UPPER, TEETH_LOWER):
            x, y = at.coordinates[:, 0], at.coordinates[:, 1]
            gaps = torch.cos(x * (math.pi / 0.0042)).abs() ** 14
            gums = smoothstep(y, -0.0185, -0.0165) if number == TEETH_UPPER else smoothstep(y, -0.0330, -0.0350)
            colour = linear(228, 219, 202) * (1.0 - 0.30 * gaps)[:, None]
            colour = colour + gums[:, None] * (linear(192, 112, 108) - colour)
            # The shadow table does not contain the lips; the front teeth get most of the light.
            let_in = 0.03 + 0.97 * smoothstep(at.coordinates[:, 2], 0.060, 0.094)
            at = replace(at, openness=0.8 * let_in, shadow=0.6 * let_in[:, None].expand(-1, 3))
        else:
            colour = linear(30, 22, 20) if number == _LASHES else linear(186, 98, 96)
        light = colour * lighting.diffuse(at.normal, at.shadow, at.openness, wrap)
        if number != _LASHES:
            light += lighting.highlight(at.normal, at.view, at.shadow, ((6, 0.18),)) * at.openness[:, None]
        return light

    def _eye_light(self, number: int, at: _Fragments, lighting: Lighting, state: HeadState, rotation: Tensor) -> Tensor:
        joint = self._joints[3 if number == EYE_LEFT else 4]
        local = at.coordinates - joint
        # Normals of an exact sphere: the eyeball mesh has only 140 triangles.
        turn = rotation_matrix(torch.from_numpy(state.eye_pose[0 if number == EYE_LEFT else 1]))
        neck = rotation_matrix(torch.from_numpy(state.neck_pose))
        normal = functional.normalize(local, dim=1) @ (rotation @ neck @ turn).T
        paint = sample(self._eye, local[:, :2] / 0.0165)
        light = paint * lighting.diffuse(normal, at.shadow, at.openness, _SKIN_WRAP)
        return light + lighting.highlight(normal, at.view, at.shadow.clamp_min(0.5), ((8, 1.3),))

    def _hair_light(self, at: _Fragments, lighting: Lighting, state: HeadState, rotation: Tensor) -> Tensor:
        turn = rotation @ rotation_matrix(torch.from_numpy(state.neck_pose))
        first = len(self._rest)
        frame = torch.cat([self._hair.tangent @ turn.T, self._hair.side @ turn.T], 1)
        tangent, side = at.interpolate(frame, first).split(3, 1)
        across, along, own = at.coordinates.unbind(1)
        streak = sample(self._streaks, torch.stack([across * 0.9, 2.0 * own - 1.0], 1))[:, 0]
        # Each strip is shaded as a round lock of hair, darker at the root where its neighbours cover it.
        normal = functional.normalize(at.normal + 0.65 * across[:, None] * side, dim=1)
        tone = (0.80 + 0.45 * own + 0.22 * streak) * (0.62 + 0.38 * smoothstep(along, 0.0, 0.45))
        warm = linear(112, 72, 44)
        colour = HAIR_COLOUR + smoothstep(along, 0.5, 1.0)[:, None] * 0.35 * (warm - HAIR_COLOUR)
        matt = lighting.diffuse(normal, at.shadow, at.openness, _PLAIN_WRAP)
        tilted = functional.normalize(tangent + (0.10 + 0.10 * streak)[:, None] * normal, dim=1)
        shine = lighting.hair_highlight(tilted, at.view, at.shadow, ((6, 0.10),))
        shine += lighting.hair_highlight(tangent, at.view, at.shadow, ((4, 0.22),)) * colour
        return tone[:, None] * (colour * matt * 0.95 + shine * at.openness[:, None])

    def _shadow_table(self) -> Tensor:
        """Visibility (N, D) of directions from all vertices.

        At rest; for the inside of mouth and eyes, with the mouth open and the lids closed.
        """
        hair, count = self._hair.vertices, len(self._rest)
        free = visibility(torch.cat([self._rest, hair]), self._faces[self._material <= _HAIR], self._towards)
        state = HeadState.neutral(len(self.head.expression_names))
        for name in ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"):
            state.expression[self.head.expression_names.index(name)] = 0.7 if name == "jawOpen" else 1.0
        moved = self.rig.pose(self.shape, state).vertices
        opened = visibility(moved, self._faces[self._material < _HAIR], self._towards)
        hidden = torch.from_numpy(np.maximum(self.head.masks["mouth"], self.head.masks["eyes"]))
        gain = smoothstep(opened.mean(1) - free[:count].mean(1), 0.02, 0.15) * smoothstep(hidden, 0.1, 0.5)
        inner = torch.from_numpy(self.head.vertex_group() >= TEETH_UPPER)
        gain = torch.where(inner, 1.0, gain)[:, None]
        free[:count] += gain * (opened - free[:count])
        # Clothes are visible from everywhere except straight above, where neck and chin are.
        facing = (self._towards[:, 1] < 0.85).float().expand(len(self._clothes), -1)
        return torch.cat([free, free[self._lashes.parent], facing])


@dataclass(frozen=True)
class _Fragments:
    """N pixels of one material: texture coordinates, unit normal and view in camera space, shadows, openness."""

    coordinates: Tensor
    normal: Tensor
    shadow: Tensor
    openness: Tensor
    view: Tensor
    _corners: Tensor
    _weights: Tensor

    @staticmethod
    def of(raster: Raster, pixel: Tensor, surface: Tensor, camera: Camera) -> _Fragments:
        """The pixels ``pixel`` (N,) of ``raster``, with the vertex attributes ``surface`` (V, 10) interpolated."""
        corners = raster.faces.index_select(0, raster.triangle.flatten().index_select(0, pixel))
        weights = raster.barycentrics.flatten(0, 1).index_select(0, pixel)
        coordinates, normal, shadow, openness = _interpolate(surface, corners, weights).split((3, 3, 3, 1), 1)
        x = ((pixel % camera.width) + 0.5 - camera.cx) / camera.fx
        y = (torch.div(pixel, camera.width, rounding_mode="floor") + 0.5 - camera.cy) / camera.fy
        view = functional.normalize(torch.stack([-x, -y, -torch.ones_like(x)], 1), dim=1)
        return _Fragments(
            coordinates, functional.normalize(normal, dim=1), shadow, openness[:, 0], view, corners, weights
        )

    def interpolate(self, values: Tensor, first: int) -> Tensor:
        """Interpolate values (M, C) of the vertices from index ``first`` on to the pixels: (N, C)."""
        return _interpolate(values, self._corners - first, self._weights)


def _interpolate(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    interpolated = weights[:, 0, None] * values.index_select(0, corners[:, 0])
    interpolated.addcmul_(weights[:, 1, None], values.index_select(0, corners[:, 1]))
    return interpolated.addcmul_(weights[:, 2, None], values.index_select(0, corners[:, 2]))


def _identity(head: HeadModel, seed: int) -> Float32:
    random = np.random.default_rng(_FIRST_PERSON + seed)
    return random.normal(0.0, 0.25, size=len(head.shape_dirs)).astype(np.float32)
