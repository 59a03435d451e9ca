"""Image-caption pairs from webdataset shards, decoded by NVIDIA DALI; random pairs in their place.

Names are loaded when first used: the command-line tools of this package start worker processes that
need neither torch nor DALI's pipeline.
"""

import importlib
import warnings
from typing import Any

__all__ = ["EvalLoader", "ImageTextBatch", "ShardReader", "SyntheticLoader", "TrainLoader"]

_HOME = {
    "ImageTextBatch": "clipfast.data.batch",
    "ShardReader": "clipfast.data.reader",
    "SyntheticLoader": "clipfast.data.synthetic",
}


def __getattr__(name: str) -> Any:
    if name == "Batch":
        warnings.warn(
            "clipfast.data.Batch is called ImageTextBatch; the old name goes after version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        name = "ImageTextBatch"
    if name not in __all__:
        raise AttributeError(f"module 'clipfast.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "clipfast.data.loader")), name)
