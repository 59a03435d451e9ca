"""A small model of odd shapes in a real DeepSpeed engine, its checkpoints, and what is in them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipfast.checkpoint import load_trusted
from clipfast.checkpoint.fragments import SavedTensors
from clipfast.engine import Config, OptimizerConfig, ZeroConfig
from clipfast.engine.deepspeed.half_stage0 import forget_first_step, loss_factor
from clipfast.engine.deepspeed.settings import deepspeed_settings
from clipfast.engine.deepspeed.wrap import initialise_engine, set_learning_rate
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import RunPlan, decide
from clipfast.ops.adamw import decode
from clipfast.optim.states import exact_weight

STAGES = (0, 1, 2, 3)
RANKS = (1, 2, 3, 4)
PAIRS = 24


class Format(NamedTuple):
    """What is kept of weights and statistics.

    Attributes:
        precision: of weights and activations.
        stats: of the statistics.
        image: of the image tower's weights.
        text: of the text tower's.
        parts: micro-batches of a step.
    """

    precision: str
    stats: str
    image: str
    text: str
    parts: int = 1

    def __str__(self) -> str:
        parts = f", {self.parts} micro-batches" if self.parts > 1 else ""
        return f"{self.precision}, {self.stats} statistics, {self.image}/{self.text}{parts}"


FORMATS = [
    *(Format("fp32", stats, "fp32", "stochastic") for stats in ("fp32", "bf16", "fp16")),
    *(
        Format("bf16", stats, image, text)
        for stats in ("fp32", "bf16", "fp16")
        for image, text in (
            ("fp32", "fp32"),
            ("remainder", "stochastic"),
            ("fp32", "remainder"),
            ("stochastic", "stochastic"),
        )
    ),
    # DeepSpeed's optimizer of its own at stage 1, which sums micro-batches in float32.
    Format("bf16", "fp16", "fp32", "fp32", 2),
]


class Scaled(nn.Module):
    """Channels times a gain, and a buffer that counts what came by, in every type of weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.mean.lerp_(x.detach().mean((0, 2, 3)).to(self.mean.dtype), 0.1)
        return x * self.weight.view(-1, 1, 1)


