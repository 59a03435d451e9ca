"""No part of a training step reads a tensor on the host, seen on the CPU.

On a GPU machine `torch.cuda.set_sync_debug_mode` says the same of the real thing.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import clipfast
from clipfast import FusedAdamW
from clipfast.devices import to_device
from clipfast.loss import fused
from clipfast.models import clip as clip_module
from clipfast.models import packing
from clipfast.ops import attention_pool as pool_ops
from clipfast.ops import normalize
from tests.host_reads import HostRead, no_host_copies, no_host_reads
from tests.models.helpers import random_images, small_model
from tests.needs import need
from tests.ops.attention_pool_cases import make_inputs

READERS = {
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "if": lambda t: 1 if t else 0,
    "float": lambda t: float(t),
    "range": lambda t: range(t),
    "foreach": lambda t: torch._foreach_add_([torch.zeros(2)], t),
    "mask": lambda t: torch.zeros(2)[torch.tensor([True, False])],
    "equal": lambda t: torch.equal(t, t),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_host_reads_refuses_what_reads(reader):
    number = torch.tensor(2)
    READERS[reader](number)
    with pytest.raises(HostRead), no_host_reads():
        READERS[reader](number)
    assert number.item() == 2


OPTIONS = {
    "plain": {},
    "clipped": {"max_norm": 1.0},
    "skipping": {"skip_nonfinite": True},
    "both": {"skip_nonfinite": True, "max_norm": 1.0},
    "bf16": {"stats_dtype": torch.bfloat16},
    "fp32": {"stats_dtype": torch.float32},
    "stochastic": {"weights": "stochastic", "weights_dtype": torch.bfloat16},
    "remainder": {"weights": "remainder"},
    "nearest": {"rounding": "nearest"},
}


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_adamw_step_reads_nothing(name, dtype, is_scaled):
    params = [nn.Parameter(torch.randn(n).to(dtype)) for n in (1, 300, 700)]
    optimizer = FusedAdamW(params, lr=0.01, **OPTIONS[name])
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        if is_scaled:  # as a GradScaler leaves it
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        with no_host_reads():
            optimizer.step()
    assert not params[0].isnan().any()


@pytest.mark.parametrize("impl", ["cpu", "plain"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_reads_nothing(impl, keep, dtype, monkeypatch):
    # Norms are looked at on a CPU alone.
    monkeypatch.setattr(fused, "_are_safe", lambda norms: norms.device.type == "cpu")
    if impl == "cpu":
        need("extension")
    u, v = (torch.randn(33, 24).to(dtype).requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0, requires_grad=True)
    with no_host_reads():
        loss = clipfast.clip_loss(u, v, scale, impl=impl, keep_logits=keep)
        loss.backward()
    assert all(t.grad.isfinite().all() for t in (u, v, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_pool_reads_nothing(dtype):
    inputs = make_inputs(3, 9, 32, dtype)
    with no_host_reads():
        pool_ops.attention_pool(*inputs.values(), 4, impl="plain").sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l2_normalize_reads_nothing(dtype):
    x = torch.randn(5, 24).to(dtype).requires_grad_()
    with no_host_reads():
        normalize.l2_normalize(x).sum().backward()


CAPTIONS = torch.tensor([[5, 6, 499, 0, 0], [7, 499, 0, 0, 0], [5, 6, 7, 8, 499]])
LENGTHS = torch.tensor([3, 2, 5])


@pytest.mark.parametrize("is_varlen", [False, True])
def test_captions_are_packed_from_their_lengths_alone(is_varlen, monkeypatch):
    # A meta tensor has no values: what reads one fails.
    monkeypatch.setattr(packing, "_varlen_serves", lambda *a: is_varlen)
    packed = packing.pack_captions(CAPTIONS.to("meta"), LENGTHS, width=64, heads=1)
    assert packed.index.device.type == packed.positions.device.type == "meta"
    assert packed.layout.ends.device.type == "meta"


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_towers_read_nothing(name, monkeypatch):
    model = small_model(name)
    packed = packing.pack_captions(CAPTIONS, LENGTHS, width=64, heads=1)
    monkeypatch.setattr(clip_module, "pack_captions", lambda *a, **options: packed)
    images = random_images(3, 64)
    with no_host_reads():
        u, v, scale = model(images, CAPTIONS, lengths=LENGTHS)
        (scale * (u * v).sum()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class OnCuda:
    """A CPU tensor that is sent to a GPU, and notes how."""

    def __init__(self, is_pinned=False):
        self.device, self.pinned, self.sent = torch.device("cpu"), is_pinned, None

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        return OnCuda(is_pinned=True)

    def to(self, device, non_blocking=False):
        self.sent = (device, non_blocking)
        return self


@pytest.mark.parametrize("is_pinned", [False, True])
def test_to_device_sends_pinned_memory_and_does_not_wait(is_pinned):
    tensor, gpu = OnCuda(is_pinned), torch.device("cuda")
    sent = to_device(tensor, gpu)
    assert sent.pinned
    assert sent.sent == (gpu, True)
    assert (sent is tensor) == is_pinned


def test_to_device_leaves_what_is_there_alone():
    tensor = torch.ones(2)
    assert to_device(tensor, torch.device("cpu")) is tensor


# Copies that say themselves why they need no pinned memory, or that what they copy is pinned.
ASYNC_COPIES = {
    "clipfast/data/stream.py",
    "clipfast/devices.py",
    "clipfast/engine/checkpoint/host_copies.py",
    "clipfast/engine/requests.py",
    "clipfast/optim/tensor_list.py",
}


def test_copies_that_do_not_wait_are_of_pinned_memory():
    root = Path(clipfast.__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for path in (root / "clipfast").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "non_blocking"
    }
    assert found == ASYNC_COPIES


def test_no_host_copies_refuses_what_is_sent():
    for make in (
        lambda: torch.tensor(1.0).to("meta"),
        lambda: torch.zeros(2, device="meta").copy_(torch.ones(2)),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
    ):
        with pytest.raises(HostRead, match="lies on the host"), no_host_copies():
            make()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_sends_nothing_from_the_host(dtype, normalize):
    images, texts = torch.empty(2, 6, 16, device="meta", dtype=dtype).unbind(0)
    images, texts = images.requires_grad_(), texts.requires_grad_()
    scale = torch.empty((), device="meta", requires_grad=True)
    with no_host_copies():
        clipfast.clip_loss(images, texts, scale, normalize=normalize).backward()
    assert images.grad.shape == texts.grad.shape == (6, 16)


def test_pool_and_normalisation_send_nothing_from_the_host():
    inputs = {name: t.to("meta") for name, t in make_inputs(3, 9, 32, torch.float32).items()}
    x = torch.empty(3, 8, device="meta", requires_grad=True)
    with no_host_copies():
        pool_ops.attention_pool(*inputs.values(), 4).sum()
        normalize.l2_normalize(x).sum().backward()


@pytest.mark.parametrize("name", OPTIONS)
def test_adamw_step_sends_nothing_from_the_host(name):
    params = [nn.Parameter(torch.empty(n, device="meta", dtype=torch.bfloat16)) for n in (1, 300)]
    optimizer = FusedAdamW(params, lr=0.01, **OPTIONS[name])
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()
    with no_host_copies():
        optimizer.step()
