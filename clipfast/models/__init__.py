"""CLIP's image and text towers, their configurations, and their weights on disk.

    model = create_model("ViT-B/32")
    load_weights(model, "ViT-B-32.pt")
    image_features, text_features, scale = model(images, tokens)
    export(model, "finetuned.safetensors")

Names and shapes of parameters are those of the paper's released code, so that its checkpoints and
OpenCLIP's `-quickgelu` ones load here and exported ones load there.
"""

from typing import Any

from clipfast.models.architecture import Architecture, TextConfig
from clipfast.models.attention_pool import AttentionPool2d
from clipfast.models.batch_norm import frozen_statistics
from clipfast.models.catalogue import list_models, register_model
from clipfast.models.clip import CLIP, create_model, num_parameters
from clipfast.models.from_file import create_model_from_file
from clipfast.models.metadata import WeightsMetadata
from clipfast.models.renamed import warn_renamed
from clipfast.models.resnet import ResNetConfig
from clipfast.models.towers import Tower, TowerConfig, register_tower
from clipfast.models.vit import ViTConfig
from clipfast.models.weights import export, load_weights, read_metadata

__all__ = [
    "CLIP",
    "Architecture",
    "AttentionPool2d",
    "ResNetConfig",
    "TextConfig",
    "Tower",
    "TowerConfig",
    "ViTConfig",
    "WeightsMetadata",
    "create_model",
    "create_model_from_file",
    "export",
    "frozen_statistics",
    "list_models",
    "load_weights",
    "num_parameters",
    "read_metadata",
    "register_model",
    "register_tower",
]


def __getattr__(name: str) -> Any:
    if name == "ModelConfig":
        warn_renamed("clipfast.models.ModelConfig", "Architecture")
        return Architecture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
