"""Head rig: vertices from parameters by blendshapes, pose correctives, joints and linear blend skinning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from insta_runtime.head.model import PARENTS, HeadModel
from insta_runtime.types import HeadMesh, HeadState

CANONICAL_JAW = 0.6
"""Rotation of the jaw joint in radians for a canonical mouth opening of 1, for head models with a jaw joint."""


class RestPose(NamedTuple):
    """Head of one identity in the neutral pose: vertices ``rest`` (V, 3) and ``joints`` (5, 3), metres."""

    rest: Tensor
    joints: Tensor


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3) in radians; differentiable, also at zero."""
    angle = torch.sqrt((axis_angle * axis_angle).sum(-1) + 1e-20)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    half = torch.sinc(angle / (2.0 * torch.pi))
    matrix: Tensor = identity + torch.sinc(angle / torch.pi) * skew + 0.5 * half * half * (skew @ skew)
    return matrix


class HeadRig:
    """Head model on a torch device: computes posed vertices, differentiable with respect to all parameters.

    Attributes:
        model: the head model.
        faces: (F, 3) int64 triangles.
        skin_weights: (V, 5) skinning weights.
        motion_dirs: (E + 2, or E + 38 with pose correctives, V * 3) displacements in metres before skinning: of
            expressions, eyelids, pose correctives.
    """

    def __init__(
        self, model: HeadModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        def tensor(array: NDArray[np.generic]) -> Tensor:
            return torch.as_tensor(array, device=device, dtype=dtype)

        self.model = model
        self.faces = torch.as_tensor(model.faces, device=device)
        self._template = tensor(model.template)
        self._shape_dirs = tensor(model.shape_dirs).flatten(1)
        self._joints = tensor(model.joints)
        self._joint_shape_dirs = tensor(model.joint_shape_dirs).flatten(1)
        self.skin_weights = tensor(model.skin_weights)
        # Displacements before skinning as one matrix: expression, eyelids, pose correctives.
        dirs = [model.expression_dirs, model.eyelid_dirs]
        if model.pose_dirs is not None:
            dirs.append(model.pose_dirs)
        self.motion_dirs = tensor(np.concatenate(dirs)).flatten(1)
        self._last: tuple[bytes, RestPose] | None = None

    def rest_pose(self, shape: Tensor) -> RestPose:
        """Vertices and joints of the neutral head with the identity code ``shape`` (S,)."""
        rest = self._template + (shape @ self._shape_dirs).view_as(self._template)
        return RestPose(rest, self._joints + (shape @ self._joint_shape_dirs).view_as(self._joints))

    def vertices(
        self,
        shape: Tensor,
        expression: Tensor,
        jaw_pose: Tensor,
        neck_pose: Tensor,
        eye_pose: Tensor,
        eyelids: Tensor,
    ) -> Tensor:
        """Posed vertices (B, V, 3) in head space, metres.

        Args:
            shape: (S,) identity code.
            expression: (B, E) expression weights.
            jaw_pose, neck_pose: (B, 3) axis-angle rotations, radians.
            eye_pose: (B, 2, 3) axis-angle rotations of the left, then the right eye.
            eyelids: (B, 2) closing of the left, then the right lid.
        """
        return self._posed(self.rest_pose(shape), expression, jaw_pose, neck_pose, eye_pose, eyelids)

    def pose(self, shape: NDArray[np.floating], state: HeadState) -> HeadMesh:
        """Mesh of the identity code ``shape`` (S,) in ``state``, in head space, without gradients."""
        arrays = (state.expression, state.jaw_pose, state.neck_pose, state.eye_pose, state.eyelids)
        with torch.no_grad():
            parameters = [self._tensor(array)[None] for array in arrays]
            return HeadMesh(self._posed(self._rest_pose_of(shape), *parameters)[0], self.faces)

    def canonical(self, shape: NDArray[np.floating], jaw: float) -> HeadMesh:
        """Mesh of the identity code ``shape`` (S,) with a neutral face and a mouth opening of ``jaw`` in [0, 1].

        It is in head space and without gradients.
        """
        state = HeadState.neutral(len(self.model.expression_names))
        if self.model.basis == "arkit52":
            state.expression[self.model.expression_names.index("jawOpen")] = jaw
        else:
            state.jaw_pose[0] = CANONICAL_JAW * jaw
        return self.pose(shape, state)

    def _tensor(self, array: NDArray[np.floating]) -> Tensor:
        return torch.as_tensor(array, device=self._template.device, dtype=self._template.dtype)

    def _rest_pose_of(self, shape: NDArray[np.floating]) -> RestPose:
        """`rest_pose`, cached for the last identity code, which does not change from frame to frame."""
        key = np.ascontiguousarray(shape).tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self.rest_pose(self._tensor(shape))
        return self._last[1]

    def _posed(
        self,
        head: RestPose,
        expression: Tensor,
        jaw_pose: Tensor,
        neck_pose: Tensor,
        eye_pose: Tensor,
        eyelids: Tensor,
    ) -> Tensor:
        turns = rotation_matrix(torch.stack([neck_pose, jaw_pose, eye_pose[:, 0], eye_pose[:, 1]], 1))  # (B, 4, 3, 3)
        weights = [expression, eyelids]
        if self.model.pose_dirs is not None:
            still = torch.eye(3, dtype=turns.dtype, device=turns.device)
            weights.append((turns - still).flatten(1))
        shaped = head.rest + (torch.cat(weights, 1) @ self.motion_dirs).unflatten(1, (-1, 3))
        linear, offset = self._joint_transforms(head.joints, turns)
        # Blend the joints' affine maps, then apply: (B, V, 3, 4) to (x, y, z, 1).
        affine = torch.cat([linear, offset[..., None]], -1).flatten(2)  # (B, 5, 12)
        blended = (self.skin_weights @ affine).unflatten(2, (3, 4))
        vertices: Tensor = (blended[..., :3] @ shaped[..., None])[..., 0] + blended[..., 3]
        return vertices

    def _joint_transforms(self, joints: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Affine maps of the five joints from rest to pose: linear parts (B, 5, 3, 3) and offsets (B, 5, 3)."""
        still = torch.eye(3, dtype=turns.dtype, device=turns.device).expand(len(turns), 3, 3)
        linear, offset = [still], [torch.zeros_like(turns[:, 0, 0])]
        for joint in range(1, len(PARENTS)):
            parent, turn = PARENTS[joint], turns[:, joint - 1]
            about = joints[joint] - (turn @ joints[joint])  # turning about the joint: x -> turn x + about
            linear.append(linear[parent] @ turn)
            offset.append((linear[parent] @ about[..., None])[..., 0] + offset[parent])
        return torch.stack(linear, 1), torch.stack(offset, 1)
