"""What `create_model` refuses: values with which no model can exist, by the promised error."""

import numpy as np
import pytest

from clipfast.models import create_model


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("ViT-tiny", {"image_size": 0}, "image_size must be positive, got 0"),
        ("ViT-tiny", {"image_size": 64.0}, r"image_size must be a whole number; got 64.0 \(float"),
        ("ViT-tiny", {"image_size": "64"}, "image_size must be a whole number"),
        ("ViT-tiny", {"patch_size": 0}, "patch_size must be positive, got 0"),
        ("ViT-tiny", {"patch_size": 7}, "not a multiple of patch_size=7"),
        ("ViT-tiny", {"vision_layers": 1.5}, "vision_layers must be a whole number"),
        ("ViT-tiny", {"vision_width": None}, "vision_width must be a whole number; got None"),
        ("ViT-tiny", {"vision_head_width": 64.0}, "vision_head_width must be a whole number"),
        ("ViT-tiny", {"embed_dim": True}, "embed_dim must be a whole number; got True"),
        ("ViT-tiny", {"embed_dim": "256"}, "embed_dim must be a whole number"),
        ("ViT-tiny", {"text_layers": "4"}, "text_layers must be a whole number"),
        ("ViT-tiny", {"text_width": 192.0}, "text_width must be a whole number"),
        ("ViT-tiny", {"context_length": 77.0}, "context_length must be a whole number"),
        ("ViT-tiny", {"vocab_size": 1.5}, "vocab_size must be a whole number"),
        ("ViT-tiny", {"scalars": 5}, "scalars must be pairs of a name and a starting value"),
        ("ViT-tiny", {"scalars": (("bias",),)}, "scalars must be pairs"),
        ("ViT-tiny", {"scalars": (("a b", 1.0),)}, "scalars: a name is letters.*got 'a b'"),
        ("ViT-tiny", {"scalars": (("bias", "x"),)}, "scalars: bias must be a number"),
        ("ViT-tiny", {"scalars": (("bias", float("nan")),)}, "scalars: bias must be finite"),
        ("RN-tiny", {"vision_layers": (1, 1, 2, "1")}, r"vision_layers\[3\] must be a whole"),
        ("RN-tiny", {"vision_width": 32.0}, "vision_width must be a whole number"),
        ("RN-tiny", {"image_size": 0}, "image_size must be at least 31"),
        (None, {}, "a model's name is text; got None"),
        (["RN50"], {}, "a model's name is text"),
    ],
)
def test_create_model_refuses_by_a_value_error_that_names_the_field(name, overrides, words):
    with pytest.raises(ValueError, match=words):
        create_model(name, **overrides)


def test_create_model_takes_numpy_integers():
    assert create_model("ViT-tiny", embed_dim=np.int64(64)).text_projection.shape == (192, 64)
