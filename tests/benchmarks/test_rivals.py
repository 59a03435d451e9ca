"""Rivals that need a GPU are called right: their part is taken here by plain torch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.parts.loss import rivals
from benchmarks.parts.loss.measure import Selection, measure_case
from benchmarks.parts.loss.problem import Case, compute_truth, make_features, measure_errors

CASE = Case(48, 16, torch.float32, torch.device("cpu"))


def plain_sigmoid(images, texts, log_temperature, bias):
    """The loss as its paper has it: the sum over pairs by the batch."""
    z = images @ texts.T * log_temperature.exp() + bias
    signs = 2 * torch.eye(len(z), device=z.device, dtype=z.dtype) - 1
    return -F.logsigmoid(signs * z).sum() / len(z)


class PlainMemeff(torch.nn.Module):
    def __init__(self, temperature, stable):
        super().__init__()
        assert not stable  # its gradients would be of another size
        self.temperature = temperature

    def forward(self, images, texts):
        logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / self.temperature
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@pytest.fixture
def installed(monkeypatch):
    found = {
        "memeff": SimpleNamespace(MemoryEfficientCLIPLoss=PlainMemeff),
        "siglip_kernel": SimpleNamespace(fused_siglip_loss=plain_sigmoid),
    }
    monkeypatch.setattr(rivals, "_module", lambda case, name, distribution: found[name])


def test_sigmoid_truth_is_its_definitions():
    features = make_features(CASE)
    truth = rivals.sigmoid_truth(features, torch.arange(48))
    wide = [x.detach().double().requires_grad_() for x in features.leaves]
    loss = rivals.sigmoid_loss(plain_sigmoid, CASE.device)(*wide)
    grads = torch.autograd.grad(loss, wide)
    assert truth.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    found = (truth.image_grad, truth.text_grad, truth.scale_grad)
    for got, expected in zip(found, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)
    some = rivals.sigmoid_truth(features, torch.tensor([3, 40]))
    torch.testing.assert_close(some.text_grad, truth.text_grad[[3, 40]])


def test_a_sigmoid_loss_is_told_from_the_softmax_one():
    features = make_features(CASE)
    errors = measure_errors(
        rivals.sigmoid_loss(plain_sigmoid, CASE.device), features, compute_truth(features), CASE
    )
    assert errors["error_image_grad"] > 0.1


@pytest.mark.usefixtures("installed")
def test_rivals_are_checked_each_by_its_own_function():
    selection = Selection((), (), ("memeff", "siglip-kernel"), runs=1, warmup=0)
    rows, absent = measure_case(CASE, selection, compute_truth(make_features(CASE)))
    assert not absent
    memeff, siglip = rows[2:]
    assert memeff["name"].startswith("memeff ")
    assert memeff["leaves_out"] == "the log-scale's gradient"
    assert "error_scale_grad" not in memeff
    assert memeff["error_text_grad"] < 1e-4
    assert siglip["name"].endswith(", sigmoid loss")
    assert siglip["error_scale_grad"] < 1e-4


@pytest.mark.parametrize("peer", [rivals.inf_cl, rivals.memeff, rivals.siglip_kernel])
def test_rivals_say_why_they_are_not_measured(peer, monkeypatch):
    with pytest.raises(rivals.NotMeasured, match="need a GPU"):
        peer(CASE)
    on_gpu = Case(48, 16, torch.float32, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, peer.__name__, None)
    name = {"inf_cl": "inf-cl", "memeff": "memeff", "siglip_kernel": "siglip-kernel"}[peer.__name__]
    with pytest.raises(rivals.NotMeasured, match=f"not installed: pip install --no-deps {name}"):
        peer(on_gpu)
