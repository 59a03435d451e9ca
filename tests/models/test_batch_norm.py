"""Batch norm: PyTorch's, fused with what follows it, with statistics that freeze and stay fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.batch_norm import BatchNorm2d, frozen_statistics


def norm_pair(channels: int = 7) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batch(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (3, 4)) -> Tensor:
    return torch.randn(5, 7, *size, dtype=dtype) * 2 + 1


def rows(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (6, 4)) -> Tensor:
    """A batch that is fused on the CPU."""
    return batch(dtype, size).contiguous(memory_format=torch.channels_last)


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


# Arguments of a call, with or without a residual.
CALLS = [
    *((False, {}), (True, {}), (False, {"relu": True}), (True, {"relu": True})),
    *((False, {"relu": True, "pool": True}), (True, {"relu": True, "shortcut_stride": 1})),
    (True, {"relu": True, "shortcut_stride": 2}),
]


def plain(norm, x, residual, relu=False, pool=False, shortcut_stride=0):
    y = norm(x) if residual is None else norm(x) + residual
    y = F.relu(y) if relu else y
    y = F.avg_pool2d(y, 2) if pool else y
    if shortcut_stride == 0:
        return y
    return y, F.avg_pool2d(y, 2) if shortcut_stride == 2 else y


def outputs_and_gradients(function, norm, x, residual, options):
    """Outputs and gradients for a cotangent that is a function of the outputs' place alone."""
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    out = function(norm, x, residual, **options)
    out = out if isinstance(out, tuple) else (out,)
    wave = [torch.arange(o.numel(), dtype=o.dtype).cos().view(o.shape) for o in out]
    norm.zero_grad()
    sum((o * w).sum() for o, w in zip(out, wave, strict=True)).backward()
    grads = [x.grad, norm.weight.grad, norm.bias.grad]
    return [*(o.detach() for o in out), *grads, *([] if residual is None else [residual.grad])]


def called(norm, x, residual, **options):
    return norm(x, residual, **options)


@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [batch, rows])
@pytest.mark.parametrize(("has_residual", "options"), CALLS)
def test_batch_norm_and_what_follows_equal_torch(has_residual, options, make, training, size):
    ours, theirs = (norm.double().train(training) for norm in norm_pair())
    x = make(torch.float64, size)
    residual = make(torch.float64, size) if has_residual else None
    for _ in range(2):
        results = outputs_and_gradients(called, ours, x, residual, options)
        expected = outputs_and_gradients(plain, theirs, x, residual, options)
        for mine, right in zip(results, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
    for name, statistic in statistics(theirs).items():
        torch.testing.assert_close(ours.get_buffer(name), statistic, rtol=1e-12, atol=1e-12)


@pytest.mark.needs("extension")
def test_batch_norm_channels_last_training_is_fused(monkeypatch):
    norm, calls = norm_pair()[0], []
    from clipfast.models import batch_norm as module

    real = module.batch_norm
    monkeypatch.setattr(module, "batch_norm", lambda *a: calls.append(1) or real(*a))
    norm(batch(size=(6, 4)))
    norm.eval()(rows())
    assert not calls
    norm.train()(rows(), relu=True)
    assert len(calls) == 1


@pytest.mark.parametrize("make", [batch, rows])
def test_batch_norm_under_autocast_takes_half_precision_and_fp32_weights(make):
    ours, theirs = norm_pair()
    x = make(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = ours(x, relu=True), F.relu(theirs(x))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


def test_batch_norm_of_one_value_a_channel_says_so():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm2d(7)(torch.ones(1, 7, 1, 1))


@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
def test_batch_norm_compiles_without_graph_break(size):
    ours, theirs = norm_pair()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, residual = rows(size=size), rows(size=size)
    options = {"relu": True, "shortcut_stride": 2}
    results = outputs_and_gradients(called, compiled, x, residual, options)
    expected = outputs_and_gradients(plain, theirs, x, residual, options)
    for mine, right in zip(results, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == 1


@pytest.mark.parametrize("make", [batch, rows])
def test_frozen_statistics_gives_the_training_output_and_gradients_and_records_nothing(
    make,
) -> None:
    norm, reference = norm_pair()[0], BatchNorm2d(7)
    reference.load_state_dict(norm.state_dict())
    before, x, cotangent = statistics(norm), make(), make()
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


@pytest.mark.parametrize("make", [batch, rows])
def test_frozen_statistics_saves_as_many_tensors_as_a_training_forward(make) -> None:
    norm = BatchNorm2d(7)

    def saved() -> list[torch.Size]:
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), id):
            norm(make())
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


@pytest.mark.parametrize("make", [batch, rows])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_cast_to_half_keeps_fp32_statistics(dtype: torch.dtype, make) -> None:
    norm, _ = norm_pair()
    before = statistics(norm)
    norm = norm.to(dtype)
    assert norm.weight.dtype == norm.bias.dtype == dtype
    assert_same(statistics(norm), before)
    x = make(dtype).requires_grad_()
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


@pytest.mark.parametrize("make", [batch, rows])
def test_bf16_running_mean_reaches_its_mark_where_torchs_stops_short(make) -> None:
    ours, theirs = BatchNorm2d(7).bfloat16(), nn.BatchNorm2d(7).bfloat16()
    x = make(torch.bfloat16)
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
