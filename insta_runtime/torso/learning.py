"""Learns the torso from the pictures that the head is learned from.

What shows beside the head is laid, by registration, over what was seen before, and averaged there with little regard
for what disagrees (a hand, a strand of hair): nearly a median.  The neck goes on under the head as far as any picture
showed it, and from there as its surroundings go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from insta_runtime.torso.layer import ROOM_SIDE, TorsoLayer
from insta_runtime.torso.motion import POSE, MotionFit, Similarity, SlowPose, carried, picture_pose
from insta_runtime.torso.registration import body_grid, reduced, register
from insta_runtime.types import Bytes, Float64, Observation

PICTURES = 96
"""Of a recording, evenly spread, from which a torso is learned."""
VISIBLE = 0.5
"""Part of a pixel that the head leaves free, from which on the pixel is taken to say something of the torso.

At the head's edge colours are mixed: what little such pixels could tell is not worth the ghost that they leave.
"""
NEAR_HEAD = 0.04
"""Part of the picture's side around the head where a torso is not registered: necks turn, and hair hangs there."""
AGREES = 0.06
"""Difference from the mean at which a picture counts half."""
DOUBTED = 0.05
"""What a picture counts at least: the mean follows a new pullover in the end."""
FIRST = 3.0
"""Pictures whose mean is taken as it is, before there is an opinion to disagree with."""
MEMORY = 60.0
"""Pictures that a mean goes back to."""
FEW = 0.05
"""Part of the pictures below which a pixel is taken from its surroundings rather than from what was seen of it."""
SEEN_EDGE = (0.06, 0.98)
"""Mean opacity that is taken for none, and for full: edges that did not meet exactly, and strands that swung past."""
UNSEEN_EDGE = (0.35, 0.65)
"""The same where the head was before it in every picture: that belongs to the torso, or not."""


def learn_torso(observations: Sequence[Observation], side: int, device: torch.device) -> TorsoLayer | None:
    """The torso of a recording: ``observations`` of one person in time.  None if nobody cut out the body in any."""
    slow = SlowPose()
    seen = [(o, slow.inputs(picture_pose(o.state, o.camera), o.t_capture_ns)) for o in observations]
    shown = [(observation, inputs) for observation, inputs in seen if observation.body is not None]
    learner = TorsoLearner(side, device)
    for number in np.unique(np.linspace(0, len(shown) - 1, min(len(shown), PICTURES)).round().astype(int)):
        learner.observe(*shown[number])
    return learner.layer()


