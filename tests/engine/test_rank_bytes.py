"""Bytes of a rank by part, the micro-batch that they leave, and decisions for GPUs elsewhere."""

import pytest
import torch

from clipfast.devices import PlannedGpu
from clipfast.engine import Config, ConfigError, ModelOptions
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.rank_bytes import largest_micro_batch, rank_bytes
from clipfast.engine.recomputation import HOLES
from clipfast.loss.workspace import planned_memory, share_of
from tests.engine.plans import EXACT, PAPER, plan

V100 = PlannedGpu("V100", (7, 0), 34_000_000_000)
A100 = PlannedGpu("A100", (8, 0), 85_000_000_000)


def planned(gpu: PlannedGpu, ranks: int = 8, **options) -> RunPlan:
    options = {"model": ModelOptions("RN-tiny"), "batch_size": 512, **options}
    process = Process(0, 0, ranks, ranks, torch.device("cuda", 0), planned=gpu)
    return decide(Config(**options), process)


def test_decide_takes_a_planned_gpu_for_what_it_is():
    old, new = planned(V100), planned(A100)
    assert (old.dtype, old.compile) == (torch.float16, False)
    assert (new.dtype, new.compile) == (torch.bfloat16, True)
    assert planned(A100, precision="tf32").uses_tf32
    for precision in ("bf16", "tf32"):
        with pytest.raises(ConfigError, match="V100 has no"):
            planned(V100, precision=precision)


def test_rank_bytes_count_a_loss_on_a_card_by_its_memory():
    made = planned(A100, ranks=1, batch_size=65_536, micro_batch=64)
    counted = []
    for total in (V100.memory, A100.memory):
        with planned_memory(total):
            counted.append(rank_bytes(made, 20).loss)
    # 8 GiB of logits are too many to keep on either: a share of its memory is worked on.
    assert counted[1] - counted[0] == share_of(A100.memory, A100.memory) - share_of(
        V100.memory, V100.memory
    )


def test_rank_bytes_of_micro_batches_hold_features_instead_of_activations():
    whole, cut = (
        rank_bytes(plan(batch_size=64), 20),
        rank_bytes(plan(batch_size=64, micro_batch=8), 20),
    )
    assert whole.features == 0 < cut.features
    assert cut.activations < whole.activations
    assert whole.passing == whole.activations + whole.loss
    assert cut.passing == cut.features + max(cut.activations, cut.loss)
    assert whole.images == 8 * cut.images == 64 * 3 * 64**2 * 4


def test_rank_bytes_on_a_cpu_hold_what_its_heap_grows_beyond_what_lives():
    here, card = plan(batch_size=64), planned(A100, ranks=1, precision="fp32", batch_size=64)
    ours, theirs = rank_bytes(here, 20), rank_bytes(card, 20)
    assert ours.holes == int(HOLES * (ours.passing + ours.states.gradients + ours.states.passing))
    assert theirs.holes == theirs.process == 0
    assert ours.total - ours.holes == (
        ours.states.total + ours.passing + ours.images + ours.decoder
    )
    # Of two ranks at stage 0 gradients lie in a row once activations are gone.
    both = rank_bytes(plan(batch_size=2, ranks=2, stage=0), 20)
    assert both.passing == both.flattened == both.states.gradients > both.activations


def test_largest_micro_batch_fits_and_the_next_one_does_not():
    made = plan(PAPER, "bf16", ranks=2, batch_size=256)
    needs = {m: rank_bytes(made.with_micro_batch(m), 20).total for m in (64, 32)}
    assert largest_micro_batch(made, needs[32], 20) == 32
    assert largest_micro_batch(made, needs[64] - 1, 20) == 32
    assert largest_micro_batch(made, 1_000_000, 20) is None


def test_largest_micro_batch_is_the_whole_share_where_its_sums_would_need_more():
    made = plan(EXACT, "bf16", ranks=2, batch_size=64)
    whole, half = (rank_bytes(made.with_micro_batch(m), 20).total for m in (32, 16))
    assert whole < half
    assert largest_micro_batch(made, whole, 20) == 32


def test_with_micro_batch_takes_every_decision_again():
    made = plan(PAPER, "bf16", ranks=2, batch_size=64).with_recompute("full", "given")
    assert (made.stage, made.sums_in_float32) == (1, False)
    cut = made.with_micro_batch(8)
    assert (cut.stage, cut.sums_in_float32, cut.micro_batches) == (2, True, 4)
    assert (cut.recompute, cut.recompute_note) == ("full", "given")
