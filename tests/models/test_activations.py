"""Counted activation bytes against what the allocator saw in a real pass."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from clipfast.models import create_model, num_parameters
from clipfast.models.activations import activation_bytes, fastest_recompute
from clipfast.models.catalogue import get_config
from tests.models.helpers import random_images

BATCH = 16


def allocated(name: str, mode: str, keeps_gradients: bool = False) -> tuple[int, int]:
    """Bytes kept after a forward pass and at most in use, by torch's allocator."""
    model = create_model(name, recompute=mode)
    for parameter in () if keeps_gradients else model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    images = random_images(BATCH, model.config.vision.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    length = model.config.text.context_length
    tokens = torch.randint(1, 400, (BATCH, length))
    tokens[:, -1] = 49407
    lengths = torch.full((BATCH,), length)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        total = sum(f.sum() for f in model(images, tokens, lengths=lengths)[:2])
        with record_function("backward starts"):
            pass
        total.backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = peak = kept = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
        elif event.name() == "backward starts":
            kept = now
    return kept, peak


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_activation_bytes_equal_what_the_allocator_saw(name: str, mode: str) -> None:
    kept, peak = allocated(name, mode)
    counted = activation_bytes(get_config(name), BATCH, torch.float32, mode)
    assert counted.kept == pytest.approx(kept, rel=0.03)
    # Convolutions make tensors of their own inside, which only a real run sees.
    assert counted.peak == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_activation_bytes_beside_gradients_equal_what_the_allocator_saw(name: str) -> None:
    peak = allocated(name, "none", keeps_gradients=True)[1]
    counted = activation_bytes(get_config(name), BATCH, torch.float32, "none")
    gradients = 4 * num_parameters(create_model(name))
    assert counted.overlap > 0
    assert counted.peak + gradients - counted.overlap == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("name", ["RN50", pytest.param("ViT-B/32", marks=pytest.mark.thorough)])
def test_activation_bytes_fall_from_mode_to_mode(name: str) -> None:
    config = get_config(name)
    modes = ("none", "selective", "full")
    none, selective, full = (activation_bytes(config, 32, torch.bfloat16, m).kept for m in modes)
    assert selective < 0.65 * none
    assert full < 0.75 * selective


def test_activation_bytes_follow_batch_precision_and_captions() -> None:
    config = get_config("ViT-tiny")
    base = activation_bytes(config, 16, torch.float32, "none").kept
    assert activation_bytes(config, 32, torch.float32, "none").kept == pytest.approx(
        2 * base, rel=0.02
    )
    assert activation_bytes(config, 16, torch.bfloat16, "none").kept == pytest.approx(
        base / 2, rel=0.05
    )
    short = activation_bytes(config, 16, torch.float32, "none", caption_tokens=20).kept
    assert short < 0.8 * base


def test_activation_bytes_refuse_the_mode_auto() -> None:
    with pytest.raises(ValueError, match="recompute='auto'"):
        activation_bytes(get_config("RN-tiny", recompute="auto"), 2, torch.float32)


def test_fastest_recompute_recomputes_as_little_as_fits() -> None:
    config = get_config("RN-tiny", text_layers=1)
    needs = {m: activation_bytes(config, 32, torch.float32, m) for m in ("none", "selective")}
    for available, mode in (
        (needs["none"].peak, "none"),
        (needs["none"].peak - 1, "selective"),
        (needs["selective"].peak, "selective"),
        (needs["selective"].peak - 1, "full"),
        (-1, "full"),
    ):
        picked, needed = fastest_recompute(config, 32, torch.float32, available)
        assert picked == mode
        assert needed == needs.get(mode, needed)
