"""One optimizer step: its loss and gradients are those of the whole batch, whole or in parts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clipfast.data import ImageTextBatch
from clipfast.engine.step import train_step
from clipfast.models import create_model
from tests.loss.problems import paper_loss

pytestmark = pytest.mark.usefixtures("process_group")
VIT = {"vision_layers": 1, "text_layers": 1, "vocab_size": 500}


class Optimizer:
    """One of ZeRO's: it scales losses by itself."""


class Engine:
    """What train_step asks of DeepSpeed, around a model: gradients add up until the last step."""

    def __init__(self, name: str, micro_batches: int, **options) -> None:
        torch.manual_seed(0)
        self.module = create_model(name, **options)
        self.optimizer = Optimizer()
        self.micro_batches = micro_batches
        self.outputs: list[Tensor] = []
        self.steps = 0

    def __call__(self, *inputs, **options) -> tuple[Tensor | None, ...]:
        images, texts, scale = self.module(*inputs, **options)
        self.outputs.append(images.detach().clone())
        return images, texts, scale

    def backward(self, loss: Tensor, scale_wrt_gas: bool = True) -> None:
        # DeepSpeed takes the mean over the parts, unless it is told that they add up.
        (loss / self.micro_batches if scale_wrt_gas else loss).backward()

    def step(self) -> None:
        self.steps += 1

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}


class Noisy(Engine):
    """Image features with a dropout's noise in them."""

    def __call__(self, *inputs, **options):
        images, texts, scale = super().__call__(*inputs, **options)
        noisy = torch.nn.functional.dropout(images, 0.5)
        self.outputs[-1] = noisy.detach().clone()
        return noisy, texts, scale


@pytest.fixture
def batch() -> ImageTextBatch:
    lengths = torch.tensor([4, 7, 3, 5, 9, 4, 6, 3])
    tokens = torch.randint(1, 499, (8, 9))
    for row, length in enumerate(lengths.tolist()):
        tokens[row, length - 1] = 499
        tokens[row, length:] = 0
    places = np.arange(8)
    return ImageTextBatch(torch.randn(8, 3, 64, 64), tokens, lengths, 0, 0, places, places)


def expected(batch: ImageTextBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by figure 3 of the paper."""
    engine = Engine("ViT-tiny", 1, **VIT)
    loss = paper_loss(*engine.module(batch.images, batch.tokens))
    loss.backward()
    return loss.detach(), engine.gradients()


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_train_step_has_the_gradients_of_the_whole_batch(batch, micro_batches):
    engine = Engine("ViT-tiny", micro_batches, **VIT)
    loss, scale = train_step(engine, batch, micro_batches)
    want_loss, want = expected(batch)
    assert engine.steps == micro_batches
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(want_loss.item(), rel=1e-5)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    got = engine.gradients()
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        error = (got[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert error < 2e-4, (name, error)


def test_parts_of_a_batch_are_its_rows_and_refuse_a_rest(batch):
    parts = batch.parts(4)
    assert len(parts) == 4
    for name in ("images", "tokens", "lengths"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name)), name
    assert [part.row.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch.parts(1)[0] is batch
    with pytest.raises(ValueError, match="8 pairs do not divide into 3 micro-batches"):
        batch.parts(3)


def test_train_step_is_not_the_mean_of_smaller_batches(batch):
    """The check above can fail: parts that meet only their own texts have another loss."""
    engine = Engine("ViT-tiny", 1, **VIT)
    images, texts, scale = engine.module(batch.images, batch.tokens)
    halves = [paper_loss(images[h], texts[h], scale) for h in (slice(4), slice(4, 8))]
    assert abs(sum(halves).item() / 2 - expected(batch)[0].item()) > 0.1


def test_train_step_repeats_random_numbers_in_the_second_pass(batch):
    engine = Noisy("ViT-tiny", 4, **VIT)
    train_step(engine, batch, 4)
    first, second = engine.outputs[:4], engine.outputs[4:]
    for ours, again in zip(first, second, strict=True):
        assert torch.equal(ours, again)
    assert not torch.equal(first[0] == 0, first[1] == 0)


@pytest.mark.parametrize("options", [VIT, {"recompute": "selective", **VIT}], ids=["none", "sel"])
@pytest.mark.parametrize("name", ["ViT-tiny", "RN-tiny"])
def test_train_step_with_kept_graphs_changes_no_bit(batch, name, options):
    options = {k: v for k, v in options.items() if name == "ViT-tiny" or k != "vision_layers"}
    found = []
    for kept in (0, 1, 3, 4):
        engine = Engine(name, 4, **options)
        loss, scale = train_step(engine, batch, 4, keep_graphs=kept)
        assert len(engine.outputs) == 8 - kept
        running = dict(engine.module.named_buffers())
        found.append([loss, scale, *engine.gradients().values(), *running.values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_train_step_with_kept_graphs_leaves_the_random_numbers_where_they_were(batch):
    states = []
    for kept in (0, 2, 4):
        engine = Noisy("ViT-tiny", 4, **VIT)
        torch.manual_seed(1)
        train_step(engine, batch, 4, keep_graphs=kept)
        states.append((torch.get_rng_state(), *engine.gradients().values()))
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], other, strict=True))


def test_train_step_moves_running_statistics_once_per_micro_batch(batch):
    counts = {}
    for micro_batches in (1, 2):
        engine = Engine("RN-tiny", micro_batches, text_layers=1, vocab_size=500)
        train_step(engine, batch, micro_batches)
        counts[micro_batches] = engine.module.visual.bn1.num_batches_tracked.item()
        # The second pass repeats the first, in training mode.
        if micro_batches == 2:
            assert torch.allclose(engine.outputs[0], engine.outputs[2], atol=1e-5)
    assert counts == {1: 1, 2: 2}
