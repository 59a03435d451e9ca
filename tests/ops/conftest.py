"""Where operators run: this CPU, the CUDA kernels emulated on it, a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from tests import cuda_emulator


@pytest.fixture(scope="session")
def emulated_operators(tmp_path_factory):
    """(operators, device)"""
    reason = cuda_emulator.obstacle()
    if reason is not None:
        pytest.skip(reason)
    cuda_emulator.load(tmp_path_factory.mktemp("cuda_emulator"))
    return torch.ops.clipfast_emulated, "cpu"


@pytest.fixture
def gpu_operators():
    """The operators, with their CUDA form."""
    from clipfast.ops.extension import has_cuda_operators

    if not has_cuda_operators():
        if os.environ.get("CLIPFAST_BUILD_CUDA") == "1":
            pytest.fail("CLIPFAST_BUILD_CUDA=1, but clipfast._C has no CUDA operators")
        pytest.skip("clipfast._C has no CUDA operators")
    return torch.ops.clipfast


@pytest.fixture(params=["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def adamw_target(request):
    """(operators, device)"""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_operators")
    if request.param == "gpu":
        return request.getfixturevalue("gpu_operators"), "cuda"
    from clipfast.ops.extension import load_extension

    if load_extension() is None:
        pytest.skip("clipfast._C is not built")
    return torch.ops.clipfast, "cpu"
