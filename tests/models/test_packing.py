"""Text without padding: the plan, and the tower against one that computes every position."""

from __future__ import annotations

import itertools
import random
import sys
import types
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.models import CLIP, packing, sequences
from clipfast.models.packing import pack_captions, plan_groups
from tests.models.helpers import assert_near, small_model
from tests.models.plain_towers import (
    assert_errs_no_more_than_plain,
    gradients_of,
    plain_encode_text,
)

CONTEXT, VOCABULARY = 77, 500

LENGTHS = {
    "a multiple of 64": [20, 44],
    "every length": list(range(2, 78)),
    "unsorted, with repeats": [20, 5, 77, 5, 20, 2, 19, 21, 5, 40],
    "all full": [77, 77, 77],
    "all the same": [9] * 6,
    "one caption": [13],
    "shortest": [2, 2],
}


def captions(lengths: list[int], seed: int = 0) -> Tensor:
    """[B, 77] tokens whose captions have these lengths, zero behind the end-of-text token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1] = torch.randint(
            1, VOCABULARY - 1, (length - 1,), generator=generator
        )
        tokens[row, length - 1] = VOCABULARY - 1
    return tokens


def text_model(dtype: torch.dtype = torch.float64, device: str = "cpu", **overrides) -> CLIP:
    model = small_model("ViT-tiny", vision_layers=1, text_width=128, **overrides)
    return model.to(device, dtype)


def assert_same_as_plain(model: CLIP, tokens: Tensor, tolerance: float, **kwargs) -> None:
    """Features and the gradients of every parameter of the text tower."""
    expected = plain_encode_text(model, tokens)
    actual = model.encode_text(tokens, **kwargs)
    cotangent = torch.randn_like(expected)
    assert_near(actual.detach(), expected.detach(), tolerance)
    wanted = gradients_of(model, expected, cotangent)
    grads = gradients_of(model, actual, cotangent)
    assert grads.keys() == wanted.keys()
    assert len(grads) > 10
    for name, gradient in wanted.items():
        assert_near(grads[name], gradient, tolerance)


def cheapest(lengths: list[int], group_cost: float) -> float:
    """The cost of the best division, by trying all of them."""
    best = float("inf")
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        groups = [lengths[a:b] for a, b in itertools.pairwise(edges)]
        best = min(best, sum(len(g) * max(g) + group_cost for g in groups))
    return best


@pytest.mark.parametrize("group_cost", [0.0, 1.0, 4.5, 30.0, 1e6])
def test_plan_groups_is_as_cheap_as_the_best_of_all_divisions(group_cost: float) -> None:
    draw = random.Random(0)
    for _ in range(10):
        lengths = sorted(draw.randint(2, 30) for _ in range(draw.randint(1, 9)))
        groups = plan_groups(lengths, group_cost)
        cost = sum(n * longest + group_cost for n, longest in groups)
        assert cost == pytest.approx(cheapest(lengths, group_cost))
        first = 0
        for n, longest in groups:
            assert max(lengths[first : first + n]) == longest
            first += n
        assert first == len(lengths)


def test_plan_groups_of_nothing_is_nothing() -> None:
    assert plan_groups([], 1.0) == []


def test_pack_captions_computes_no_padding_where_groups_are_free(monkeypatch) -> None:
    monkeypatch.setitem(packing._GROUP_FLOP, "cpu", 0.0)
    lengths = LENGTHS["unsorted, with repeats"]
    tokens = captions(lengths)
    packed = pack_captions(tokens, width=128, heads=2)
    assert packed.index.numel() == sum(lengths)
    row, place = packed.index // CONTEXT, packed.index % CONTEXT
    assert torch.equal(place, packed.positions)
    seen = sorted(zip(row.tolist(), place.tolist(), strict=True))
    assert seen == [(r, p) for r, length in enumerate(lengths) for p in range(length)]
    ends = tokens.flatten()[packed.index][packed.layout.ends]
    assert (ends == VOCABULARY - 1).all()


def test_pack_captions_with_and_without_given_lengths_agree() -> None:
    lengths = LENGTHS["unsorted, with repeats"]
    tokens = captions(lengths)
    found = pack_captions(tokens, width=128, heads=2)
    given = pack_captions(tokens, torch.tensor(lengths), width=128, heads=2)
    assert torch.equal(found.index, given.index)
    assert found.layout.groups == given.layout.groups


@pytest.mark.parametrize("group_flop", [0.0, 4e6, 1e15], ids=["exact", "some", "one group"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_encode_text_equals_the_padded_tower(lengths, group_flop, monkeypatch) -> None:
    monkeypatch.setitem(packing._GROUP_FLOP, "cpu", group_flop)
    tokens = captions(lengths)
    assert_same_as_plain(text_model(), tokens, 1e-12, lengths=torch.tensor(lengths))


def test_encode_text_reads_tokens_cut_to_the_longest_caption() -> None:
    lengths = [3, 12, 7]
    model, tokens = text_model(), captions(lengths)
    assert torch.equal(model.encode_text(tokens), model.encode_text(tokens[:, :12]))


def test_encode_text_with_a_single_block() -> None:
    assert_same_as_plain(text_model(text_layers=1), captions([5, 9, 2, 77]), 1e-12)


def assert_nothing_of_nothing() -> None:
    features = text_model().encode_text(torch.zeros(0, CONTEXT, dtype=torch.int64))
    assert features.shape == (0, 256)


def test_encode_text_of_no_captions_is_empty() -> None:
    assert_nothing_of_nothing()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encode_text_in_half_precision_errs_no_more_than_the_padded_tower(dtype) -> None:
    lengths = LENGTHS["unsorted, with repeats"]
    tokens, model = captions(lengths), text_model(torch.float32)
    exact_model = text_model()
    model.to(dtype)
    exact_model.load_state_dict(model.state_dict())
    with torch.no_grad():
        exact = plain_encode_text(exact_model, tokens)
        padded = plain_encode_text(model, tokens).double()
        packed = model.encode_text(tokens).double()
    assert (packed - exact).norm() <= 1.1 * (padded - exact).norm()


def test_encode_text_under_autocast_runs_in_its_dtype() -> None:
    model, tokens = text_model(torch.float32), captions([5, 30, 12])
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_text(tokens)
    assert features.dtype == torch.bfloat16
    assert_near(features.float(), plain_encode_text(model, tokens).detach(), 0.05)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([5, 9]), r"expected lengths \[3\]"),
        (torch.tensor([5, 9, 78]), "between 1 and the 77 positions"),
        (torch.tensor([0, 9, 7]), "between 1 and the 77 positions"),
    ],
)
def test_encode_text_names_lengths_that_do_not_fit(lengths: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_model().encode_text(captions([5, 9, 7]), lengths)


class UnwrittenGradient(torch.autograd.Function):
    """The identity, whose gradient holds anything in rows that no query reached."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.masked_fill(~rows[:, None, None], float("nan")), None


