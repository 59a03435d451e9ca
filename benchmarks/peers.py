"""Imports OpenCLIP as it is installed, or a checkout of it, also beside a CPU torch.

CLIPFAST_OPEN_CLIP=../open_clip python -m pytest tests/integrations
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import torch

# torchvision registers Python kernels for its compiled operators as it is imported. Beside a CPU
# torch its compiled part does not load, and the registration fails for want of these schemas.
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width) -> (Tensor, Tensor)",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width) -> (Tensor, Tensor)",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
    "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
)
_schemas: torch.library.Library | None = None

# The folder of a checkout of OpenCLIP that takes the installed one's place.
CHECKOUT = "CLIPFAST_OPEN_CLIP"


def import_open_clip() -> ModuleType:
    """OpenCLIP, also where torchvision was built for another torch.

    The environment variable ``CLIPFAST_OPEN_CLIP`` may name a checkout to take instead.

    Returns:
        The imported module.

    Raises:
        ImportError: it, or a package that it needs, is not installed, or the checkout is none; says
            what to do.
    """
    checkout = os.environ.get(CHECKOUT)
    if checkout and "open_clip" not in sys.modules:
        source = Path(checkout).resolve() / "src"
        if not (source / "open_clip" / "__init__.py").is_file():
            raise ImportError(
                f"{CHECKOUT}={checkout}: expected a checkout of OpenCLIP, with src/open_clip"
            )
        sys.path.insert(0, str(source))
    try:
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            _define_torchvision_schemas()
        import open_clip
    except ImportError as error:
        raise ImportError(
            "OpenCLIP is compared with: pip install --no-deps open_clip_torch timm torchvision "
            f"({error})"
        ) from error
    return open_clip


def _has_operator(name: str) -> bool:
    try:
        getattr(torch.ops.torchvision, name)
    except AttributeError:
        return False
    return True


def _define_torchvision_schemas() -> None:
    """Declare the operators that the import needs; they have no kernels and are never called."""
    global _schemas
    if _schemas is None:
        _schemas = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _TORCHVISION_SCHEMAS:
            if not _has_operator(schema.split("(")[0]):
                _schemas.define(schema)
