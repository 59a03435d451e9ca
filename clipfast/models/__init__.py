"""CLIP's image and text towers, their configurations, and their weights on disk.

    model = create_model("ViT-B/32")
    load_weights(model, "ViT-B-32.pt")
    image_features, text_features, scale = model(images, tokens)
    export(model, "finetuned.safetensors")

Names and shapes of parameters are those of the paper's released code, so that its checkpoints and
OpenCLIP's `-quickgelu` ones load here and exported ones load there.
"""

from clipfast.models.attention_pool import AttentionPool2d
from clipfast.models.batch_norm import frozen_statistics
from clipfast.models.clip import CLIP, create_model, num_parameters
from clipfast.models.config import (
    ModelConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    list_models,
)
from clipfast.models.weights import export, load_weights

__all__ = [
    "CLIP",
    "AttentionPool2d",
    "ModelConfig",
    "ResNetConfig",
    "TextConfig",
    "ViTConfig",
    "create_model",
    "export",
    "frozen_statistics",
    "list_models",
    "load_weights",
    "num_parameters",
]
