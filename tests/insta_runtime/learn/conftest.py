"""Fixtures of tests that learn: the device of native trainers."""

import pytest
import torch


@pytest.fixture(
    params=[torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=["host", "cuda"]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where native kernels compute."""
    if request.param.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return request.param
