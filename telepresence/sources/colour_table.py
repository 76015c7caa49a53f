"""Table of colours from HDR (HLG, PQ) or wide-gamut video to sRGB, after ITU-R BT.2100, BT.2408 and H.273."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float64

LEVEL: Final = 8
"""The table has LEVEL^2 values along each channel, and is a square image of LEVEL^3 pixels a side."""
PQ: Final = 16
"""Transfer function of SMPTE ST 2084 in H.273."""
HLG: Final = 18
"""Transfer function hybrid log-gamma (ARIB STD-B67) in H.273."""
SRGB: Final = 13
"""Transfer function of sRGB in H.273."""
HDR_WHITE_NITS: Final = 203.0
"""Luminance of white paper in HDR video (BT.2408), which becomes the white of sRGB."""
HLG_PEAK_NITS: Final = 1000.0
"""Peak luminance of the display for which HLG is decoded."""
KNEE: Final = 0.95
"""Linear value above which highlights are compressed."""
GAMMA: Final = 2.4
"""Exponent of a display for SDR video (BT.1886)."""

_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)
_CHROMATICITIES: Final = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    4: ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080), _C),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
"""Chromaticities x, y of red, green, blue and white, by the number of the primaries in H.273."""
PRIMARIES: Final = tuple(_CHROMATICITIES)
"""Numbers of the primaries that a table can be made for."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@functools.lru_cache(8)
def colour_table(transfer: int, primaries: int) -> NDArray[np.uint16]:
    """Image (LEVEL^3, LEVEL^3, 3) of all R'G'B' with these transfer function and primaries, converted to sRGB.

    Its pixels are in the order of FFmpeg's filter ``haldclut``: red first, then green, then blue.

    HDR becomes sRGB; SDR keeps its transfer function, as it is shown as it is coded.  Colours outside sRGB keep their
    hue and lose saturation; highlights above the knee are compressed.
    """
    steps = LEVEL**2
    index = np.arange(steps**3)
    coded = np.stack([index % steps, index // steps % steps, index // steps**2], -1) / (steps - 1)
    if transfer in (PQ, HLG):
        light = _pq_light(coded) if transfer == PQ else _hlg_light(coded, primaries)
        light = _compressed(_saturation_reduced(light @ _to_bt709(primaries).T))
        shown = _srgb_coded(light)
    else:
        light = _srgb_light(coded) if transfer == SRGB else coded**GAMMA
        light = np.clip(_saturation_reduced(light @ _to_bt709(primaries).T), 0.0, 1.0)
        shown = _srgb_coded(light) if transfer == SRGB else light ** (1 / GAMMA)
    side = LEVEL**3
    return np.rint(np.clip(shown, 0.0, 1.0) * 65535).astype(np.uint16).reshape(side, side, 3)


def _pq_light(coded: Float64) -> Float64:
    """Light in units of HDR white, by the EOTF of SMPTE ST 2084."""
    root = coded ** (32 / 2523)
    nits = 1e4 * (np.maximum(root - 0.8359375, 0.0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
    return np.asarray(nits / HDR_WHITE_NITS)


def _hlg_light(coded: Float64, primaries: int) -> Float64:
    """Light in units of HDR white, by the inverse OETF of HLG and the OOTF of BT.2100 with a system gamma of 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = np.maximum(scene @ _to_xyz(primaries)[1], 1e-9)[:, None]
    return np.asarray(HLG_PEAK_NITS / HDR_WHITE_NITS * luminance**0.2 * scene)


def _compressed(light: Float64) -> Float64:
    """Compress values above `KNEE` to below 1, by the brightest channel, so that hues are kept."""
    brightest = np.maximum(light.max(1, keepdims=True), 1e-9)
    shoulder = KNEE + (1 - KNEE) * -np.expm1((KNEE - brightest) / (1 - KNEE))
    return np.asarray(light * np.where(brightest > KNEE, shoulder / brightest, 1.0))


def _saturation_reduced(light: Float64) -> Float64:
    """Mix colours that have negative channels with grey of the same luminance until they have none."""
    grey = np.maximum(light @ _to_xyz(1)[1], 0.0)[:, None]
    lowest = np.minimum(light.min(1, keepdims=True), 0.0)
    part = np.where(lowest < 0, grey / np.maximum(grey - lowest, 1e-9), 1.0)
    return np.asarray(np.maximum(grey + part * (light - grey), 0.0))


def _srgb_light(coded: Float64) -> Float64:
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _srgb_coded(light: Float64) -> Float64:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def _to_xyz(primaries: int) -> Float64:
    """Matrix (3, 3) from linear RGB to CIE XYZ; white has the luminance 1."""
    *colours, _ = points = [np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in _CHROMATICITIES[primaries]]
    columns = np.stack(colours, axis=1)
    return np.asarray(columns * np.linalg.solve(columns, points[-1]))


def _to_bt709(primaries: int) -> Float64:
    """Matrix (3, 3) from linear RGB to that of BT.709; white is adapted (Bradford), so that grey stays grey."""
    source, target = _to_xyz(primaries), _to_xyz(1)
    ratio = (_BRADFORD @ target.sum(1)) / (_BRADFORD @ source.sum(1))
    adapted = np.linalg.solve(_BRADFORD, ratio[:, None] * (_BRADFORD @ source))
    return np.asarray(np.linalg.solve(target, adapted))
