"""What tests of device code share: every test of a kernel runs on each machine that the code is written for."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tensors of a test live; the host's C++ compiler stands in for a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return torch.device("cpu" if request.param == "host" else "cuda")
