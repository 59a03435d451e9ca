"""Ranks and recalls against a plain sort; equal captions and pictures; ties."""

import itertools

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from clipfast.eval import (
    Distinct,
    EvaluationData,
    Pairs,
    Retrieval,
    RetrievalEvaluation,
    chance,
    pair_ranks,
    recalls,
    right_ranks,
)
from clipfast.eval.ranking import best
from tests.ranks import run_ranks

CHUNKS = (1, 3, 7, 64, 1000)
PERFECT = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}


def rounded(values: dict[str, float]) -> list[float]:
    return [round(value, 6) for value in values.values()]


@pytest.fixture
def threads():
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def relation(queries: int, candidates: int) -> Tensor:
    """One to four right candidates for each query, in no order."""
    rows = [
        (query, answer)
        for query in range(queries)
        for answer in torch.randperm(candidates)[: 1 + query % 4].tolist()
    ]
    return torch.tensor(rows)[torch.randperm(len(rows))]


def ranks_by_sorting(queries: Tensor, candidates: Tensor, right: Tensor) -> list[int]:
    """The definition, query by query: sort, then count wrong ones before the first right one."""
    unit = torch.nn.functional.normalize
    similarity = unit(queries.double()) @ unit(candidates.double()).T
    ranks = []
    for query, row in enumerate(similarity):
        answers = set(right[right[:, 0] == query, 1].tolist())
        order = row.sort(descending=True, stable=True).indices.tolist()
        ranks.append(next(i for i, answer in enumerate(order) if answer in answers))
    return ranks


def test_pair_ranks_equal_a_stable_sort():
    torch.manual_seed(0)
    texts = torch.randn(37, 8)
    images = texts + 0.7 * torch.randn(37, 8)
    own = torch.arange(37)[:, None].expand(37, 2)
    want = torch.tensor(ranks_by_sorting(images, texts, own))
    assert torch.equal(pair_ranks(images, texts, chunk=5), want)
    assert torch.equal(pair_ranks(images[10:20], texts, first=10), want[10:20])
    assert 5 < want.count_nonzero() < 37


@pytest.mark.parametrize("block", [1, 7, 83, 1000])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_right_ranks_equal_a_stable_sort_with_several_right_candidates(chunk, block):
    torch.manual_seed(1)
    queries, candidates = torch.randn(61, 12), torch.randn(83, 12)
    right = relation(61, 83)
    want = ranks_by_sorting(queries, candidates, right)
    assert right_ranks(queries, candidates, right, chunk, block).tolist() == want


def test_right_ranks_of_no_query_are_empty():
    none = right_ranks(torch.empty(0, 4), torch.randn(3, 4), torch.empty(0, 2, dtype=torch.int64))
    assert none.shape == (0,)


def test_right_ranks_count_wrong_candidates_alone():
    candidates = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    query = candidates[:1]
    ranks = [
        right_ranks(query, candidates, torch.tensor([[0, answer] for answer in answers])).item()
        for answers in ([0], [2], [2, 3], [1, 2, 3], [3], [3, 1])
    ]
    assert ranks == [0, 2, 2, 1, 3, 1]


def test_right_ranks_break_ties_by_place():
    """Directions 0, 1, 0, 1, ...: every candidate of a query's direction ties with it."""
    candidates = torch.eye(2)[torch.arange(10) % 2]
    queries = torch.eye(2)
    for answers, want in (([0, 1], [0, 0]), ([4, 5], [2, 2]), ([8, 3], [4, 1]), ([1, 0], [5, 5])):
        right = torch.tensor(list(enumerate(answers)))
        assert right_ranks(queries, candidates, right).tolist() == want


def test_right_ranks_are_the_same_for_any_chunk_threads_and_part(threads):
    """Few directions, each many times: nearly all is decided by ties."""
    torch.manual_seed(2)
    directions = torch.randn(9, 333)
    queries = directions[torch.arange(200) % 9]
    # A length changes no similarity.
    candidates = directions[torch.randint(9, (517,))] * 2.0 ** torch.randint(-3, 4, (517, 1))
    right = relation(200, 517)
    want = right_ranks(queries, candidates, right)
    assert want.count_nonzero() > 100
    for number, chunk in itertools.product((1, 2, 3, 4), CHUNKS):
        threads(number)
        for block in (60, 65_536):
            assert torch.equal(right_ranks(queries, candidates, right, chunk, block), want)
        for parts in (2, 3):
            ranks = []
            for part in range(parts):
                start, stop = 200 * part // parts, 200 * (part + 1) // parts
                mine = right[(right[:, 0] >= start) & (right[:, 0] < stop)]
                mine = mine - torch.tensor([start, 0])
                ranks.append(right_ranks(queries[start:stop], candidates, mine, chunk))
            assert torch.equal(torch.cat(ranks), want)


@pytest.mark.parametrize("width", [3, 64, 512, 1024])
def test_equal_features_tie_wherever_they_stand(width):
    torch.manual_seed(3)
    features = torch.randn(70, width)
    doubled = features.repeat(3, 1)
    for copy in range(3):
        answers = torch.stack([torch.arange(70), torch.arange(70) + 70 * copy], 1)
        # Copies of the right candidate that stand before it, and nothing else.
        assert right_ranks(features, doubled, answers).unique().tolist() == [copy]
    assert best(features[5], doubled, 3) == [5, 75, 145]


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan"), float("inf")])
def test_pair_ranks_of_a_collapsed_model_are_chance(value):
    same = torch.full((100, 4), value)
    assert rounded(recalls(pair_ranks(same, same))) == [0.01, 0.05, 0.1]