class TorsoLearner:
    """Learns one person's torso as a layer of ``side`` x ``side`` pixels."""

    def __init__(self, side: int, device: torch.device) -> None:
        self.side, self.device = side, device
        self.seen = 0
        self._mean = torch.zeros((4, side, side), device=device)
        self._weight = torch.zeros((1, side, side), device=device)
        self._room = torch.zeros((4, ROOM_SIDE, ROOM_SIDE), device=device)  # colour x weight, weight
        self._motion = Similarity()
        self._pose: Float64 = np.zeros(POSE)  # of the head in the last picture
        self._motions = MotionFit()

    def observe(self, observation: Observation, inputs: Float64) -> Similarity:
        """Learn from a picture with a ``body``; ``inputs`` (`motion.INPUTS`,) is what `SlowPose` says of its head.

        Returns how the torso has moved from its reference.  ValueError for a picture whose body nobody cut out.
        """
        if observation.body is None:
            raise ValueError("the picture has no matte of the body")
        rgb = self._picture(observation.rgb)
        alpha, body = self._picture(observation.alpha), self._picture(observation.body)
        self._see_room(rgb, body)
        pose = inputs[:POSE] + inputs[POSE:]
        # The picture is head over torso over room: alpha + (1 - alpha) torso = body.
        free = 1.0 - alpha
        torso = ((body - alpha) / free.clamp_min(1e-3)).clamp(0.0, 1.0)
        picture = torch.cat([rgb * torso, torso])
        visible = ((free - VISIBLE) / (1.0 - VISIBLE)).clamp_min(0.0).pow(3)
        if self.seen:
            known = (self._weight / min(self.seen, FIRST)).clamp_max(1.0)
            near = _blurred(reduced(alpha, ROOM_SIDE), NEAR_HEAD)
            apart = (1.0 - 2.0 * functional.interpolate(near[None], alpha.shape[1:], mode="bilinear")[0]).clamp_min(0.0)
            # Who took another seat took the head along.
            likely = self._motion, carried(self._pose, pose).after(self._motion)
            self._motion = register(self._mean, known, picture, visible * apart, likely)
        self._pose = pose
        self._motions.add(inputs, self._motion)
        self._average(picture, visible)
        self.seen += 1
        return self._motion

    def layer(self) -> TorsoLayer | None:
        """The torso so far, a copy; None before the first picture."""
        if not self.seen:
            return None
        room, weight = self._room[:3] / self._room[3:].clamp_min(1e-6), self._room[3:]
        room = _filled(room, self._sure(weight))
        room = _blurred(room, 2.0 / ROOM_SIDE)
        sure = self._sure(self._weight)
        rgba = _filled(self._mean, sure)
        opacity = rgba[3:]
        colour = (rgba[:3] / opacity.clamp_min(1e-3)).clamp(0.0, 1.0)
        opacity = sure * _steeper(opacity, *SEEN_EDGE) + (1.0 - sure) * _steeper(opacity, *UNSEEN_EDGE)
        layer = TorsoLayer(torch.cat([colour * opacity, opacity]), room.clamp(0.0, 1.0), self._motions.solve())
        if self.device.type == "cuda":  # whoever draws it, on another stream, finds it whole
            torch.cuda.current_stream(self.device).synchronize()
        return layer

    def _picture(self, pixels: Bytes) -> torch.Tensor:
        """(H, W) or (H, W, C) uint8 as (C, side, side) in [0, 1]."""
        picture = torch.from_numpy(pixels).to(self.device).float() / 255.0
        picture = picture[None] if picture.dim() == 2 else picture.permute(2, 0, 1).contiguous()
        if picture.shape[1:] == (self.side, self.side):
            return picture
        if picture.shape[1] > self.side:
            return reduced(picture, self.side)
        return functional.interpolate(picture[None], (self.side, self.side), mode="bilinear")[0]

    def _average(self, picture: torch.Tensor, visible: torch.Tensor) -> None:
        """Add a picture at its place, in place."""
        grid = body_grid(self._motion, self.side, self.device)
        there = torch.cat([picture, visible])[None]
        seen = functional.grid_sample(there, grid, padding_mode="zeros", align_corners=False)[0]
        new, weight = seen[:4], seen[4:]
        away = (new - self._mean).square().mean(0, keepdim=True) / AGREES**2
        opinion = ((self._weight - FIRST) / FIRST).clamp(0.0, 1.0)
        agreed = (1.0 / (1.0 + away)).clamp_min(DOUBTED)
        weight = weight * (1.0 + opinion * (agreed - 1.0))
        self._weight += weight
        self._mean += weight / self._weight.clamp_min(1e-6) * (new - self._mean)
        self._weight.clamp_max_(MEMORY)

    def _sure(self, weight: torch.Tensor) -> torch.Tensor:
        """How far a pixel that was seen with this weight is to be believed, in [0, 1)."""
        few = max(1.0, FEW * min(self.seen, MEMORY))
        return weight.square() / (weight.square() + few**2)

    def _see_room(self, rgb: torch.Tensor, body: torch.Tensor) -> None:
        """The room does not move: what no body hides, as it is."""
        rgb, body = reduced(rgb, ROOM_SIDE), reduced(body, ROOM_SIDE)
        # The matte's edge is soft, and a body's colour must not leak.
        free = (1.0 - 8.0 * functional.max_pool2d(body[None], 3, 1, 1)[0]).clamp_min(0.0)
        self._room += torch.cat([rgb * free, free])
        self._room *= MEMORY / self._room[3:].clamp_min(MEMORY)


def _blurred(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """(C, S, S) under a Gaussian of ``sigma`` parts of the side, nearly: three boxes."""
    side = picture.shape[-1]
    reach = max(round(sigma * side), 1)
    out = picture[None]
    for _ in range(3):
        padded = functional.pad(out, (reach, reach, reach, reach), mode="replicate")
        out = functional.avg_pool2d(functional.avg_pool2d(padded, (1, 2 * reach + 1), 1), (2 * reach + 1, 1), 1)
    return out[0]


def _steeper(opacity: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 up to ``low``, 1 from ``high`` on."""
    return ((opacity - low) / (high - low)).clamp(0.0, 1.0)


def _filled(picture: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
    """``picture`` (C, S, S), and where one is not ``sure`` (1, S, S) of it, its surroundings.

    Pull-push (Gortler et al., The Lumigraph, 1996): from a pyramid of weighted means.
    """
    if picture.shape[-1] == 1:
        return picture
    down = functional.avg_pool2d(torch.cat([picture * sure, sure])[None], 2, ceil_mode=True)[0]
    coarse = down[:-1] / down[-1:].clamp_min(1e-6)
    # A coarse pixel is as sure as its best part: one that was seen speaks for its neighbours.
    best = functional.max_pool2d(sure[None], 2, ceil_mode=True)[0]
    wide = _filled(coarse, best)
    up = functional.interpolate(wide[None], picture.shape[1:], mode="bilinear", align_corners=False)[0]
    return picture * sure + (1.0 - sure) * up
