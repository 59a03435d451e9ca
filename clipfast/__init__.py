"""clipfast: a low-level, performance-first training engine for CLIP (Radford et al. 2021).

Names are loaded when first used: importing the package imports neither DeepSpeed nor DALI, compiles
no kernel and needs no GPU.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "ClipLoss": "clipfast.loss",
    "clip_loss": "clipfast.loss",
    "gather_texts": "clipfast.loss",
    "AttentionPool2d": "clipfast.models",
    "create_model": "clipfast.models",
    "list_models": "clipfast.models",
    "load_weights": "clipfast.models",
    "export": "clipfast.models",
    "read_metadata": "clipfast.models",
    "tokenize": "clipfast.tokenizer",
    "decode": "clipfast.tokenizer",
    "l2_normalize": "clipfast.ops",
    "patch_open_clip": "clipfast.integrations",
    "FusedAdamW": "clipfast.optim",
    "preprocess": "clipfast.eval.single",
    "ZeroShot": "clipfast.eval.zeroshot",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipfast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
