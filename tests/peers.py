"""Import the packages that clipfast is compared with."""

from __future__ import annotations

from types import ModuleType

from benchmarks import peers
from tests.needs import need


def import_open_clip() -> ModuleType:
    """OpenCLIP, also where torchvision was built for another torch; the test skips without it.

    Returns:
        The imported module.
    """
    need("torchvision", "open_clip")
    return peers.import_open_clip()
