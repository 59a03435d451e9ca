"""A pytest plugin: OpenCLIP's own tests, each model that they create patched.

    CLIPFAST_OPEN_CLIP=../open_clip PYTHONPATH=$PWD \
        python -m pytest -p tests.integrations.their_tests ../open_clip/tests/test_task_base_unit.py
"""

from __future__ import annotations

import functools
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

import clipfast
from benchmarks.peers import import_open_clip

open_clip = import_open_clip()
if find_spec("pandas") is None:
    # Imported at the top of its training program for CSV files alone.
    pandas = sys.modules["pandas"] = ModuleType("pandas")
    pandas.__spec__ = ModuleSpec("pandas", None)

_create_model = open_clip.factory.create_model


@functools.wraps(_create_model)
def create_model(*args: Any, **kwargs: Any) -> nn.Module:
    model: nn.Module = _create_model(*args, **kwargs)
    clipfast.patch_open_clip(model)
    return model


open_clip.create_model = open_clip.factory.create_model = create_model
