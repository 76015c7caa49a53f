"""Fixtures of the kernel tests: each test runs with CPU kernels and, where there is a GPU, with CUDA kernels."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Device of a test's tensors and kernels."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return torch.device("cpu" if request.param == "host" else "cuda")
