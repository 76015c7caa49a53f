"""Lets the tests here import `small_person`, and it the head in FLAME's layout; the devices of native trainers."""

import sys
from pathlib import Path

import pytest
import torch

for folder in ("avatar", "head"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(
    params=[torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=["host", "cuda"]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where native kernels compute."""
    if request.param.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return request.param
