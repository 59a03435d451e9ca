"""The ResNet tower: equal to the plain one, channels_last throughout, and free of host syncs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models import batch_norm
from clipfast.models.resnet import Bottleneck, ModifiedResNet, ResNetConfig
from clipfast.ops.average_pool import operator as average_pool
from tests.models.helpers import randomize_vectors


def tower(layers=(1, 2, 1, 2), width=16, image_size=64, recompute="none") -> ModifiedResNet:
    torch.manual_seed(1)
    config = ResNetConfig(layers, width, image_size)
    model = ModifiedResNet(config, 24, recompute)
    randomize_vectors(model)
    return model


def plain_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def plain_block(block: Bottleneck, x: Tensor) -> Tensor:
    out = F.relu(plain_norm(block.bn1, block.conv1(x)))
    out = F.relu(plain_norm(block.bn2, block.conv2(out)))
    if block.stride > 1:
        out = F.avg_pool2d(out, block.stride)
    out = plain_norm(block.bn3, block.conv3(out))
    if block.downsample is not None:
        pooled = F.avg_pool2d(x, block.stride) if block.stride > 1 else x
        x = plain_norm(block.downsample[2], block.downsample[1](pooled))
    return F.relu(out + x)


def plain_tower(model: ModifiedResNet, images: Tensor) -> Tensor:
    x = images
    for conv, norm in (
        (model.conv1, model.bn1),
        (model.conv2, model.bn2),
        (model.conv3, model.bn3),
    ):
        x = F.relu(plain_norm(norm, conv(x)))
    x = F.avg_pool2d(x, 2)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            x = plain_block(block, x)
    return model.attnpool(x)


def gradients(model: nn.Module, features: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(features, parameters, cotangent)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layers", [(1, 1, 1, 1), (2, 1, 3, 2)])
def test_resnet_outputs_and_gradients_equal_the_plain_tower(layers, memory_format):
    model = tower(layers).double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64).to(memory_format=memory_format)
    cotangent = torch.randn(3, 24, dtype=torch.float64)
    features, expected = model(images), plain_tower(model, images)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)
    truth = gradients(model, expected, cotangent)
    for name, grad in gradients(model, features, cotangent).items():
        top = truth[name].abs().max().item()
        torch.testing.assert_close(grad, truth[name], rtol=0, atol=1e-10 * max(1.0, top))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resnet_error_is_at_most_the_plain_towers(dtype):
    model = tower()
    images, cotangent = torch.randn(6, 3, 64, 64), torch.randn(6, 24)
    exact_model = copy.deepcopy(model).double()
    exact = gradients(exact_model, plain_tower(exact_model, images.double()), cotangent.double())
    errors = []
    for forward in (ModifiedResNet.forward, plain_tower):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = forward(model, images)
        grads = gradients(model, features, cotangent.to(features.dtype))
        parts = [(grads[n].double() - g).square().sum() for n, g in exact.items()]
        errors.append((sum(parts) / sum(g.square().sum() for g in exact.values())).sqrt().item())
    assert errors[0] <= 1.1 * errors[1], errors


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_resnet_with_the_average_pool_of_a_gpu_equals_torchs(recompute, monkeypatch):
    # What serves on a GPU: no fused batch norm, and the pool in its own passes.
    images, cotangent = torch.randn(2, 3, 64, 64), torch.randn(2, 24)
    monkeypatch.setattr(batch_norm, "fused_here", lambda x: False)
    calls, real = [], average_pool.average_pool_rows
    monkeypatch.setattr(average_pool, "average_pool_rows", lambda *a: calls.append(1) or real(*a))
    results = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(average_pool, "DEVICES", devices)
        model = tower(recompute=recompute)
        results.append(gradients(model, model(images), cotangent))
    assert len(calls) >= 7, "the stem's pool, and two of each of three strides"
    for name, grad in results[0].items():
        top = grad.abs().max().item()
        torch.testing.assert_close(results[1][name], grad, rtol=0, atol=1e-4 * max(1.0, top))


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_resnet_recomputation_gives_the_same_bits(recompute):
    images, cotangent = torch.randn(2, 3, 64, 64), torch.randn(2, 24)
    results = []
    for mode in ("none", recompute):
        model = tower(recompute=mode)
        features = model(images)
        results.append(gradients(model, features, cotangent) | dict(model.named_buffers()))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_resnet_convolutions_read_and_write_channels_last():
    model, formats = tower(), {}

    def look(name):
        def hook(module, inputs, output):
            for t in (*inputs, output):
                formats.setdefault(name, []).append(
                    t.is_contiguous(memory_format=torch.channels_last)
                )

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look(name))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert formats
    assert all(all(seen) for seen in formats.values()), formats


def test_resnet_stage_of_odd_height_is_pooled_as_torch_does():
    # An image of 72 gives stages of 18, 9, 4: the pool leaves a row and a column out.
    block, following = Bottleneck(64, 16), Bottleneck(64, 32, stride=2)
    for module in (block, following):
        module.double()
        randomize_vectors(module)
    x = torch.randn(2, 64, 9, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    y, shortcut = block(x, shortcut_stride=2)
    result = following(y, shortcut)
    assert result.shape == (2, 128, 4, 4)
    torch.testing.assert_close(result, plain_block(following, plain_block(block, x)))


def test_bottleneck_takes_its_shortcut_from_x_where_none_is_given():
    block = Bottleneck(16, 8, stride=2).double()
    randomize_vectors(block)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x), block(x, F.avg_pool2d(x, 2)))
    torch.testing.assert_close(block(x), plain_block(block, x))


def test_resnet_eval_uses_the_running_statistics_and_needs_no_batch():
    model = tower().eval()
    images = torch.randn(3, 3, 64, 64)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_resnet_keeps_fewer_bytes_than_the_plain_tower():
    model, images = tower(), torch.randn(2, 3, 64, 64)

    def kept(forward) -> int:
        storages = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            features = forward(model, images)
        del features
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for place, size in storages.items() if place not in weights)

    assert kept(ModifiedResNet.forward) < 0.9 * kept(plain_tower)


@pytest.mark.gpu
def test_resnet_forward_and_backward_are_captured_in_a_cuda_graph():
    model = tower().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)
    cotangent = torch.randn(4, 24, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            features = model(images)
        features.backward(cotangent.to(features.dtype))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    images.copy_(torch.randn_like(images))
    batches = model.bn1.num_batches_tracked.item()
    graph.replay()
    captured = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert model.bn1.num_batches_tracked.item() == batches + 1
    model.zero_grad(set_to_none=True)
    step()
    for name, parameter in model.named_parameters():
        top = parameter.grad.abs().max().item()
        torch.testing.assert_close(captured[name], parameter.grad, rtol=0, atol=0.02 * top + 1e-6)
