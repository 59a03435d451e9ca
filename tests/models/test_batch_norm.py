"""Batch norm: equal to PyTorch's, but for statistics that can be frozen and stay in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clipfast.models.batch_norm import BatchNorm2d, frozen_statistics


def norm_pair(channels: int = 7) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 7, 3, 4, dtype=dtype) * 2 + 1


def statistics(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_torch(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = norm_pair()
    ours.train(training), theirs.train(training)
    for _ in range(2):
        x = batch()
        assert torch.equal(ours(x), theirs(x))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_frozen_statistics_gives_the_training_output_and_gradients_and_records_nothing() -> None:
    torch.manual_seed(0)
    norm, reference = norm_pair()
    before, x, cotangent = statistics(norm), batch(), batch()
    results = []
    for module, frozen in ((norm, True), (reference, False)):
        leaf = x.clone().requires_grad_()
        if frozen:
            with frozen_statistics():
                y = module(leaf)
        else:
            y = module(leaf)
        y.backward(cotangent)
        results.append((y.detach(), leaf.grad, module.weight.grad, module.bias.grad))
    for frozen, plain in zip(*results, strict=True):
        assert torch.equal(frozen, plain)
    assert_same(statistics(norm), before)
    assert not torch.equal(reference.running_mean, before["running_mean"])


def test_frozen_statistics_saves_as_many_tensors_as_a_training_forward() -> None:
    norm = BatchNorm2d(7)

    def saved() -> list[torch.Size]:
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), id):
            norm(batch())
        return shapes

    plain = saved()
    with frozen_statistics():
        assert saved() == plain


def test_frozen_statistics_in_eval_mode_uses_the_running_statistics() -> None:
    norm, reference = norm_pair()
    norm.eval(), reference.eval()
    x = batch()
    with frozen_statistics():
        assert torch.equal(norm(x), reference(x))


def test_frozen_statistics_nests_and_ends_after_an_exception() -> None:
    norm = BatchNorm2d(7)
    with frozen_statistics():
        with frozen_statistics():
            norm(batch())
        norm(batch())
    with pytest.raises(KeyError), frozen_statistics():
        raise KeyError
    assert norm.num_batches_tracked == 0
    norm(batch())
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_cast_to_half_keeps_fp32_statistics(dtype: torch.dtype) -> None:
    norm, _ = norm_pair()
    before = statistics(norm)
    norm = norm.to(dtype)
    assert norm.weight.dtype == norm.bias.dtype == dtype
    assert_same(statistics(norm), before)
    x = batch(dtype).requires_grad_()
    for training in (True, False):
        y = norm.train(training)(x)
        assert y.dtype == dtype
        assert y.isfinite().all()
    y.sum().backward()
    assert norm.weight.grad.dtype == dtype


def test_batch_norm_cast_to_double_and_back() -> None:
    norm = BatchNorm2d(7).double()
    assert norm.running_mean.dtype == torch.float64
    assert norm.to(torch.bfloat16).running_mean.dtype == torch.float32


def test_bf16_running_mean_reaches_its_mark_where_torchs_stops_short() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(7).bfloat16(), nn.BatchNorm2d(7).bfloat16()
    x = batch(torch.bfloat16)
    for _ in range(200):
        ours(x), theirs(x)
    mean = x.double().mean((0, 2, 3))
    assert (ours.running_mean - mean).abs().max() < 1e-5
    assert (theirs.running_mean - mean).abs().max() > 1e-2


def test_batch_norm_made_where_torch_makes_half_tensors_keeps_fp32_statistics() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        norm = BatchNorm2d(7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32


def test_zero_gain_starts_the_branch_at_zero() -> None:
    norm = BatchNorm2d(7, zero_gain=True)
    assert norm(batch()).abs().max() == 0
    nn.init.ones_(norm.weight)
    norm.reset_parameters()
    assert norm.weight.abs().max() == 0
