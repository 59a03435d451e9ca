"""What the engine makes of the options for statistics and weights, and what that takes."""

import pytest
import torch

from clipfast.engine import Config, OptimizerConfig, ZeroConfig
from clipfast.engine.deepspeed.settings import deepspeed_config
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import (
    build_optimizer,
    describe,
    optimizer_holds_masters,
    sums_in_float32,
    zero_stage,
)
from clipfast.engine.recomputation import state_bytes
from clipfast.models import create_model
from tests.engine.state_cases import DTYPES, cases, measure, tiny_model

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PAPER = OptimizerConfig(stats="fp16", image_weights="remainder", text_weights="stochastic")
EXACT = OptimizerConfig()


def config(optimizer=PAPER, stage="auto", **options) -> Config:
    return Config(optimizer=optimizer, zero=ZeroConfig(stage=stage), batch_size=32, **options)


@pytest.mark.parametrize(
    ("made", "dtype", "ranks", "stage"),
    [
        (config(EXACT), FP32, 1, 0),
        (config(EXACT), FP32, 8, 1),
        (config(EXACT), BF16, 1, 1),
        (config(EXACT, micro_batch=4), BF16, 2, 1),
        (config(PAPER), FP32, 1, 0),
        (config(PAPER), BF16, 1, 1),
        (config(PAPER, micro_batch=4), BF16, 2, 2),
        (config(PAPER, micro_batch=4), FP16, 2, 1),
        (config(PAPER, stage=3), FP32, 1, 3),
        (config(PAPER, stage=1, micro_batch=4), BF16, 2, 1),
    ],
)
def test_zero_stage_shares_where_that_helps_and_sums_in_float32(made, dtype, ranks, stage):
    assert zero_stage(made, dtype, ranks) == stage


def test_deepspeed_leaves_bf16_masters_to_the_optimizer_where_a_policy_asks():
    for stage in range(4):
        bf16 = deepspeed_config(config(stage=stage), BF16, 2)["bf16"]
        assert bf16["bf16_master_weights_and_grads"] == bf16["bf16_optimizer_states"] == (stage > 0)
        assert not deepspeed_config(config(EXACT, stage), BF16, 2)["bf16"]["bf16_optimizer_states"]
        assert not optimizer_holds_masters(PAPER, FP16, stage)
        assert not optimizer_holds_masters(PAPER, FP32, stage)


def test_micro_batches_are_summed_in_float32_but_where_deepspeed_cannot():
    sums = [
        [
            sums_in_float32(config(options, stage, micro_batch=4), BF16, 2)
            == ("data_types" in deepspeed_config(config(options, stage, micro_batch=4), BF16, 2))
            and sums_in_float32(config(options, stage, micro_batch=4), BF16, 2)
            for stage in range(4)
        ]
        for options in (EXACT, PAPER)
    ]
    assert sums == [[False, True, True, True], [False, False, True, True]]
    assert not sums_in_float32(config(stage=2), BF16, 2)
    assert not sums_in_float32(config(stage=2, micro_batch=4), FP32, 2)


def test_build_optimizer_gives_ranks_that_share_random_bits_of_their_own():
    model = create_model("ViT-tiny", vocab_size=500)
    for stage, apart in ((0, False), (1, True)):
        numbers = []
        for rank in range(2):
            process = Process(rank, rank, 2, 2, torch.device("cpu"))
            optimizer = build_optimizer(config(stage=stage), process, FP16, model)
            assert {group["lr"] for group in optimizer.param_groups} == {0.0}
            assert {group["weights_dtype"] for group in optimizer.param_groups} == {None, FP16}
            numbers.append(optimizer._next_element)
        assert (numbers[0] != numbers[1]) == apart
    alone = Process(0, 0, 1, 1, torch.device("cpu"))
    assert build_optimizer(config(), alone, FP32, model).skip_nonfinite
    assert not build_optimizer(config(), alone, BF16, model).skip_nonfinite


def test_describe_says_where_float32_copies_stay_and_where_bf16_is_summed():
    assert describe(config(EXACT), BF16, 1) == []
    assert len(describe(config(), BF16, 1)) == 1
    assert "values of fp16" in describe(config(stage=2), FP16, 1)[1]
    assert "values of bf16" in describe(config(stage=0), BF16, 1)[1]
    assert "--zero-stage 2" in describe(config(stage=1, micro_batch=4), BF16, 1)[1]


@pytest.mark.slow
def test_state_bytes_are_those_that_tensors_hold_in_every_format_at_every_stage():
    formats = (
        ("fp32", ("fp32", "fp32")),
        ("fp16", ("remainder", "stochastic")),
        ("bf16", ("stochastic", "fp32")),
    )
    paper = cases(formats[1:2])
    # In float32 the optimizer keeps no weights, whatever the policy: one format will do.
    one = [case for case in cases(formats) if case[0] == "bf16" or case in paper]
    largest = 4 * max(p.numel() for p in tiny_model().parameters())
    for ranks, of in ((1, one), (2, [paper[5], paper[7]])):
        for (precision, stage, options), held in zip(of, measure(of, ranks), strict=True):
            counted = state_bytes(tiny_model(), options, DTYPES[precision], stage, ranks)
            case = f"{precision}, ZeRO {stage} on {ranks}, {options}"
            # What is not counted: step counts, padding, and the ends of blocks of 256.
            assert held.weights == pytest.approx(counted.weights, rel=2e-3), case
            assert held.optimizer == pytest.approx(counted.optimizer, rel=2e-3), case
            if ranks == 1 or stage > 1:
                # Now and then DeepSpeed still holds the last gradient of the largest parameter.
                assert held.gradients >= counted.gradients * (1 - 2e-3), case
                assert held.gradients <= counted.gradients * (1 + 2e-3) + largest, case
            else:
                # Other ranks' parts are gone by the end of the backward pass; counted is its peak.
                assert counted.gradients / 2 <= held.gradients <= counted.gradients, case
