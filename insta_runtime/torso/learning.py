"""Learning of the torso layer from the training frames of the head.

The part of each frame beside the head is registered with the layer learned so far and averaged into it; differing
pixels (a hand, a strand of hair) have little weight, so the average is nearly a median.  Under the head the neck is
completed from frames that showed it, and otherwise filled in from its surroundings.
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
"""Maximum number of frames of a recording, evenly spaced, that a torso is learned from."""
VISIBLE = 0.5
"""Minimum share of a pixel that the head must leave uncovered for the pixel to be used for the torso.

At the edge of the head colours are mixed; using such pixels would leave a ghost of the head.
"""
NEAR_HEAD = 0.04
"""Width of the margin around the head that registration ignores (neck, hair), as a share of the image's side."""
AGREES = 0.06
"""Root-mean-square colour difference from the mean, in [0, 1], at which a pixel has half its weight."""
DOUBTED = 0.05
"""Minimum weight of a pixel, so that the mean follows a lasting change (such as other clothes)."""
FIRST = 3.0
"""Number of first frames that are averaged with full weights, because the mean is still unreliable."""
MEMORY = 60.0
"""Maximum weight of a running mean, in frames, so that the mean forgets old frames."""
FEW = 0.05
"""Share of the frames that must have shown a pixel: below it the pixel is filled in from its surroundings."""
SEEN_EDGE = (0.06, 0.98)
"""Mean opacities that are mapped to 0 and to 1, because edges are not aligned exactly and strands of hair move."""
UNSEEN_EDGE = (0.35, 0.65)
"""Mean opacities that are mapped to 0 and to 1 where the head hid the torso in all frames."""


def learn_torso(observations: Sequence[Observation], side: int, device: torch.device) -> TorsoLayer | None:
    """Learn the torso layer of a recording from ``observations`` of one subject in the order of time.

    The layer has ``side`` x ``side`` pixels.  Returns None if no observation has a body matte.
    """
    slow = SlowPose()
    seen = [(o, slow.inputs(picture_pose(o.state, o.camera), o.t_capture_ns)) for o in observations]
    shown = [(observation, inputs) for observation, inputs in seen if observation.body is not None]
    learner = TorsoLearner(side, device)
    for number in np.unique(np.linspace(0, len(shown) - 1, min(len(shown), PICTURES)).round().astype(int)):
        learner.observe(*shown[number])
    return learner.layer()


