"""Where operators run: this CPU, the CUDA kernels emulated on it, a GPU."""

from __future__ import annotations

import pytest
import torch

from tests import cuda_emulator
from tests.needs import need


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """The emulated operators' file, loaded."""
    need("emulator")
    return cuda_emulator.load(tmp_path_factory.mktemp("cuda_emulator"))


@pytest.fixture(scope="session")
def emulated_operators(emulated_library):
    """(operators, device)"""
    return torch.ops.clipfast_emulated, "cpu"


@pytest.fixture
def gpu_operators():
    """The operators, with their CUDA form."""
    need("cuda-operators")
    return torch.ops.clipfast


@pytest.fixture(params=["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def adamw_target(request):
    """(operators, device)"""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_operators")
    if request.param == "gpu":
        return request.getfixturevalue("gpu_operators"), "cuda"
    need("extension")
    return torch.ops.clipfast, "cpu"
