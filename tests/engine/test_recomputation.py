"""Which mode of recomputation a run takes, from counted needs and the memory that is free."""

from dataclasses import replace

import pytest
import torch

from clipfast.data import TrainLoader
from clipfast.engine import Config, DataConfig, ModelOptions
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.recomputation import (
    HOLES,
    MARGIN,
    SLACK,
    activation_peak,
    free_bytes,
    resolve_recomputation,
)
from clipfast.engine.state_bytes import state_bytes
from clipfast.loss.workspace import needed_bytes
from clipfast.models import create_model
from clipfast.models.catalogue import get_config
from clipfast.tokenizer import tokenize_with_lengths

ALONE = Process(0, 0, 1, 1, torch.device("cpu"))
FP32 = torch.float32


@pytest.fixture(scope="module")
def loader() -> TrainLoader:
    return TrainLoader(["sample/noto"], 64, 32, threads=1)


@pytest.fixture(scope="module")
def needs(loader) -> dict[str, int]:
    """Bytes of activations in each mode."""
    tokens = loader.caption_tokens()
    return {
        mode: activation_peak(plan(mode, "none"), tokens) for mode in ("none", "selective", "full")
    }


def plan(recompute: str, compile: str = "auto", **options) -> RunPlan:
    model = ModelOptions("RN-tiny", recompute=recompute, compile=compile)
    data = DataConfig(train=("sample",))
    return decide(Config(model=model, data=data, batch_size=64, **options), ALONE)


def resolved_with(activations: float, loader: TrainLoader, made: RunPlan) -> RunPlan:
    """A plan resolved where this much is left for activations, beside a heap's holes."""
    with torch.device("meta"):
        states = state_bytes(made, create_model("RN-tiny"))
    holes = HOLES * (activations + states.gradients + states.passing)
    free = int((states.total + activations + holes) / (1 - MARGIN) + SLACK)
    return resolve_recomputation(made, loader, free=lambda process: free)


def test_resolve_recomputation_leaves_a_given_mode_alone(loader):
    given = plan("full")
    assert resolve_recomputation(given, loader) is given


def test_resolve_recomputation_takes_the_fastest_mode_that_fits(loader, needs, process_group):
    width = get_config("RN-tiny").embed_dim
    room = needed_bytes(64, 64, width, FP32, torch.device("cpu")) + 1000  # the loss
    short = resolved_with(needs["none"] + room - 3000, loader, plan("auto"))
    assert short.recompute == "selective"
    assert resolved_with(needs["none"] + room, loader, plan("auto")).recompute == "none"
    between = (needs["none"] + needs["selective"]) / 2
    found = resolved_with(between, loader, plan("auto"))
    assert found.recompute == "selective"
    assert found.recompute_note.startswith("recompute: auto -> selective (activations 0.")
    found = resolved_with(needs["full"] * 0.6, loader, plan("auto"))
    assert found.recompute == "full"
    assert "--micro-batch 32 should fit" in found.recompute_note
    # A micro-batch needs its own activations alone.
    halves = plan("auto", micro_batch=32)
    half = activation_peak(plan("none", "none", micro_batch=32), loader.caption_tokens())
    assert resolved_with(half * 1.1, loader, halves).recompute == "none"


def test_resolve_recomputation_counts_compiled_blocks_where_the_run_compiles(
    loader, needs, process_group
):
    # Compiled blocks keep 15% more, and no less in selective mode.
    between = needs["none"] * 1.1
    assert resolved_with(between, loader, plan("auto", "none")).recompute == "none"
    found = resolved_with(between, loader, plan("auto", "blocks"))
    assert (found.recompute, found.compile) == ("full", True)


def test_free_bytes_are_shared_by_the_ranks_of_a_node():
    both = replace(ALONE, world_size=2, local_world_size=2)
    assert 0 < free_bytes(both) < 0.7 * free_bytes(ALONE)


def test_caption_tokens_is_near_the_samples_mean(loader):
    table = loader.reader.table(0)
    captions = [loader.reader.caption(0, row) for row in range(len(table))]
    mean = tokenize_with_lengths(captions)[1].double().mean().item()
    assert mean <= loader.caption_tokens() <= 1.4 * mean + 1