class TorsoLearner:
    """Learns the torso of one subject as a layer of ``side`` x ``side`` pixels, frame by frame.

    Attributes:
        seen: number of frames so far.
    """

    def __init__(self, side: int, device: torch.device) -> None:
        self.side, self.device = side, device
        self.seen = 0
        self._mean = torch.zeros((4, side, side), device=device)
        self._weight = torch.zeros((1, side, side), device=device)
        self._room = torch.zeros((4, ROOM_SIDE, ROOM_SIDE), device=device)  # colour x weight, weight
        self._motion = Similarity()
        self._pose: Float64 = np.zeros(POSE)  # of the head in the last frame
        self._motions = MotionFit()

    def observe(self, observation: Observation, inputs: Float64) -> Similarity:
        """Add one frame with a body matte; ``inputs`` (`motion.INPUTS`,) are those of its head pose from `SlowPose`.

        Returns the motion of the torso in this frame from its reference position.  Raises ValueError without a body
        matte.
        """
        if observation.body is None:
            raise ValueError("the observation has no body matte")
        rgb = self._picture(observation.rgb)
        alpha, body = self._picture(observation.alpha), self._picture(observation.body)
        self._average_room(rgb, body)
        pose = inputs[:POSE] + inputs[POSE:]
        # The image is head over torso over room: alpha + (1 - alpha) torso = body.
        free = 1.0 - alpha
        torso = ((body - alpha) / free.clamp_min(1e-3)).clamp(0.0, 1.0)
        picture = torch.cat([rgb * torso, torso])
        visible = ((free - VISIBLE) / (1.0 - VISIBLE)).clamp_min(0.0).pow(3)
        if self.seen:
            known = (self._weight / min(self.seen, FIRST)).clamp_max(1.0)
            near = _blurred(reduced(alpha, ROOM_SIDE), NEAR_HEAD)
            clear = (1.0 - 2.0 * functional.interpolate(near[None], alpha.shape[1:], mode="bilinear")[0]).clamp_min(0.0)
            # Likely motions: the last one, or one that follows the head (after a change of seat).
            likely = self._motion, carried(self._pose, pose).after(self._motion)
            self._motion = register(self._mean, known, picture, visible * clear, likely)
        self._pose = pose
        self._motions.add(inputs, self._motion)
        self._average(picture, visible)
        self.seen += 1
        return self._motion

    def layer(self) -> TorsoLayer | None:
        """Copy of the torso layer learned so far; None before the first observation."""
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
        if self.device.type == "cuda":  # it may be used on another stream
            torch.cuda.current_stream(self.device).synchronize()
        return layer

    def _picture(self, pixels: Bytes) -> torch.Tensor:
        """Image (H, W) or (H, W, C) uint8 as (C, side, side) float in [0, 1]."""
        picture = torch.from_numpy(pixels).to(self.device).float() / 255.0
        picture = picture[None] if picture.dim() == 2 else picture.permute(2, 0, 1).contiguous()
        if picture.shape[1:] == (self.side, self.side):
            return picture
        if picture.shape[1] > self.side:
            return reduced(picture, self.side)
        return functional.interpolate(picture[None], (self.side, self.side), mode="bilinear")[0]

    def _average(self, picture: torch.Tensor, visible: torch.Tensor) -> None:
        """Average an image into the layer at its registered position."""
        grid = body_grid(self._motion, self.side, self.device)
        there = torch.cat([picture, visible])[None]
        seen = functional.grid_sample(there, grid, padding_mode="zeros", align_corners=False)[0]
        new, weight = seen[:4], seen[4:]
        away = (new - self._mean).square().mean(0, keepdim=True) / AGREES**2
        confidence = ((self._weight - FIRST) / FIRST).clamp(0.0, 1.0)
        agreed = (1.0 / (1.0 + away)).clamp_min(DOUBTED)
        weight = weight * (1.0 + confidence * (agreed - 1.0))
        self._weight += weight
        self._mean += weight / self._weight.clamp_min(1e-6) * (new - self._mean)
        self._weight.clamp_max_(MEMORY)

    def _sure(self, weight: torch.Tensor) -> torch.Tensor:
        """Confidence in [0, 1) of pixels with this accumulated weight."""
        few = max(1.0, FEW * min(self.seen, MEMORY))
        return weight.square() / (weight.square() + few**2)

    def _average_room(self, rgb: torch.Tensor, body: torch.Tensor) -> None:
        """Average the part of the image that the body does not cover into the image of the room."""
        rgb, body = reduced(rgb, ROOM_SIDE), reduced(body, ROOM_SIDE)
        # The edge of the matte is soft; the colour of the body must not leak into the room.
        free = (1.0 - 8.0 * functional.max_pool2d(body[None], 3, 1, 1)[0]).clamp_min(0.0)
        self._room += torch.cat([rgb * free, free])
        self._room *= MEMORY / self._room[3:].clamp_min(MEMORY)


def _blurred(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Image (C, S, S) filtered by three box filters, nearly a Gaussian of ``sigma`` times the side."""
    side = picture.shape[-1]
    reach = max(round(sigma * side), 1)
    out = picture[None]
    for _ in range(3):
        padded = functional.pad(out, (reach, reach, reach, reach), mode="replicate")
        out = functional.avg_pool2d(functional.avg_pool2d(padded, (1, 2 * reach + 1), 1), (2 * reach + 1, 1), 1)
    return out[0]


def _steeper(opacity: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Opacity rescaled linearly: 0 up to ``low``, 1 from ``high`` on."""
    return ((opacity - low) / (high - low)).clamp(0.0, 1.0)


def _filled(picture: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
    """Image (C, S, S) whose pixels of low confidence ``sure`` (1, S, S) are filled in from their surroundings.

    Pull-push algorithm (Gortler et al., The Lumigraph, 1996): a pyramid of weighted means.
    """
    if picture.shape[-1] == 1:
        return picture
    down = functional.avg_pool2d(torch.cat([picture * sure, sure])[None], 2, ceil_mode=True)[0]
    coarse = down[:-1] / down[-1:].clamp_min(1e-6)
    # The confidence of a coarse pixel is the largest one of its parts.
    best = functional.max_pool2d(sure[None], 2, ceil_mode=True)[0]
    wide = _filled(coarse, best)
    up = functional.interpolate(wide[None], picture.shape[1:], mode="bilinear", align_corners=False)[0]
    return picture * sure + (1.0 - sure) * up