def varlen_by_loop(q, k, v, offsets_q, offsets_k, longest_q, longest_k, *, is_causal) -> Tensor:
    """What torch's varlen_attn computes, sequence by sequence."""
    out = torch.full_like(q, float("nan"))
    reached = torch.zeros(len(k), dtype=torch.bool)
    for i, (c, d) in enumerate(itertools.pairwise(offsets_k)):
        reached[c:d] = offsets_q[i + 1] > offsets_q[i]
    k, v = (UnwrittenGradient.apply(x, reached) for x in (k, v))
    edges = zip(itertools.pairwise(offsets_q), itertools.pairwise(offsets_k), strict=True)
    for (a, b), (c, d) in edges:
        assert b - a <= longest_q
        assert d - c <= longest_k
        parts = [x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])]
        out[a:b] = F.scaled_dot_product_attention(*parts, is_causal=is_causal)[0].transpose(0, 1)
    return out


@pytest.fixture
def varlen_on_cpu(monkeypatch) -> None:
    monkeypatch.setattr(packing, "_varlen_serves", lambda *_: True)
    monkeypatch.setattr(sequences, "_varlen", varlen_by_loop)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.usefixtures("varlen_on_cpu")
def test_encode_text_in_one_sequence_equals_the_padded_tower(lengths) -> None:
    tokens = captions(lengths)
    packed = pack_captions(tokens, width=128, heads=2)
    assert packed.index.numel() % 64 == 0
    assert 1 <= packed.index.numel() - sum(lengths) <= 64
    assert_same_as_plain(text_model(), tokens, 1e-12)


@pytest.mark.usefixtures("varlen_on_cpu")
def test_encode_text_in_one_sequence_of_no_captions_is_empty() -> None:
    assert_nothing_of_nothing()


@pytest.mark.usefixtures("varlen_on_cpu")
def test_encode_text_in_one_sequence_with_a_context_shorter_than_the_filling() -> None:
    model = text_model(context_length=12)
    assert_same_as_plain(model, captions([3, 12])[:, :12], 1e-12)


def test_varlen_is_asked_for_a_window(monkeypatch) -> None:
    calls = []

    def varlen_attn(q, k, v, cq, ck, mq, mk, *, window_size=(-1, -1)):
        calls.append(window_size)

    module = types.SimpleNamespace(varlen_attn=varlen_attn)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    assert sequences.has_varlen.__wrapped__()
    for is_causal in (True, False):
        sequences._varlen(*[torch.zeros(1)] * 5, 1, 1, is_causal=is_causal)
    assert calls == [(-1, 0), (-1, -1)]
    # torch 2.10 knows no window, and older ones have no such function.
    module.varlen_attn = lambda q, k, v, cq, ck, mq, mk, is_causal=False: None
    assert not sequences.has_varlen.__wrapped__()
    del module.varlen_attn
    assert not sequences.has_varlen.__wrapped__()


def test_varlen_layout_compiles_without_a_warning_of_a_cached_function(monkeypatch) -> None:
    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = lambda q, *others, window_size: q
    monkeypatch.setitem(sys.modules, module.__name__, module)
    packed = packing._in_one_sequence(captions([5, 9, 7]), torch.tensor([5, 9, 7]))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = torch.compile(packed.layout.attend, backend="eager", fullgraph=True)
        run(torch.zeros(64, 12), 2)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_encode_text_on_a_gpu_errs_no_more_than_the_padded_tower(lengths, dtype) -> None:
    model = text_model(torch.float32, "cuda").to(dtype)
    assert_errs_no_more_than_plain(
        model,
        text_model(torch.float64, "cuda"),
        model.encode_text,
        plain_encode_text,
        captions(lengths).cuda(),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_encode_text_with_lengths_never_waits_for_the_gpu(dtype) -> None:
    lengths = LENGTHS["every length"]
    tokens, model = captions(lengths).cuda(), text_model(dtype, "cuda")
    model.encode_text(tokens, torch.tensor(lengths))
    torch.cuda.set_sync_debug_mode("error")
    try:
        features = model.encode_text(tokens, torch.tensor(lengths))
        features.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert features.isfinite().all()
