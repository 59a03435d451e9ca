"""Which checkpoint mode a run takes, from counted needs and the memory that is free."""

import pytest
import torch
import torch.distributed as dist

from clipfast.data import TrainLoader
from clipfast.engine import Config, ConfigError, DataConfig, ModelConfig, OptimizerConfig
from clipfast.engine import recomputation as engine_memory
from clipfast.engine.launch import Process
from clipfast.engine.recomputation import (
    caption_tokens,
    free_bytes,
    resolve_checkpoint,
    state_bytes,
)
from clipfast.engine.setup import compiles_blocks
from clipfast.models import create_model
from clipfast.models.config import get_config
from clipfast.models.memory import activation_bytes
from clipfast.tokenizer import tokenize_with_lengths

ALONE = Process(0, 0, 1, 1, torch.device("cpu"))
FP32 = torch.float32


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def loader() -> TrainLoader:
    return TrainLoader(["sample/noto"], 64, 32, threads=1)


def config(checkpoint: str, **options) -> Config:
    model = ModelConfig("RN-tiny", checkpoint=checkpoint)
    return Config(model=model, data=DataConfig(train=("sample",)), batch_size=64, **options)


def test_resolve_checkpoint_leaves_a_given_mode_alone(loader):
    resolved = resolve_checkpoint(config("full"), ALONE, FP32, loader)
    assert (resolved.mode, resolved.line) == ("full", "")


def test_resolve_checkpoint_takes_the_fastest_mode_that_fits(loader, process_group, monkeypatch):
    tokens = caption_tokens(loader)
    needs = {
        mode: activation_bytes(get_config("RN-tiny"), 64, FP32, mode, caption_tokens=tokens).peak
        for mode in ("none", "selective", "full")
    }
    with torch.device("meta"):
        states = state_bytes(create_model("RN-tiny"), OptimizerConfig(), FP32, 0, 1).total

    def resolved_with(activations: float, **options) -> tuple[str, str]:
        free = (states + activations) / (1 - engine_memory._MARGIN) + engine_memory._SLACK
        monkeypatch.setattr(engine_memory, "free_bytes", lambda process: int(free))
        found = resolve_checkpoint(config("auto", **options), ALONE, FP32, loader)
        return found.mode, found.line

    room = 64 * 64 * 4 + 1000  # the strip of logits
    assert resolved_with(needs["none"] + room)[0] == "none"
    between = (needs["none"] + needs["selective"]) / 2
    mode, line = resolved_with(between)
    assert mode == "selective"
    assert line.startswith("checkpoint: auto -> selective (activations 0.")
    mode, line = resolved_with(needs["full"] * 0.6)
    assert mode == "full"
    assert "--micro-batch 32 should fit" in line
    # A micro-batch needs its own activations alone.
    assert resolved_with(needs["none"] * 0.6, micro_batch=32)[0] == "none"


def test_state_bytes_of_the_zero_stages():
    with torch.device("meta"):
        model = torch.nn.Linear(1000, 999)
    count, half, exact = 1_000_000 - 1000 + 999, torch.bfloat16, OptimizerConfig()
    # Weights, gradients and Adam's two moments, in float32.
    assert state_bytes(model, exact, FP32, 0, 1).total == 16 * count
    # Half-precision weights and gradients beside master, moments and one float32 gradient.
    assert state_bytes(model, exact, half, 1, 1).total == 20 * count
    assert state_bytes(model, exact, half, 1, 8).total == round((4 + 16 / 8 + 4) * count)
    stages = [state_bytes(model, exact, half, stage, 64, sums=True).total for stage in (1, 2)]
    assert stages[0] > stages[1]


def test_state_bytes_of_the_papers_combination():
    with torch.device("meta"):
        model = create_model("RN50")
    image = sum(p.numel() for p in model.visual.parameters())
    count = sum(p.numel() for p in model.parameters())
    paper = OptimizerConfig(stats="fp16", image_weights="remainder", text_weights="stochastic")
    held = state_bytes(model, paper, torch.bfloat16, 1, 1)
    # Beside the bf16 weights: DeepSpeed's copy of them, fp16 moments and their exponents.
    assert held.optimizer == pytest.approx(count * (2 + 4 + 2 / 256) + 2 * image, abs=10)
    # fp16 on an older GPU: float32 masters and fp16 moments.
    held = state_bytes(model, paper, torch.float16, 1, 1)
    assert held.optimizer == pytest.approx(count * (4 + 4 + 2 / 256), abs=10)


def test_free_bytes_are_shared_by_the_ranks_of_a_node():
    both = Process(0, 0, 2, 2, torch.device("cpu"))
    assert 0 < free_bytes(both) < 0.7 * free_bytes(ALONE)


def test_caption_tokens_is_near_the_samples_mean(loader):
    table = loader.reader.table(0)
    captions = [loader.reader.caption(0, row) for row in range(len(table))]
    mean = tokenize_with_lengths(captions)[1].double().mean().item()
    assert mean <= caption_tokens(loader) <= 1.4 * mean + 1


def test_compiles_blocks_needs_a_gpu_unless_asked_for():
    blocks = Config(model=ModelConfig("RN-tiny", compile="blocks"))
    assert not compiles_blocks(Config(), ALONE, stage=1, checkpoint="none")
    assert compiles_blocks(blocks, ALONE, stage=2, checkpoint="full")
    with pytest.raises(ConfigError, match=r"--model\.compile none, or --zero-stage 2"):
        compiles_blocks(blocks, ALONE, stage=3, checkpoint="none")
    with pytest.raises(ConfigError, match=r"--model\.checkpoint full, or --model\.compile none"):
        compiles_blocks(blocks, ALONE, stage=1, checkpoint="selective")