def test_recalls_count_the_first_places():
    assert rounded(recalls(torch.tensor([0, 4, 5, 9, 10]))) == [0.2, 0.4, 0.8]


def test_chance_is_the_mean_over_all_orders():
    right = torch.tensor([[0, 0], [0, 3], [1, 1], [2, 0], [2, 1], [2, 4]])
    orders = list(itertools.permutations(range(5)))
    hits = {
        k: sum(
            bool(set(order[:k]) & set(right[right[:, 0] == query, 1].tolist()))
            for order in orders
            for query in range(3)
        )
        / (3 * len(orders))
        for k in (1, 5, 10)
    }
    assert rounded(chance(right, 5)) == [round(value, 6) for value in hits.values()]
    one_to_one = torch.arange(40)[:, None].expand(40, 2)
    assert rounded(chance(one_to_one, 40)) == [1 / 40, 5 / 40, 10 / 40]


def test_distinct_keeps_the_first_of_each_in_order():
    distinct = Distinct.of(torch.tensor([9, 9, 4, 9, 4]), torch.tensor([7, 1, 7, 7, 3]))
    assert distinct.pictures.tolist() == [0, 2]
    assert distinct.captions.tolist() == [0, 1, 4]
    assert distinct.right.tolist() == [[0, 0], [0, 1], [1, 0], [1, 2]]
    assert distinct.note(5) == ", 2 distinct pictures, 3 distinct captions"
    assert distinct.note(3) == ", 2 distinct pictures"


class Encoded:
    """An encoder whose features are given, over the ranks of the process group or alone."""

    def __init__(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor):
        self._pairs = images, texts, image_ids, caption_ids

    def pairs(self, source: str) -> Pairs:
        images, texts, image_ids, caption_ids = self._pairs
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return Pairs(
            source=source,
            image_features=images,
            text_features=texts,
            mine=slice(len(images) * rank // ranks, len(images) * (rank + 1) // ranks),
            image_ids=image_ids,
            caption_ids=caption_ids,
            image=lambda i: Image.new("RGB", (8, 8), (i, 0, 0)),
            caption=lambda i: f"pair {i}",
        )

    def gather(self, rows: Tensor) -> Tensor:
        if not dist.is_initialized():
            return rows
        blocks: list = [None] * dist.get_world_size()
        dist.all_gather_object(blocks, rows)
        return torch.cat(blocks)


def measure(*encoded: Tensor) -> Retrieval:
    evaluation = RetrievalEvaluation(EvaluationData(("some",)))
    (measured,) = evaluation.run(Encoded(*encoded))
    return measured


def test_a_perfect_model_scores_1_on_five_captions_an_image():
    """Each caption has its picture's features: its five captions tie, and all are right."""
    torch.manual_seed(4)
    picture = torch.arange(200) // 5
    features = torch.randn(40, 16)[picture]
    measured = measure(features, features, picture, torch.arange(200))
    assert measured.image_to_text == measured.text_to_image == PERFECT
    assert measured.lines[0].startswith("some (200 pairs, 40 distinct pictures): image-to-text R@1")
    evaluation = RetrievalEvaluation(EvaluationData(("some",)))
    label, *chances = evaluation.summary([measured])[-1].rsplit(maxsplit=6)
    assert label.strip() == "chance (200 pairs, 40 distinct pictures)"
    # 5 of 200 captions, 1 of 40 pictures.
    assert chances[:1] + chances[3:] == ["0.0250", "0.0250", "0.1250", "0.2500"]


def test_a_caption_of_many_pictures_is_right_with_each_of_them():
    torch.manual_seed(5)
    caption = torch.arange(60) % 20
    texts = torch.randn(20, 16)[caption]
    # The last of the three pictures is the best one.
    noise = torch.tensor([9.0, 9.0, 0.0]).repeat_interleave(20)[:, None]
    images = texts + noise * torch.randn(60, 16)
    measured = measure(images, texts, torch.arange(60), caption)
    assert measured.text_to_image == PERFECT
    assert 0.3 < measured.image_to_text["R@1"] < 0.8
    gallery = measured.gallery
    assert gallery.is_right(45, 5)
    assert not gallery.is_right(45, 6)
    assert (gallery.caption(19), gallery.image(59).getpixel((0, 0))) == ("pair 19", (59, 0, 0))


def test_a_text_of_another_picture_is_wrong_though_they_share_a_caption():
    """Pictures 0 and 1 share caption 1; caption 2 stands beside picture 1 alone."""
    features = torch.eye(4)
    images = features[[0, 0, 3, 3]]
    texts = features[[1, 2, 2, 0]]
    measured = measure(images, texts, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]))
    assert measured.distinct.right.tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]
    # Picture 0 finds caption 2 first, which is picture 1's. Picture 1 is at right angles to all.
    assert measured.image_to_text["R@1"] == 0.0
    assert measured.text_to_image["R@1"] == pytest.approx(2 / 3)


def _measured() -> tuple[dict[str, float], tuple[str, ...]]:
    torch.manual_seed(6)
    picture, caption = torch.arange(97) // 3, torch.randint(40, (97,))
    images = torch.randn(33, 8)[picture]
    texts = images.round() + 0.5 * torch.randn(40, 8)[caption]
    measured = measure(images, texts, picture, caption)
    return dict(measured.scalars), tuple(measured.lines)


@pytest.mark.slow
def test_retrieval_is_the_same_on_any_number_of_ranks():
    alone = _measured()
    assert 0.1 < alone[0]["eval/some/image_to_text/R@1"] < 0.9
    for ranks in (2, 3):
        assert run_ranks(ranks, _measured) == [alone] * ranks
