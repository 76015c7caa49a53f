"""Head mesh with vertex colours averaged from camera frames: rendered until the avatar is good enough."""

from __future__ import annotations

import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.head import HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera, Float32, HeadState, Observation, RenderedFrame

VISIBLE_DEPTH = 0.006
"""Distance in metres behind the rasterised depth up to which a vertex counts as visible."""
RINGS = 20
"""Number of edges over which colours spread to vertices that no frame showed; farther ones get the mean colour."""
SEEN_WEIGHT = 0.5
"""Accumulated weight from which a vertex counts as seen; one frontal view has weight 1."""
OBSERVE_SIZE = 192
"""Side in pixels of the depth map that decides which vertices an observation shows; they are about 2 pixels apart."""


class ColouredMesh:
    """Head mesh whose vertices have the mean colour and matte of the frames in which they were visible.

    Args:
        rig: rig of the head model.
        shape: (S,) identity code of the subject.
    """

    def __init__(self, rig: HeadRig, shape: Float32) -> None:
        self.rig, self.shape = rig, shape
        rest = rig.canonical(shape, 0.0)
        self.faces = rest.faces
        vertices = len(rest.vertices)
        self._sum = torch.zeros((vertices, 5), device=rest.vertices.device)  # r, g, b (x matte), matte, weight
        corners = self.faces
        edges = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
        self._edges = torch.cat([edges, edges.flip(1)])
        self._colours: torch.Tensor | None = None

    def observe(self, observation: Observation) -> None:
        """Add the colour and matte of one training frame to the means of the vertices that are visible in it."""
        camera = observation.camera.scaled(OBSERVE_SIZE, OBSERVE_SIZE)
        device = self._sum.device
        vertices = camera_vertices(self.rig.pose(self.shape, observation.state).vertices, observation.state)
        raster = rasterise(vertices, self.faces, camera)
        x, y, z = vertices.unbind(-1)
        u, v = x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy
        inside = (z > 0.05) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        column = u.long().clamp(0, camera.width - 1)
        row = v.long().clamp(0, camera.height - 1)
        visible = inside & (z <= raster.depth[row, column] + VISIBLE_DEPTH)
        a, b, c = vertices[self.faces].unbind(1)
        normal = torch.zeros_like(vertices).index_add_(
            0, self.faces.reshape(-1), torch.linalg.cross(b - a, c - a).repeat_interleave(3, dim=0)
        )
        towards = -(torch.nn.functional.normalize(normal, dim=-1) * torch.nn.functional.normalize(vertices, dim=-1))
        weight = visible * towards.sum(-1).clamp_min(0.0).square()
        rgb = torch.as_tensor(observation.rgb, device=device).permute(2, 0, 1).float() / 255.0
        alpha = torch.as_tensor(observation.alpha, device=device).float()[None] / 255.0
        grid = torch.stack([2.0 * u / camera.width - 1.0, 2.0 * v / camera.height - 1.0], dim=-1)
        picture = torch.cat([rgb * alpha, alpha])[None]
        seen = torch.nn.functional.grid_sample(picture, grid[None, None], align_corners=False)[0, :, 0].T
        self._sum += torch.cat([seen, torch.ones_like(weight[:, None])], dim=-1) * weight[:, None]
        self._colours = None

    def colours(self) -> torch.Tensor:
        """Vertex colours (V, 4), premultiplied RGBA in [0, 1].

        Vertices that no frame showed get the colours of their nearest neighbours (`RINGS`) or the mean colour.
        """
        if self._colours is None:
            known = self._sum[:, 4] > 1e-3
            value = torch.where(known[:, None], self._sum[:, :4] / self._sum[:, 4:].clamp_min(1e-6), 0.0)
            mean = value.sum(0) / known.sum().clamp_min(1)
            value = torch.cat([value, known[:, None]], dim=-1)
            start, end = self._edges.unbind(1)
            for _ in range(RINGS):
                total = torch.zeros_like(value).index_add_(0, start, value[end])
                reached = ~known & (total[:, 4] > 0)
                value = torch.where(reached[:, None], total / total[:, 4:].clamp_min(1.0), value)
            value = torch.where(value[:, 4:] > 0, value[:, :4], mean)
            self._colours = value
        return self._colours

    def underlay(self) -> torch.Tensor:
        """Triangle colours (F, 4), premultiplied RGBA in [0, 1], of the parts that no frame showed; zero elsewhere."""
        unseen = 1.0 - (self._sum[:, 4:] / SEEN_WEIGHT).clamp(max=1.0)
        return (self.colours() * unseen)[self.faces].mean(dim=1)

    @torch.no_grad()
    def render(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        """Render the coloured mesh in ``state`` with ``camera`` as premultiplied RGBA."""
        vertices = camera_vertices(self.rig.pose(self.shape, state).vertices, state)
        raster = rasterise(vertices, self.faces, camera)
        rgba = raster.interpolate(self.colours()) * raster.mask[..., None]
        return RenderedFrame(frame_id, state.t_capture_ns, rgba.clamp(0.0, 1.0).float().cpu().numpy())
