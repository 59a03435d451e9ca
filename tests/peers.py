"""Import the packages that clipfast is compared with."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import pytest

from benchmarks import peers


def import_open_clip() -> ModuleType:
    """OpenCLIP, also where torchvision was built for another torch; the test skips without it.

    Returns:
        The imported module.
    """
    for package in ("torchvision", "open_clip"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: nothing to compare with")
    return peers.import_open_clip()
