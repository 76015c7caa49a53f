"""The avatar as one thing: head, warp, field, occupancy, and how a ray sees them."""

from __future__ import annotations

import torch

from insta_runtime.config import AvatarConfig
from insta_runtime.field.expression_code import ExpressionCode, condition
from insta_runtime.field.lip_code import condition_lips
from insta_runtime.field.radiance import RadianceField
from insta_runtime.field.tcnn import TcnnField
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.render.compositing import Composite, composite
from insta_runtime.render.occupancy import CandidateCells, FaceRegions, OccupancyGrid
from insta_runtime.render.pose_refinement import Registration
from insta_runtime.render.rays import Rays
from insta_runtime.render.sampling import RaySamples, march
from insta_runtime.types import Float32, HeadState
from insta_runtime.warp.regions import triangle_regions
from insta_runtime.warp.warp import HeadWarp, PosedHead


class AvatarModel:
    """Everything that a picture of the avatar is made from.

    Args:
        head: the head model; shape: (S,) identity code.
        config: all knobs; device: where tensors live.
        seed: of the field's initial weights.
        cells: the occupancy's candidate cells if they are known already, from a stored avatar.

    Attributes:
        underlay: (F, 4) premultiplied RGBA of the mesh where nobody saw it, shown where rays of the field pass
            (`ColouredMesh.underlay`); zero elsewhere, and until somebody sets it.
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
        self.learned = False  # whether the weights come from a file
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
        hollow = FaceRegions(mask("face"), mask("mouth"))
        found = OccupancyGrid.find(self.warp, hollow, config.occupancy) if cells is None else cells
        self.occupancy = OccupancyGrid(self.warp, found, config.occupancy, config.sampling.step)
        self.code = ExpressionCode(head, config.conditioning)
        self.registration = Registration.none(len(head.expression_names))
        self.underlay = torch.zeros((len(canonical.faces), 4), device=device)

    def pose(self, state: HeadState, apart: Float32 | None = None) -> PosedHead:
        """The warp of one state, with mouth and eyes moved ``apart`` from the head (`Registration.corrected`)."""
        motions = None if apart is None else torch.from_numpy(apart).to(self.device)
        return self.warp.pose(self.rig.pose(self.shape, state).vertices, motions)

    def registered(self, state: HeadState) -> tuple[HeadState, Float32]:
        """A tracked ``state`` as the avatar is to be shown: `Registration.corrected`."""
        return self.registration.corrected(state)

    def code_of(self, state: HeadState) -> torch.Tensor:
        """The expression code (CODE_WIDTH,) of one state, on the device."""
        return torch.as_tensor(self.code(state), device=self.device)

    def march(self, rays: Rays, posed: PosedHead, generator: torch.Generator | None = None) -> RaySamples:
        """Sample rays in one pose; no gradient flows through this."""
        with torch.no_grad():
            return march(rays, posed, self.occupancy, self.config.sampling, generator)

    def shade(self, samples: RaySamples, codes: torch.Tensor, rays: int) -> Composite:
        """Ask the field at ``samples`` and composite: ``codes`` (N, CODE_WIDTH), not yet faded, one a sample."""
        density, colour = self.field(samples.position, samples.direction, self.condition(codes, samples.masks))
        return composite(density, colour, samples.distance, samples.ray, rays, self.config.sampling.step)


def use_tcnn(model: AvatarModel) -> None:
    """Give ``model`` a fresh field of tiny-cuda-nn.  UserError if that cannot be had."""
    field = TcnnField(model.config.radiance, model.config.learn.seed).to(model.device)
    model.field = field  # type: ignore[assignment]  # the same interface, other weights
