"""ARKit expression units and soft masks of the regions of the head."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from insta_runtime.smoothstep import smoothstep
from open_head.makehuman import EYE_LEFT, EYE_RIGHT, SKIN, TEETH_LOWER, TEETH_UPPER, TONGUE, UNITS, Array, Wheel


def face_units(wheel: Wheel, kept: NDArray[np.int64], eyeball: NDArray[np.bool_]) -> tuple[list[str], Array]:
    """Names and offsets (52, V, 3) of the ARKit units, decimetres; eyeballs rotate about their joint instead."""
    names = sorted(
        name[len(UNITS) : -len(".target")] for name in wheel.names if name.startswith(UNITS) and name[-1] != "/"
    )
    units = np.zeros((len(names), len(wheel.vertices), 3))
    for unit, name in zip(units, names, strict=True):
        index, offset = wheel.target(f"{UNITS}{name}.target")
        unit[index] = offset
    units = units[:, kept]
    units[:, eyeball] = 0.0
    return names, units


def smooth(mask: Array, faces: NDArray[np.int64], rounds: int) -> Array:
    """Average (V,) values over mesh neighbours ``rounds`` times."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(edges[:, 0], minlength=len(mask))
    for _ in range(rounds):
        mask = 0.5 * mask + 0.5 * np.bincount(edges[:, 0], mask[edges[:, 1]], minlength=len(mask)) / degree
    return mask


def regions(
    wheel: Wheel,
    kept: NDArray[np.int64],
    template: Array,
    faces: NDArray[np.int64],
    vertex_part: NDArray[np.int8],
    joints: Array,
    units: dict[str, Array],
) -> dict[str, Array]:
    """Soft vertex masks (V,) in [0, 1]; they may overlap, and no vertex of the head is outside all of them."""
    bone = np.zeros((len(wheel.vertices),))
    for name, entries in wheel.weights.items():
        if name.startswith("oris") and entries:
            for index, weight in entries:
                bone[index] += weight
    lips = np.where(vertex_part == SKIN, bone[kept], 0.0)

    def moved(*names: str) -> Array:
        amount = np.maximum.reduce([np.linalg.norm(units[name], axis=1) for name in names])
        return amount / amount.max()

    inside = np.isin(vertex_part, (TEETH_UPPER, TEETH_LOWER, TONGUE))
    teeth = template[np.isin(vertex_part, (TEETH_UPPER, TEETH_LOWER))]
    lip_front = template[lips > 0.5][:, 2].max()
    # The mouth bag is skin behind the lips, in the box of teeth and tongue.
    low, high = teeth.min(0) - np.array([0.004, 0.012, 0.035]), teeth.max(0) + np.array([0.004, 0.006, 0.004])
    bag = (vertex_part == SKIN) & ((template > low) & (template < high)).all(1) & (template[:, 2] < lip_front - 0.012)
    sided = [f"mouth{way}{side}" for way in ("Smile", "LowerDown", "UpperUp") for side in ("Left", "Right")]
    around = moved("mouthFunnel", "mouthPucker", "mouthRollLower", "mouthRollUpper", *sided)
    mouth = np.maximum.reduce(
        [smoothstep(around, 0.1, 0.35), smoothstep(lips, 0.05, 0.3), inside.astype(float), bag.astype(float)]
    )

    eyes = np.isin(vertex_part, (EYE_LEFT, EYE_RIGHT)).astype(float)
    for joint in joints[3:]:
        away = np.linalg.norm((template - joint) / [1.25, 1.0, 1.0], axis=1)
        eyes = np.maximum(eyes, smoothstep(away, 0.026, 0.017) * (template[:, 2] > joint[2] - 0.005))
    lids = smoothstep(moved("eyeBlinkLeft", "eyeBlinkRight"), 0.02, 0.25)
    eyes = np.maximum(eyes, lids)

    ear = np.zeros(len(wheel.vertices))
    for name in wheel.names:
        if re.search(r"ears/[lr]-ear-(shape|lobe|flap)-", name):
            index, offset = wheel.target(name)
            size = np.linalg.norm(offset, axis=1)
            np.maximum.at(ear, index, size / size.max())
    ears = np.where(vertex_part == SKIN, smoothstep(ear[kept], 0.05, 0.3), 0.0)

    # Hairline: its height above the eyes falls from the forehead over the temples to the nape.
    eye = joints[3:].mean(0)
    height = template[:, 1] - eye[1]
    behind = eye[2] - template[:, 2]
    hairline = np.interp(behind, [0.0, 0.03, 0.05, 0.075, 0.1, 0.16], [0.062, 0.058, 0.035, 0.0, -0.035, -0.075])
    # The jaw line: a plane from the nape to just below the chin.
    below = -0.03 - 0.34 * (template[:, 2] + 0.07) - template[:, 1]
    neck = np.where(vertex_part == SKIN, smoothstep(below, -0.006, 0.012), 0.0)
    scalp = smoothstep(height - hairline, -0.006, 0.010) * (1.0 - ears) * (1.0 - neck)
    scalp = np.where(vertex_part == SKIN, scalp, 0.0)
    face = np.where(vertex_part == SKIN, (1.0 - scalp) * (1.0 - ears) * (1.0 - neck), 0.0)
    masks = {"mouth": mouth, "lips": lips, "eyes": eyes, "scalp": scalp, "ears": ears, "neck": neck, "face": face}
    return {name: np.clip(smooth(mask, faces, 2), 0.0, 1.0) for name, mask in masks.items()}
