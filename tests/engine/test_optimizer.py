"""What the engine makes of the options for statistics and weights."""

import torch

from clipfast.engine import OptimizerConfig
from clipfast.engine.deepspeed.settings import deepspeed_settings
from clipfast.engine.optimizer import build_optimizer, describe
from clipfast.models import create_model
from tests.engine.plans import EXACT, PAPER, plan


def test_deepspeed_leaves_bf16_masters_to_the_optimizer_where_a_policy_asks():
    for stage in range(4):
        bf16 = deepspeed_settings(plan(PAPER, "bf16", stage, 2))["bf16"]
        assert bf16["bf16_master_weights_and_grads"] == bf16["bf16_optimizer_states"] == (stage > 0)
        exact = deepspeed_settings(plan(EXACT, "bf16", stage, 2))["bf16"]
        assert exact["enabled"]
        assert not exact["bf16_optimizer_states"]


def test_deepspeed_sums_in_float32_where_the_plan_says_so():
    for options in (EXACT, PAPER):
        for stage in range(4):
            made = plan(options, "bf16", stage, 2, micro_batch=4)
            settings = deepspeed_settings(made)
            assert made.sums_in_float32 == ("data_types" in settings)
            assert settings["gradient_accumulation_steps"] == made.micro_batches == 4


def test_build_optimizer_gives_ranks_that_share_random_bits_of_their_own():
    model = create_model("ViT-tiny", vocab_size=500)
    for stage, apart in ((0, False), (1, True)):
        numbers = []
        for rank in range(2):
            made = plan(PAPER, "fp16", stage, 2, rank=rank)
            optimizer = build_optimizer(made, model)
            assert {group["lr"] for group in optimizer.param_groups} == {0.0}
            grids = {group["weights_dtype"] for group in optimizer.param_groups}
            assert grids == {None, torch.float16}
            numbers.append(optimizer._next_element)
        assert (numbers[0] != numbers[1]) == apart
    assert build_optimizer(plan(PAPER, "fp32"), model).skip_nonfinite
    assert not build_optimizer(plan(PAPER, "bf16"), model).skip_nonfinite


def test_build_optimizer_rounds_as_a_benchmark_asks():
    model = create_model("ViT-tiny", vocab_size=500)
    assert build_optimizer(plan(PAPER), model).rounding == "stochastic"
    assert build_optimizer(plan(PAPER), model, rounding="nearest").rounding == "nearest"


def test_describe_says_where_float32_copies_stay_and_where_bf16_is_summed():
    assert describe(plan(OptimizerConfig(), "bf16")) == []
    assert len(describe(plan(PAPER, "bf16"))) == 1
    assert "values of fp16" in describe(plan(PAPER, "fp16", 2))[1]
    assert "values of bf16" in describe(plan(PAPER, "bf16", 0))[1]
    assert "--zero-stage 2" in describe(plan(PAPER, "bf16", 1, micro_batch=4))[1]
