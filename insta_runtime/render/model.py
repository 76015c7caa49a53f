"""Model of an avatar: head, warp, radiance field, occupancy and pose refinement, and volume rendering of rays."""

from __future__ import annotations

import torch

from insta_runtime.config import AvatarConfig
from insta_runtime.field.expression_code import ExpressionCode, condition
from insta_runtime.field.lip_code import condition_lips
from insta_runtime.field.radiance import RadianceField
from insta_runtime.field.tcnn import TcnnField
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.render.compositing import Composite, composite
from insta_runtime.render.occupancy import CandidateCells, FaceMasks, OccupancyGrid
from insta_runtime.render.pose_refinement import PoseRefinement
from insta_runtime.render.rays import Rays
from insta_runtime.render.sampling import RaySamples, march
from insta_runtime.types import Float32, HeadState
from insta_runtime.warp.regions import triangle_regions
from insta_runtime.warp.warp import HeadWarp, PosedHead


class AvatarModel:
    """Model of one subject's avatar: head rig, warp, radiance field, occupancy grid, expression code, pose refinement.

    Args:
        head: head model.
        shape: (S,) identity code of the subject.
        config: configuration of the avatar.
        device: device of all tensors.
        seed: seed of the field's initial weights.
        cells: candidate cells of the occupancy grid, if known from a stored avatar; computed otherwise.

    Attributes:
        learned: whether the weights were loaded from an avatar file.
        underlay: (F, 4) premultiplied RGBA of the triangles that no training frame showed (`ColouredMesh.underlay`),
            rendered behind the field; zero for other triangles, and initially.
    """

    def __init__(
        self,
        head: HeadModel,
        shape: Float32,
        config: AvatarConfig,
        device: torch.device,
        seed: int = 0,
        cells: CandidateCells | None = None,
    ) -> None:
        self.head, self.shape, self.config, self.device = head, shape, config, device
        self.learned = False
        self.rig = HeadRig(head, device)
        canonical = self.rig.canonical(shape, config.warp.canonical_jaw)

        def mask(name: str) -> torch.Tensor:
            return torch.as_tensor(head.masks[name], dtype=torch.float32, device=device)

        masks = torch.stack([mask("mouth"), mask("eyes")], dim=-1)
        neutral = self.rig.canonical(shape, 0.0).vertices
        regions = triangle_regions(canonical.faces, mask("face"), mask("eyes"), mask("lips"))
        lips = config.conditioning.code == "lips"
        self.warp = HeadWarp(canonical, neutral, masks, config.warp, regions=regions, lips=lips)
        self.condition = condition_lips if lips else condition
        self.field = RadianceField(config.radiance, torch.Generator().manual_seed(seed)).to(device)
        face_masks = FaceMasks(mask("face"), mask("mouth"))
        found = OccupancyGrid.find_candidates(self.warp, face_masks, config.occupancy) if cells is None else cells
        self.occupancy = OccupancyGrid(self.warp, found, config.occupancy, config.sampling.step)
        self.code = ExpressionCode(head, config.conditioning)
        self.pose_refinement = PoseRefinement.identity(len(head.expression_names))
        self.underlay = torch.zeros((len(canonical.faces), 4), device=device)

    def pose(self, state: HeadState, part_motions: Float32 | None = None) -> PosedHead:
        """Warp of the head posed in ``state``.

        ``part_motions`` (PARTS, MOTION) are small motions of mouth and eyes (`PoseRefinement.refine`), None for none.
        """
        motions = None if part_motions is None else torch.from_numpy(part_motions).to(self.device)
        return self.warp.pose(self.rig.pose(self.shape, state).vertices, motions)

    def refine_pose(self, state: HeadState) -> tuple[HeadState, Float32]:
        """Refined head state for rendering a tracked ``state``, and the part motions (PARTS, MOTION) of mouth and eyes.

        See `PoseRefinement.refine`.
        """
        return self.pose_refinement.refine(state)

    def code_of(self, state: HeadState) -> torch.Tensor:
        """Expression code (CODE_WIDTH,) float32 of one head state, on the model's device."""
        return torch.as_tensor(self.code(state), device=self.device)

    def march(self, rays: Rays, posed: PosedHead, generator: torch.Generator | None = None) -> RaySamples:
        """Sample rays through the head in one pose (`sampling.march`), without gradients.

        With a ``generator`` the positions of the samples are jittered, as in training.
        """
        with torch.no_grad():
            return march(rays, posed, self.occupancy, self.config.sampling, generator)

    def shade(self, samples: RaySamples, codes: torch.Tensor, rays: int) -> Composite:
        """Evaluate the radiance field at N ``samples`` and composite them to the colours of ``rays`` rays.

        ``codes`` (N, CODE_WIDTH) are the expression codes of the samples, not yet multiplied by their masks.
        """
        density, colour = self.field(samples.position, samples.direction, self.condition(codes, samples.masks))
        return composite(density, colour, samples.distance, samples.ray, rays, self.config.sampling.step)


def use_tcnn(model: AvatarModel) -> None:
    """Replace the radiance field of ``model`` by an untrained one of tiny-cuda-nn.

    Raises UserError if tiny-cuda-nn is not available or does not support the configuration.
    """
    field = TcnnField(model.config.radiance, model.config.learn.seed).to(model.device)
    model.field = field  # type: ignore[assignment]  # the same interface, other weights
