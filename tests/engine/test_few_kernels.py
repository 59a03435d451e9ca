"""Overflows and norms of all gradients at a time: few kernels, the same steps."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.engine import OptimizerConfig
from clipfast.engine.deepspeed import wrap
from clipfast.engine.optimizer import build_optimizer
from tests.engine.launching import free_port, start_rank
from tests.engine.state_cases import plan_of, tiny_model
from tests.ranks import run_ranks

# 2 has the optimizer of 1.
STAGES = (0, 1, 3)
LOOKS = {"abs", "amax", "amin", "isfinite", "linalg_vector_norm", "_foreach_norm"}


class Looks(TorchDispatchMode):
    """Counts operators that only look at tensors, and reads by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in LOOKS
        self.reads += name == "_local_scalar_dense"
        return function(*args, **(kwargs or {}))


def backward(engine, rank: int, broken: bool = False) -> None:
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(2, 3, 64, 64, generator=generator).bfloat16()
    tokens = torch.tensor([[1, 2, 3, 499], [4, 5, 6, 499]])
    image_features, text_features, scale = engine(images, tokens)
    loss = scale.sum() * (image_features * text_features).float().sum()
    engine.backward(loss * float("inf") if broken and rank == 1 else loss)


def weights_of(engine) -> torch.Tensor:
    parts = []
    for parameter in engine.module.parameters():
        part = getattr(parameter, "ds_tensor", parameter).detach().float().flatten()
        # At stage 3 the last rank's part ends in what nobody has set.
        before = dist.get_rank() * len(part) if hasattr(parameter, "ds_tensor") else 0
        parts.append(part[: max(0, getattr(parameter, "ds_numel", len(part)) - before)])
    return torch.cat(parts)


def train(stage: int, process) -> dict:
    """Two steps, the second with a gradient of rank 1 that is no number."""
    torch.manual_seed(0)
    plan = replace(
        plan_of(("bf16", stage, OptimizerConfig(lr=1e-2)), process.world_size), process=process
    )
    model = tiny_model()
    parameters = len(list(model.parameters()))
    engine = wrap.initialise_engine(plan, model, build_optimizer(plan, model))
    wrap.set_learning_rate(engine, 1e-2)
    backward(engine, process.rank)
    with Looks() as looks:
        engine.step()
    norm, moved = float(engine.get_global_grad_norm()), weights_of(engine)
    backward(engine, process.rank, broken=True)
    engine.step()
    skipped = engine.skipped_steps, torch.equal(moved, weights_of(engine))
    engine.destroy()
    return {
        "parameters": parameters,
        "looks": looks.count,
        "reads": looks.reads,
        "norm": norm,
        "weights": moved,
        "skipped": skipped,
    }


def both(port: int) -> list[tuple[dict, dict]]:
    """With and without what is tested, for each of DeepSpeed's optimizers."""
    process, found = start_rank(port), []
    for stage in STAGES:
        ours = train(stage, process)
        kept, wrap.look_once = wrap.look_once, lambda engine: None
        try:
            found.append((ours, train(stage, process)))
        finally:
            wrap.look_once = kept
        dist.barrier()
    return found


def test_a_step_looks_at_all_gradients_at_a_time_and_stays_the_same():
    for ranks in run_ranks(2, both, free_port()):
        for stage, (ours, theirs) in zip(STAGES, ranks, strict=True):
            assert ours["skipped"] == theirs["skipped"] == (1, True), stage
            assert torch.equal(ours["weights"], theirs["weights"]), stage
            assert abs(ours["norm"] / theirs["norm"] - 1) < 1e-6, stage
            # Stage 0 asks each parameter for its norm, and no more.
            most = ours["parameters"] + 10 if stage == 0 else 40
            assert ours["looks"] <= most, (stage, ours["looks"])
            assert ours["reads"] <= 20, (stage, ours["reads"])
            if stage == 1:
                assert theirs["looks"] > 3 * ours["looks"], stage
