"""What memory the loss takes: by device, once, and as much as is counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from clipfast.loss import clip_loss, fused, workspace
from clipfast.loss.objectives import CONTRASTIVE, Objective
from clipfast.loss.workspace import HOST_BYTES, VARIABLE, budget, needed_bytes, share_of
from tests.needs import need

GIB = 2**30
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class FakeGpu:
    """A GPU of 80 GB that counts how often it is asked for its memory."""

    def __init__(self, monkeypatch):
        self.free, self.held, self.given, self.asked, self.captures = 70 * GIB, 0, 0, 0, False
        properties = SimpleNamespace(total_memory=int(79.1 * GIB))
        for name, answer in {
            "is_available": lambda: True,
            "get_device_properties": lambda device: properties,
            "mem_get_info": self.ask,
            "memory_reserved": lambda device: self.held,
            "memory_allocated": lambda device: self.given,
            "is_current_stream_capturing": lambda: self.captures,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def ask(self, device):
        self.asked += 1
        return self.free, int(79.1 * GIB)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(workspace, "_found", {})
    monkeypatch.delenv(VARIABLE, raising=False)
    return FakeGpu(monkeypatch)


def test_workspace_of_a_gpu_is_a_share_of_its_memory_asked_once(gpu):
    assert budget(GPU) == 4 * GIB
    gpu.free = 0
    assert budget(GPU) == 4 * GIB
    assert gpu.asked == 1
    assert budget(CPU) == HOST_BYTES


def test_workspace_shrinks_with_what_is_free_and_counts_what_torch_holds_idle(gpu):
    gpu.free, gpu.held, gpu.given = GIB, 60 * GIB, 57 * GIB
    assert budget(GPU) == GIB
    assert [share_of(80 * GIB, free) for free in (15 * GIB, 5 * GIB, 0)] == [2 * GIB, GIB, 2**25]


def test_workspace_under_capture_asks_nothing_and_keeps_nothing(gpu):
    gpu.captures = True
    assert budget(GPU) == 4 * GIB
    assert gpu.asked == 0
    gpu.captures, gpu.free = False, 4 * GIB
    assert budget(GPU) == GIB


def test_workspace_from_the_environment(gpu, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1000")
    assert budget(GPU) == budget(CPU) == 1000
    monkeypatch.setenv(VARIABLE, "1G")
    with pytest.raises(ValueError, match=f"{VARIABLE}=1G: expected a positive number of bytes"):
        budget(CPU)


def plan_of(batch, monkeypatch):
    choice = fused.Choice("triton", torch.float16)
    shares = fused.BatchShares(None, 0, (batch,))
    plan = fused.LossPlan(choice, shares, True, None, None)
    return plan.settled(SimpleNamespace(device=GPU, dtype=torch.bfloat16, shape=(batch, 8)))


def test_workspace_keeps_the_strip_of_32768_pairs_on_one_gpu(gpu, monkeypatch):
    assert plan_of(32_768, monkeypatch).keep
    assert not plan_of(65_536, monkeypatch).keep


def test_workspace_waves_fill_a_card_at_524288_pairs(gpu, monkeypatch):
    need("triton")
    from clipfast.kernels.contrastive.waves import waves

    room = plan_of(524_288, monkeypatch).workspace_bytes
    ranges = list(waves(524_288, room // (2 * 524_288), 128))
    assert len(ranges) == 128
    assert ranges[0] == (0, 4096)


def test_workspace_is_settled_when_both_towers_have_run(monkeypatch):
    asked = []
    monkeypatch.setattr(fused.workspace, "budget", lambda device: asked.append(device) or 1)
    from clipfast import gather_texts

    images, texts = torch.randn(2, 4, 8).unbind(0)
    gathered = gather_texts(texts)
    assert not asked
    clip_loss(images, gathered, torch.tensor(1.0))
    assert asked == [CPU]


def test_needed_bytes_count_strip_chunk_texts_and_gradients(gpu):
    texts, gradients = 32_768 * 1024 * 2, (1024 + 32_768) * 1024 * 4
    strip = 1024 * 32_768 * 2
    needed = needed_bytes(1024, 32_768, 1024, torch.bfloat16, GPU)
    assert needed == 2 * strip + texts + gradients
    # Too long to be kept: a chunk alone.
    needed = needed_bytes(65_536, 65_536, 512, torch.bfloat16, GPU)
    assert needed == 4 * GIB + 65_536 * 512 * (2 + 2 * 4)
    assert needed_bytes(64, 64, 8, torch.float32, CPU) == 2 * 64 * 64 * 4 + 64 * 8 * 12
    assert gpu.asked == 0


def test_objectives_say_what_they_hold():
    arguments = (64, 64, 8, torch.float32, CPU)
    assert CONTRASTIVE.peak_bytes(*arguments) == needed_bytes(*arguments)

    class Own(Objective):
        def loss(self, *features, **options):
            raise AssertionError

        def held_bytes(self, local_batch, global_batch):
            return 7

    assert Own().peak_bytes(*arguments) == 7
