"""Fixtures of the tests of ``patch_open_clip``."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import clipfast
from tests.peers import import_open_clip


@pytest.fixture(autouse=True)
def unpatched_loss():
    """OpenCLIP's loss class is the process's: every test must give it back."""
    open_clip = import_open_clip()
    before = open_clip.loss.ClipLoss.forward
    yield
    assert open_clip.loss.ClipLoss.forward is before


@pytest.fixture
def patch_and_undo():
    """``patch_open_clip``, undone after the test."""
    patches = []

    def patch(model: nn.Module, **options: Any) -> clipfast.integrations.Patch:
        patches.append(clipfast.patch_open_clip(model, **options))
        return patches[-1]

    yield patch
    for each in patches:
        each.undo()
