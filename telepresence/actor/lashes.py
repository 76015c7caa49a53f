"""Eyelashes of the synthetic actor: a mesh on the rims of the upper lids that moves with them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, HeadModel
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera

_PER_EYE = 24
_REACH = 0.0062  # length of a lash, metres
_RIM = 0.0010  # width of the continuous dark rim below the single lashes, metres


class Lashes:
    """Mesh of the eyelashes; its vertices are computed for every posed head.

    ``faces`` (K, 3): indices into the N vertices of `place`. ``parent`` (N,): the head vertex nearest to each.
    """

    def __init__(self, head: HeadModel, rest: Tensor, eyes: Tensor) -> None:
        """``rest`` (V, 3): vertices of the head at rest; ``eyes`` (2, 3): centres of its eyeballs; metres."""
        ends, share, across, rims, singles = [], [], [], [], []
        count = 0
        for number, eye in ((EYE_LEFT, eyes[0]), (EYE_RIGHT, eyes[1])):
            rim = _upper_rim(head, rest, number, eye)
            at = torch.linspace(0.3, len(rim) - 1.3, _PER_EYE)
            ends.append(torch.stack([torch.cat([rim[:-1], rim[at.long()]]), torch.cat([rim[1:], rim[at.long() + 1]])]))
            share.append(torch.cat([torch.zeros(len(rim) - 1), at % 1.0]))
            across.append((rest[ends[-1][0], 0] - eye[0]) / 0.014)
            rims.append(count + torch.arange(len(rim) - 2))
            singles.append(count + len(rim) - 1 + torch.arange(_PER_EYE))
            count += len(rim) - 1 + _PER_EYE
        self._first, self._second = torch.cat(ends, 1)
        self._share, self._across = torch.cat(share)[:, None], torch.cat(across)
        self._rest_y = rest[self._first, 1]
        # The vertices are `count` roots, then as many points 0.5 mm beside them, then as many tips.
        rim, single = torch.cat(rims), torch.cat(singles)
        self.faces = torch.cat(
            [
                torch.stack([rim, rim + 1, 2 * count + rim], 1),
                torch.stack([rim + 1, 2 * count + rim + 1, 2 * count + rim], 1),
                torch.stack([single, count + single, 2 * count + single], 1),
            ]
        )
        self._reach = torch.full((count, 1), _RIM)
        length = torch.rand(len(single), 1, generator=torch.Generator().manual_seed(0))
        self._reach[single] = _REACH * (0.7 + 0.3 * length)
        self.parent = self._first.repeat(3)

    def place(self, head: Tensor) -> Tensor:
        """Vertices (N, 3) of the lashes for the posed head vertices (V, 3), head space."""
        a, b = head[self._first], head[self._second]
        root = a + self._share * (b - a)
        beside = root + 0.0005 * functional.normalize(b - a, dim=1)
        # Lashes point forwards, outwards and up; as the lid closes, they turn down with it.
        dropped = ((self._rest_y - a[:, 1]) / 0.010).clamp(0.0, 1.0)
        aim = torch.stack([0.55 * self._across, 0.80 - 1.40 * dropped, torch.ones(len(a))], 1)
        return torch.cat([root, beside, root + self._reach * functional.normalize(aim, dim=1)])


def _upper_rim(head: HeadModel, rest: Tensor, number: int, eye: Tensor) -> Tensor:
    """Head vertices (M,) along the rim of one upper lid.

    Taken from a front view: in each pixel column, the skin just above the highest pixel of the eyeball.
    """
    size = 160
    faces = torch.from_numpy(head.faces)
    view = (rest - eye) * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 0.5])
    raster = rasterise(view, faces, Camera(10.0 * size, 10.0 * size, size / 2, size / 2, size, size))
    group = torch.from_numpy(head.face_group).long()
    is_eye = torch.where(raster.mask, group[raster.triangle], -1) == number
    columns = is_eye.any(0).nonzero().squeeze(1)
    above = (is_eye[:, columns].int().argmax(0) - 1).clamp_min(0)
    corner = raster.barycentrics[above, columns].argmax(1)
    rim = faces[raster.triangle[above, columns], corner].tolist()
    return torch.tensor(list(dict.fromkeys(rim)))
