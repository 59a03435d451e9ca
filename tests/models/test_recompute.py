"""Modes of recomputation: the same bits in each, and what is kept and what runs again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.models import CLIP, create_model, frozen_statistics
from clipfast.models.recompute import is_kept
from tests.models.helpers import random_images, random_tokens, small_model

BOTH = pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
MODES = pytest.mark.parametrize("mode", ["selective", "full"])
BLOCKS = ("Bottleneck", "ResidualAttentionBlock")


def features(model: CLIP) -> tuple[Tensor, Tensor, Tensor]:
    return model(random_images(3, 64), random_tokens(3, 20, 500))


def step(model: CLIP) -> tuple[Tensor, Tensor]:
    """One forward and backward pass in which every parameter takes part."""
    u, v, scale = features(model)
    (scale * (u.float() * v.float()).sum()).sum().backward()
    return u.detach(), v.detach()


class Calls(TorchDispatchMode):
    """Counts the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@BOTH
@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recompute_changes_no_bit_of_gradients_and_statistics(
    name: str, mode: str, dtype: torch.dtype
) -> None:
    plain = small_model(name).to(dtype)
    recomputing = small_model(name, recompute=mode).to(dtype)
    blocks = [m for m in recomputing.modules() if type(m).__name__ in BLOCKS]
    calls = dict.fromkeys(blocks, 0)
    for block in blocks:
        block.register_forward_pre_hook(lambda m, _: calls.update({m: calls[m] + 1}))
    for ours, expected in zip(step(recomputing), step(plain), strict=True):
        assert torch.equal(ours, expected)
    assert set(calls.values()) == {2}
    gradients = {n: p.grad for n, p in recomputing.named_parameters()}
    for key, parameter in plain.named_parameters():
        assert torch.equal(gradients[key], parameter.grad), key
    for (key, ours), buffer in zip(recomputing.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, buffer), key
        if key.endswith("num_batches_tracked"):
            assert ours == 1, key


@MODES
def test_recompute_under_autocast_changes_no_bit(mode: str) -> None:
    plain, recomputing = small_model("RN-tiny"), small_model("RN-tiny", recompute=mode)
    for model in (plain, recomputing):
        with torch.autocast("cpu", torch.bfloat16):
            u, v, _ = features(model)
        (u.float() * v.float()).sum().backward()
    for ours, expected in zip(recomputing.parameters(), plain.parameters(), strict=True):
        assert ours.grad is None if expected.grad is None else torch.equal(ours.grad, expected.grad)


def backward_calls(name: str, mode: str) -> Counter[str]:
    model = small_model(name, recompute=mode)
    u, v, _ = features(model)
    with Calls() as calls:
        (u.sum() + v.sum()).backward()
    return calls.counts


def test_selective_runs_no_product_of_a_transformer_twice() -> None:
    products = {
        mode: backward_calls("ViT-tiny", mode)["clipfast::linear"] for mode in MODES.args[1]
    }
    assert products["selective"] == 0
    assert products["full"] > 0
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert backward_calls("ViT-tiny", "selective")[attention] == 0
    assert backward_calls("ViT-tiny", "full")[attention] > 0


def test_selective_runs_only_expanding_convolutions_twice() -> None:
    # Five bottlenecks with three convolutions each, and four with one in the shortcut.
    assert backward_calls("RN-tiny", "full")["aten::convolution"] == 5 * 3 + 4
    # The third of each expands, and so does the shortcut's but where it halves nothing.
    assert backward_calls("RN-tiny", "selective")["aten::convolution"] == 5 + 4


def test_is_kept_weighs_bytes_against_time() -> None:
    aten = torch.ops.aten
    x, narrow, wide = torch.empty(3, 8), torch.empty(8, 2), torch.empty(8, 32)
    assert is_kept(aten.addmm.default, (torch.empty(32), x, wide))
    assert is_kept(aten.mm.default, (x, torch.empty(8, 8)))
    assert not is_kept(aten.mm.default, (x, narrow))
    linear = torch.ops.clipfast.linear.default
    assert is_kept(linear, (x, wide.T, torch.empty(32)))
    assert not is_kept(linear, (x, narrow.T, None))
    image = torch.empty(1, 8, 4, 4)
    for weight, kept in (
        (torch.empty(8, 8, 3, 3), True),
        (torch.empty(16, 8, 3, 3), True),
        (torch.empty(2, 8, 1, 1), True),
        (torch.empty(32, 8, 1, 1), False),
    ):
        assert is_kept(aten.convolution.default, (image, weight)) == kept
    assert not is_kept(aten.native_layer_norm.default, (x,))


@MODES
def test_recompute_rests_in_eval_mode_and_without_a_graph(mode: str) -> None:
    model = small_model("ViT-tiny", recompute=mode)
    calls: list[int] = []
    model.visual.transformer.resblocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.encode_image(random_images(1, 64))
    model.eval().encode_image(random_images(1, 64)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_second_forward_with_frozen_statistics_is_exact(mode: str) -> None:
    model = small_model("RN-tiny", recompute=mode)
    images = random_images(3, 64)
    with torch.no_grad():
        encoded = model.encode_image(images)
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    with frozen_statistics():
        again = model.encode_image(images)
    again.sum().backward()
    assert torch.equal(again, encoded)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_selective_refuses_a_second_backward_with_the_remedy() -> None:
    model = small_model("ViT-tiny", recompute="selective")
    loss = model.encode_image(random_images(1, 64)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="recompute='full' or 'none'"):
        loss.backward()


def test_full_runs_a_second_backward() -> None:
    model = small_model("RN-tiny", recompute="full")
    loss = model.encode_image(random_images(2, 64)).sum()
    loss.backward(retain_graph=True)
    once = model.visual.conv1.weight.grad.clone()
    loss.backward()
    assert torch.equal(model.visual.conv1.weight.grad, 2 * once)


def test_auto_is_refused_where_only_a_run_can_resolve_it() -> None:
    with pytest.raises(ValueError, match="the engine knows"):
        create_model("RN-tiny", recompute="auto")