class Small(nn.Module):
    """Towers by name alone; 26,000 parameters, most of them of no round number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 5, 3), Scaled(5), nn.Flatten(), nn.Linear(180, 37))
        self.transformer = nn.Sequential(nn.Linear(37, 301), nn.LayerNorm(301), nn.Linear(301, 32))
        self.logit_scale = nn.Parameter(torch.tensor([0.5]))

    def forward(self, images: Tensor) -> Tensor:
        return self.transformer(self.visual(images)) * self.logit_scale.exp()


def made(kind: Format, stage: int, process: Process) -> RunPlan:
    """The plan of a small run."""
    options = OptimizerConfig(stats=kind.stats, image_weights=kind.image, text_weights=kind.text)
    config = Config(
        optimizer=options,
        zero=ZeroConfig(stage),
        batch_size=PAIRS,
        micro_batch=PAIRS // process.world_size // kind.parts,
        precision=kind.precision,
    )
    return replace(decide(config, process), recompute="none", compile=False)


def build(kind: Format, stage: int, process: Process) -> Any:
    """An engine that has taken no step."""
    # Another number of threads would add otherwise.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan, model = made(kind, stage, process), Small()
    settings = deepspeed_settings(plan)
    # At stage 3 DeepSpeed keeps small parameters whole, and here every one is small.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    engine = initialise_engine(plan, model, build_optimizer(plan, model), settings)
    set_learning_rate(engine, 1e-2)
    engine.own_plan = plan
    return engine


def build_as_before(kind: Format, stage: int, process: Process) -> Any:
    """An engine of earlier versions: DeepSpeed's own arrangement, and its own checkpoints."""
    import deepspeed

    torch.manual_seed(0)
    plan, model = made(kind, stage, process), Small()
    settings = deepspeed_settings(plan)
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    optimizer = build_optimizer(plan, model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    forget_first_step(engine)
    set_learning_rate(engine, 1e-2)
    engine.own_plan = plan
    return engine


def train(engine: Any, numbers: Sequence[int]) -> None:
    """Steps of these numbers. Every rank has the same gradient, so that their mean is the same for
    1, 2 and 4 of them, bit for bit."""
    plan = engine.own_plan
    for number in numbers:
        for micro in range(plan.micro_batches):
            made = torch.Generator().manual_seed(100 * number + micro)
            images = torch.randn(4, 3, 8, 8, generator=made).to(plan.dtype)
            out = engine(images).float()
            engine.backward(out.square().mean() * loss_factor(engine))
            engine.step()


def discard(engine: Any) -> None:
    """Let go of an engine."""
    engine.module.zero_grad(set_to_none=True)
    engine.destroy()


def save(engine: Any, process: Process, folder: Path) -> None:
    """Write a checkpoint's files, without its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.checkpoint_engine.begin()
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    assert engine.checkpoint_engine.error is None
    if process.is_main:
        (folder / "state.json").write_text(json.dumps(engine.contents.state()))
    torch.distributed.barrier()


def load(engine: Any, process: Process, folder: Path) -> None:
    """Load what ``save`` wrote."""
    saved = SavedTensors(sorted(folder.glob("*.safetensors")))
    engine.contents.load(saved, json.loads((folder / "state.json").read_text()))


def load_as_before(engine: Any, folder: Path) -> list[str]:
    """Load what DeepSpeed wrote; returns what there is to say."""
    return engine.contents.load_folder(folder, [], {})


def statistics_as_before(folder: Path, ranks: int) -> Tensor:
    """The values of fp16 statistics that DeepSpeed wrote at stages 1 to 3, of all parameters in any
    order; what pads the ranks' parts is left out where it is no number of a parameter."""
    values = []
    for rank in range(ranks):
        path = next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
        saved = load_trusted(path)["optimizer_state_dict"]
        base = saved.get("base_optimizer_state", saved.get("optimizer_state_dict"))
        for state in base["state"].values():
            for row, key in enumerate(("exp_avg", "exp_avg_sqrt")):
                values.append(decode(state[key], state["exponents"][row].contiguous()))
    return torch.cat(values)


def assembled(folder: Path) -> dict[str, Tensor]:
    """Every parameter's tensors, whole, by name and kind, and the buffers.

    The weight is the exact fp32 one, whoever keeps it; statistics are values and, where there are
    some, codes and exponents.
    """
    saved = SavedTensors(sorted(folder.glob("*.safetensors")))
    found: dict[str, list[Tensor]] = {}
    for name, size in saved.parameters.items():
        for part in saved.read(name, 0, size):
            tensors = dict(part.tensors)
            exact = exact_of(tensors)
            for key in ("weight", "master", "remainder"):
                tensors.pop(key, None)
            found.setdefault(f"{name}: exact weight", []).append(exact)
            if "exponents" in tensors:
                for row, key in enumerate(("exp_avg", "exp_avg_sqrt")):
                    value = decode(tensors[key].contiguous(), tensors["exponents"][row])
                    found.setdefault(f"{name}: value of {key}", []).append(value)
            for key, value in tensors.items():
                found.setdefault(f"{name}: {key}", []).append(value)
    whole = {key: _joined(key, parts) for key, parts in found.items()}
    return whole | {f"buffer {name}": value for name, value in saved.buffers()}


def exact_of(tensors: dict[str, Tensor]) -> Tensor:
    """The exact weight of a stretch."""
    beside = {key: tensors[key] for key in ("master", "remainder") if key in tensors}
    return exact_weight(tensors["weight"], beside)


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    names = sorted(a.keys() | b.keys())
    return [n for n in names if n not in a or n not in b or not _same(a[n], b[n])]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all weights, 2-norm."""
    names = [name for name in a if name.endswith("exact weight")]
    return float(torch.cat([a[name] - b[name] for name in names]).norm())


def _joined(key: str, parts: list[Tensor]) -> Tensor:
    if key.endswith("step"):
        assert all(torch.equal(part, parts[0]) for part in parts), key
        return parts[0]
    return torch.cat(parts, dim=-1)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )
