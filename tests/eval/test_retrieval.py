"""Ranks and recalls against a plain sort."""

import torch

from clipfast.eval import pair_ranks, recalls


def test_pair_ranks_equal_a_stable_sort():
    torch.manual_seed(0)
    texts = torch.randn(37, 8)
    images = texts + 0.7 * torch.randn(37, 8)
    similarity = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    order = similarity.sort(dim=1, descending=True, stable=True).indices
    want = (order == torch.arange(37)[:, None]).int().argmax(1)
    assert torch.equal(pair_ranks(images, texts, chunk=5), want)
    assert torch.equal(pair_ranks(images[10:20], texts, first=10), want[10:20])


def test_pair_ranks_of_a_collapsed_model_are_chance():
    same = torch.ones(100, 4)
    got = recalls(pair_ranks(same, same))
    assert [round(v, 6) for v in got.values()] == [0.01, 0.05, 0.1]


def test_recalls_count_the_first_places():
    got = recalls(torch.tensor([0, 4, 5, 9, 10]))
    assert [round(v, 6) for v in got.values()] == [0.2, 0.4, 0.8]
