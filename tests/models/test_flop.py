"""What is counted of a step, against counts by hand and by torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import varlen

from clipfast.loss import available_impls, clip_loss
from clipfast.models.flop import count_flop
from clipfast.ops.products import bmm

HEADS, WIDTH = 2, 8


@pytest.fixture
def _varlen_on_the_cpu():
    """Results of the right shapes: flash attention itself wants a GPU."""
    library = torch.library.Library("torch_attn", "IMPL")
    library.impl("_varlen_attn", lambda q, *others: (q + 0, q[..., 0].T, q.new_empty(2)), "CPU")
    library.impl("_varlen_attn_backward", lambda g, q, k, v, *rest: (q + 0, k + 0, v + 0), "CPU")
    yield
    library._destroy()


def attended(q, k, v, lengths):
    """Attention of each sequence alone."""
    parts = (t.transpose(0, 1)[None] for t in (q, k, v))
    parts = zip(*(t.split(n, 2) for t, n in zip(parts, lengths, strict=True)), strict=True)
    return sum(F.scaled_dot_product_attention(*part).sum() for part in parts)


@pytest.mark.usefixtures("_varlen_on_the_cpu")
@pytest.mark.parametrize("queries", [[5, 3, 1], [1, 1, 1]])
@pytest.mark.parametrize("is_trained", [False, True])
def test_attention_over_unequal_sequences_is_counted_by_their_lengths(queries, is_trained):
    keys = [5, 3, 1]
    q, k, v = (
        torch.randn(sum(lengths), HEADS, WIDTH, requires_grad=is_trained)
        for lengths in (queries, keys, keys)
    )
    starts = [
        torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
        for lengths in (queries, keys)
    ]

    def run():
        out = varlen.varlen_attn(q, k, v, *starts, max(queries), max(keys)).sum()
        return out.backward() if is_trained else None

    def run_apart():
        out = attended(q, k, v, (queries, keys, keys))
        return out.backward() if is_trained else None

    pairs = sum(a * b for a, b in zip(queries, keys, strict=True))
    products = 2 + 5 * is_trained
    assert count_flop(run)[1] == 2 * products * pairs * HEADS * WIDTH
    assert count_flop(run_apart)[1] == count_flop(run)[1]


@pytest.mark.parametrize("impl", [n for n in available_impls("cpu") if n in ("cpu", "plain")])
@pytest.mark.parametrize(("keep", "products"), [(True, 3), (False, 4)])
def test_the_losss_products_are_counted(impl, keep, products):
    images, texts = (torch.randn(6, 16, requires_grad=True) for _ in range(2))

    def run():
        loss = clip_loss(images, texts, torch.tensor(2.0), impl=impl, keep_logits=keep)
        loss.backward()

    assert count_flop(run)[1] == 2 * products * 6 * 6 * 16


def test_batched_products_are_counted():
    assert count_flop(lambda: bmm(torch.ones(3, 4, 5), torch.ones(3, 5, 6)))[1] == 2 * 3 * 4 * 5 * 6
