"""Which pairs a batch norm takes together: what is asked for, what is refused, what is told."""

import pytest
import torch
from torch import nn

from clipfast.engine import ConfigError, ModelOptions
from clipfast.engine.builders import share_norms
from clipfast.engine.norms import NormPlan, plan_norms
from clipfast.engine.typed import idle_options
from clipfast.models import create_model
from clipfast.models.batch_norm import BatchNorm2d
from clipfast.models.shared_norm import batch_norms, settle_statistics, share_statistics
from clipfast.ops.batch_norm import Tail
from tests.engine.plans import plan


@pytest.mark.parametrize(
    ("bn_batch", "ranks", "local", "micro", "found"),
    [
        (8, 4, 32, 16, NormPlan(2, 1, True)),
        (16, 4, 32, 16, NormPlan(1, 1, True)),
        (32, 4, 32, 32, NormPlan(1, 1, True)),
        (64, 4, 32, 32, NormPlan(1, 2, True)),
        (128, 4, 32, 32, NormPlan(1, 4, True)),
        (None, 4, 32, 16, NormPlan()),
    ],
)
def test_bn_batch_is_parts_of_a_micro_batch_or_whole_shares_of_neighbours(
    bn_batch, ranks, local, micro, found
):
    assert plan_norms(False, bn_batch, ranks, local, micro) == found


def test_sync_bn_is_every_rank():
    assert plan_norms(True, None, 4, 32, 16) == NormPlan(1, 4, False)
    assert not plan_norms(True, None, 1, 32, 16).is_shared


@pytest.mark.parametrize(
    ("bn_batch", "micro", "works"),
    [
        (32, 16, "--bn-batch 16 or a divisor of it; or --micro-batch 32"),
        (64, 16, "--bn-batch 16 or a divisor of it; or no --micro-batch"),
        (96, 32, "--bn-batch 32 or a divisor of it; or a multiple of 32 that 128 is a multiple of"),
        (24, 32, "--bn-batch 32 or a divisor of it"),
    ],
)
def test_bn_batch_of_pairs_that_never_meet_is_refused_with_what_works(bn_batch, micro, works):
    with pytest.raises(ConfigError, match="never encoded together by 4 ranks") as refused:
        plan_norms(False, bn_batch, 4, 64 if bn_batch == 32 else 32, micro)
    assert works in str(refused.value)


def test_sync_bn_and_bn_batch_together_are_refused():
    with pytest.raises(ConfigError, match="two answers to one question"):
        ModelOptions("RN-tiny", sync_bn=True, bn_batch=4)


def test_shared_statistics_are_not_compiled():
    options = {"bn_batch": 4, "compile": "blocks"}
    with pytest.raises(ConfigError, match="outside any graph"):
        plan(model=ModelOptions("RN-tiny", **options))


def test_a_tower_without_batch_norm_says_that_the_options_do_not_count():
    made = plan(model=ModelOptions("ViT-tiny", bn_batch=3))
    assert not made.norm.is_shared
    lines = list(idle_options(["--bn-batch", "3"], made))
    assert "--bn-batch does not count: ViT-tiny has no batch norm" in lines
    assert not list(idle_options(["--bn-batch", "4"], plan(model=ModelOptions("RN-tiny"))))


def test_running_statistics_settle_at_the_mean_of_all_groups_whatever_their_order():
    images = torch.randn(8, 3, 64, 64, dtype=torch.float64)
    found = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        visual = create_model("RN-tiny", vocab_size=500, text_layers=1).visual.double()
        share_statistics(visual, groups=4 // parts, once_a_step=True)
        outputs = torch.cat([visual(part) for part in images.chunk(parts)])
        assert batch_norms(visual)[0].running_mean.eq(0).all()
        settle_statistics(visual)
        settle_statistics(visual)
        assert {int(norm.num_batches_tracked) for norm in batch_norms(visual)} == {1}
        outputs.square().sum().backward()
        values = [outputs, *(p.grad for p in visual.parameters()), *visual.buffers()]
        found.append([value.double() for value in values])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_of_shared_statistics_changes_no_bit(mode):
    images = torch.randn(4, 3, 64, 64)
    found = []
    for recompute in ("none", mode):
        torch.manual_seed(0)
        model = create_model("RN-tiny", vocab_size=500, text_layers=1, recompute=recompute)
        share_statistics(model, groups=2, once_a_step=True)
        model.visual(images).square().sum().backward()
        settle_statistics(model)
        found.append([*(p.grad for p in model.visual.parameters()), *model.visual.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_odd_map_is_pooled_behind_the_shared_batch_norm():
    from clipfast.models.batch_norm import BatchNorm2d

    norm = BatchNorm2d(4)
    x = torch.randn(4, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    want = norm(x, relu=True, pool=True)
    share_statistics(norm, once_a_step=True)
    torch.testing.assert_close(norm(x, relu=True, pool=True), want)


def test_statistics_of_parts_do_not_depend_on_what_was_in_memory():
    """On a GPU each part goes to the library's batch norm, which multiplies what is there by 0."""
    norm = BatchNorm2d(3)
    share_statistics(norm, groups=2)
    x = torch.randn(4, 3, 2, 2)
    before = torch.are_deterministic_algorithms_enabled()
    # Memory that is not written to then holds NaN.
    torch.use_deterministic_algorithms(True)
    try:
        norm._in_parts(x, norm.weight, norm.bias, None, Tail(), 2)
    finally:
        torch.use_deterministic_algorithms(before)
    expected = torch.zeros(3)
    for part in x.chunk(2):
        expected.lerp_(part.mean((0, 2, 3)), 0.1)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize(
    ("options", "made"),
    [({"sync_bn": True}, []), ({"bn_batch": 32}, []), ({"bn_batch": 16}, [[0, 1], [2, 3]])],
)
def test_ranks_that_all_share_statistics_do_so_in_the_group_of_gradients(
    monkeypatch, options, made
):
    """NCCL may wait for ever for two groups at once: it keeps the order within one."""
    found = []
    monkeypatch.setattr("torch.distributed.new_group", lambda ranks: found.append(ranks))
    model = ModelOptions("RN-tiny", compile="none", **options)
    share_norms(plan(ranks=4, rank=2, model=model), nn.Module())
    assert found == made
