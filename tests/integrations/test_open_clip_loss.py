"""The loss of a patched OpenCLIP: the same values and gradients, or OpenCLIP's own."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clipfast
from clipfast.integrations import open_clip_loss as losses
from tests.integrations.models import LOSS, tiny
from tests.peers import import_open_clip
from tests.ranks import run_ranks


def loss_and_gradients(loss: nn.Module, features: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in features]
    value = loss(*leaves, **options)
    value = value["contrastive_loss"] if isinstance(value, dict) else value
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def make_features() -> list[Tensor]:
    u, v = (F.normalize(torch.randn(7, 16, dtype=torch.float64), dim=1) for _ in range(2))
    return [u, v, torch.tensor(20.0, dtype=torch.float64)]


def count_calls(monkeypatch) -> list[ModuleType]:
    """A list that grows at each call of our loss."""
    calls, ours = [], losses.fused_loss

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0])
        return ours(*args, **kwargs)

    monkeypatch.setattr(losses, "fused_loss", counted)
    return calls


@pytest.mark.parametrize("whole_class", [True, False])
def test_patched_loss_is_open_clips(patch_and_undo, monkeypatch, whole_class):
    open_clip = import_open_clip()
    calls = count_calls(monkeypatch)
    loss, other = open_clip.loss.ClipLoss(), open_clip.loss.ClipLoss()
    features = make_features()
    expected = loss_and_gradients(loss, features)
    patch = patch_and_undo(tiny(), loss=True if whole_class else loss)
    assert (LOSS if whole_class else "loss") in patch.swapped
    for options in ({}, {"output_dict": True}):
        actual = loss_and_gradients(loss, features, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert len(calls) == 2
    loss_and_gradients(other, features)
    assert len(calls) == (3 if whole_class else 2)
    patch.undo()
    loss_and_gradients(loss, features)
    assert len(calls) == (3 if whole_class else 2)


def test_patched_coca_loss_uses_the_fused_one_for_its_contrastive_part(patch_and_undo, monkeypatch):
    open_clip = import_open_clip()
    coca = open_clip.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    u, v, scale = make_features()
    logits, labels = torch.randn(7, 4, 9).double(), torch.randint(1, 9, (7, 4))
    expected = coca(u, v, logits, labels, scale)
    calls = count_calls(monkeypatch)
    patch_and_undo(tiny())
    torch.testing.assert_close(coca(u, v, logits, labels, scale), expected)
    assert calls == [coca]


def test_patch_leaves_a_subclass_with_logits_of_its_own_alone(patch_and_undo, monkeypatch):
    class Margin(import_open_clip().loss.ClipLoss):
        def get_logits(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            rows, columns = super().get_logits(*args, **kwargs)
            margin = torch.eye(len(rows), dtype=rows.dtype)
            return rows - margin, columns - margin

    loss, features = Margin(), make_features()
    expected = loss_and_gradients(loss, features)
    calls = count_calls(monkeypatch)
    patch_and_undo(tiny())
    with pytest.warns(UserWarning, match="Margin has a get_logits of its own"):
        actual = loss_and_gradients(loss, features)
    torch.testing.assert_close(actual, expected)
    assert not calls


def test_patch_leaves_a_loss_with_other_gradients_alone(patch_and_undo, monkeypatch):
    open_clip = import_open_clip()
    loss = open_clip.loss.ClipLoss(local_loss=True, rank=0, world_size=2)
    assert "gather_with_grad" in patch_and_undo(tiny(), loss=loss).left_alone["loss"]
    siglip = open_clip.loss.SigLipLoss()
    assert patch_and_undo(tiny(), loss=siglip).left_alone["loss"] == "it is a SigLipLoss"
    theirs = open_clip.loss.ClipLoss.forward

    def forward(self: nn.Module, *features: Tensor) -> Tensor | str:
        return "theirs" if self.world_size > 1 else theirs(self, *features)

    monkeypatch.setattr(open_clip.loss.ClipLoss, "forward", forward)
    patch = patch_and_undo(tiny())
    with pytest.warns(UserWarning, match="is left alone: without gather_with_grad"):
        assert loss(*make_features()) == "theirs"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_clip.loss.ClipLoss()(*make_features()).ndim == 0
    patch.undo()


def _rank_gradients() -> list[list[Tensor]]:
    open_clip = import_open_clip()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = []
    model = tiny()
    for local_loss in (False, True):
        loss = open_clip.loss.ClipLoss(
            local_loss=local_loss, gather_with_grad=True, rank=rank, world_size=world_size
        )
        torch.manual_seed(rank)
        u, v, _ = make_features()
        features = [u, v, torch.tensor(20.0, dtype=torch.float64)]
        expected = loss_and_gradients(loss, features)
        patch = clipfast.patch_open_clip(model)
        actual = loss_and_gradients(loss, features)
        patch.undo()
        # Of the loss and of the scale's gradient, ranks have parts: their mean counts.
        for values in (expected, actual):
            for i in (0, 3):
                torch.distributed.all_reduce(values[i])
        results += [actual, expected]
    return results


def test_patched_loss_over_ranks_has_open_clips_gradients():
    import_open_clip()
    for actual, expected, actual_local, expected_local in run_ranks(2, _rank_gradients):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(actual_local, expected_local, rtol=1e-10, atol=1e-12)
