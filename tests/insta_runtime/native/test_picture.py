"""Kernels for pixel formats and crossfading against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.native.kernels import Kernels
from insta_runtime.types import Bytes, Float32, RenderedFrame

WIDTH, HEIGHT = 38, 22
ROUNDING = 1  # of 255; rounding may go the other way at one half


def pictures() -> tuple[Float32, Float32]:
    """A random premultiplied image, slightly out of range, and a background."""
    random = np.random.default_rng()
    alpha = random.uniform(-0.05, 1.05, (HEIGHT, WIDTH, 1))
    rgb = alpha * random.uniform(0.0, 1.02, (HEIGHT, WIDTH, 3))
    rgba = np.concatenate([rgb, alpha], axis=-1).astype(np.float32)
    return rgba, random.uniform(0.0, 1.0, (HEIGHT, WIDTH, 3)).astype(np.float32)


def on(device: torch.device, array: Float32) -> torch.Tensor:
    return torch.as_tensor(array, device=device).contiguous()


def poisoned(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.full(shape, 77, dtype=torch.uint8, device=device)


def luma_and_chroma(rgb: Float32) -> tuple[Bytes, Bytes, Bytes]:
    """Y (H, W), Cb and Cr (H/2, W/2) by the definition of BT.601, limited range, from (H, W, 3) in [0, 1]."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = 0.5 * (blue - luma) / (1.0 - 0.114), 0.5 * (red - luma) / (1.0 - 0.299)

    def mean(plane: np.ndarray) -> np.ndarray:
        return plane.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(1, 3))

    planes = 16.0 + 219.0 * luma, 128.0 + 224.0 * mean(cb), 128.0 + 224.0 * mean(cr)
    y, u, v = (np.floor(plane + 0.5).astype(np.uint8) for plane in planes)
    return y, u, v


def assert_close(ours: torch.Tensor, truth: Bytes) -> None:
    difference = np.abs(ours.cpu().numpy().astype(int).reshape(truth.shape) - truth.astype(int))
    assert difference.max() <= ROUNDING
    assert (difference > 0).mean() < 0.01


def test_bytes_without_and_with_a_background(device: torch.device) -> None:
    kernels = Kernels(device, {})
    rgba, background = pictures()
    count = WIDTH * HEIGHT
    out = poisoned(device, HEIGHT, WIDTH, 4)
    kernels.launch("write_rgba", on(device, rgba), out, count, items=count)
    assert_close(out, np.floor(rgba.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    out = poisoned(device, HEIGHT, WIDTH, 3)
    kernels.launch("write_rgb", on(device, rgba), on(device, background), out, count, items=count)
    assert_close(out, RenderedFrame(0, 0, rgba.clip(0.0, 1.0)).over(background))


@pytest.mark.parametrize("paired", [0, 1], ids=["i420", "nv12"])
def test_luma_and_chroma(device: torch.device, paired: int) -> None:
    kernels = Kernels(device, {})
    rgba, background = pictures()
    out = poisoned(device, HEIGHT * 3 // 2, WIDTH)
    arguments = on(device, rgba), on(device, background), out, WIDTH, HEIGHT, paired
    kernels.launch("write_yuv", *arguments, items=WIDTH * HEIGHT // 4)
    front = rgba.clip(0.0, 1.0)
    y, u, v = luma_and_chroma((front[..., :3] + (1.0 - front[..., 3:]) * background).clip(0.0, 1.0))
    chroma = np.stack([u, v], axis=-1) if paired else np.stack([u, v])
    assert_close(out, np.concatenate([y.ravel(), chroma.ravel()]).reshape(out.shape))


def test_grey_has_no_chroma_and_white_and_black_are_the_ends_of_the_range(device: torch.device) -> None:
    kernels = Kernels(device, {})
    levels = torch.tensor([[0.0], [1.0], [0.5], [torch.nan]], device=device)
    rgba = torch.cat([levels.expand(4, 3), torch.ones(4, 1, device=device)], dim=1).repeat_interleave(4, dim=0)
    rgba = rgba.view(4, 2, 2, 4).transpose(0, 1).contiguous()  # four blocks of 2 x 2 pixels in a row
    out = poisoned(device, 3, 8)
    kernels.launch("write_yuv", rgba, torch.zeros(2, 8, 3, device=device), out, 8, 2, 0, items=4)
    assert out[:2].cpu().tolist() == [[16, 16, 235, 235, 126, 126, 16, 16]] * 2
    assert (out[2] == 128).all()


def test_a_crossfade_is_linear_and_ends_exactly_at_the_target(device: torch.device) -> None:
    kernels = Kernels(device, {})
    start, target = torch.randn(1000, device=device), torch.randn(1000, device=device)
    shown = start.clone()
    for left in range(4, 0, -1):
        kernels.launch("cross_fade", shown, target, 1.0 / left, 1000, items=1000)
        torch.testing.assert_close(shown, torch.lerp(target, start, (left - 1) / 4), atol=1e-5, rtol=1e-5)
    assert torch.equal(shown, target)
