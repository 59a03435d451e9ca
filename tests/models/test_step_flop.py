"""What a step needs, against a count of all of it."""

import pytest
import torch

from clipfast.cards import peak_flop
from clipfast.loss import clip_loss
from clipfast.models import create_model
from clipfast.models.flop import count_flop
from clipfast.models.step_flop import pair_flop

# Groups of unequal captions are padded to one another, which is no need.
LENGTHS = torch.full((4,), 9)


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_a_pairs_share_is_what_a_step_does(name):
    model = create_model(name)
    tokens = torch.full((4, 9), 7)
    tokens[:, -1] = model.config.text.vocab_size - 1

    def step():
        images, texts, scale = model(torch.randn(4, 3, 64, 64), tokens, lengths=LENGTHS)
        clip_loss(images, texts, scale, keep_logits=True).backward()

    counted = count_flop(step)[1]
    assert 4 * pair_flop(model.config, LENGTHS, 4) == pytest.approx(counted, rel=0.02)


def test_what_is_computed_again_does_not_count():
    config = create_model("ViT-tiny").config
    assert pair_flop(config.override(recompute="full"), LENGTHS, 4) == pair_flop(config, LENGTHS, 4)


@pytest.mark.parametrize(
    ("card", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.4e12),
        ("NVIDIA H100 PCIe", torch.float16, False, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A100 80GB PCIe", torch.float32, False, 19.5e12),
        ("Tesla V100-SXM2-16GB", torch.float32, True, 15.7e12),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, False, None),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, False, None),
        ("NVIDIA H200", torch.float64, False, None),
    ],
)
def test_a_peak_is_of_card_and_type_or_unknown(card, dtype, tf32, peak):
    assert peak_flop(card, dtype, tf32) == peak
