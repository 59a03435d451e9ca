"""What DeepSpeed and the optimizer hold between and during steps, measured and as a table."""

import gc
import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.engine import Config, OptimizerConfig, ZeroConfig
from clipfast.engine.deepspeed.settings import deepspeed_settings
from clipfast.engine.deepspeed.wrap import initialise_engine
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.state_bytes import StateBytes
from clipfast.models import create_model
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks

STATS = ("fp32", "bf16", "fp16")
# Of the image and of the text tower.
WEIGHTS = (
    ("fp32", "fp32"),
    ("remainder", "remainder"),
    ("remainder", "stochastic"),
    ("stochastic", "stochastic"),
)
SMALL = {"vocab_size": 500, "text_layers": 1, "vision_layers": 1}
PRECISIONS = ("fp32", "bf16")
Case = tuple[str, int, OptimizerConfig]
Format = tuple[str, tuple[str, str]]


def cases(formats: Iterable[Format] | None = None) -> list[Case]:
    """Every precision that a CPU trains in, stage of ZeRO, and kind of statistics and weights."""
    formats = tuple(formats or itertools.product(STATS, WEIGHTS))
    return [
        (precision, stage, OptimizerConfig(stats=stats, image_weights=image, text_weights=text))
        for precision, stage, (stats, (image, text)) in itertools.product(
            PRECISIONS, range(4), formats
        )
    ]


def tiny_model() -> nn.Module:
    """A CLIP of 1.5M parameters, 60% of them in the image tower."""
    return create_model("ViT-tiny", **SMALL)


def measure(of: list[Case], ranks: int = 1) -> list[StateBytes]:
    """Bytes that rank 0 holds in each case, summed over all tensors there are; nothing passing."""
    measured = run_ranks(ranks, _measure_all, of, free_port())[0]
    return [StateBytes(*counts) for counts in measured]


def table(ranks: int = 1) -> str:
    """The measured bytes a parameter of each arrangement that differs, in Markdown."""
    of = cases()
    parameters = sum(p.numel() for p in tiny_model().parameters())
    lines = [
        "| precision | ZeRO | statistics | image weights | text weights | weights | gradients "
        "| optimizer | sum |",
        "| --- " * 9 + "|",
    ]
    for (precision, stage, options), held in zip(of, measure(of, ranks), strict=True):
        numbers = (held.weights, held.gradients, held.optimizer, held.total)
        lines.append(
            f"| {precision} | {stage} | {options.stats} | {options.image_weights} "
            f"| {options.text_weights} | "
            + " | ".join(f"{number / parameters:.2f}" for number in numbers)
            + " |"
        )
    return "\n".join(lines)


def plan_of(case: Case, ranks: int = 1) -> RunPlan:
    """The plan of rank 0 of some, two pairs each."""
    precision, stage, options = case
    config = Config(
        optimizer=options, zero=ZeroConfig(stage), batch_size=2 * ranks, precision=precision
    )
    return decide(config, Process(0, 0, ranks, ranks, torch.device("cpu")))


def _measure_all(of: list[Case], port: int) -> list[tuple[int, int, int]]:
    process = start_rank(port)
    plans = (plan_of(case, process.world_size) for case in of)
    return [_measure(replace(plan, process=process)) for plan in plans]


def _measure(plan: RunPlan) -> tuple[int, int, int]:
    gc.collect()
    # What exists by now is looked at no more, which also makes every look quick.
    gc.freeze()
    model, dtype = tiny_model(), plan.dtype
    settings = _without_persistent_parameters(plan)
    engine = initialise_engine(plan, model, build_optimizer(plan, model), settings)
    del model
    _backward(engine, dtype)
    engine.step()
    weights = _storages(getattr(p, "ds_tensor", p.data) for p in engine.module.parameters())
    buffers = _storages(engine.module.buffers())
    # Stage 3 keeps the place of its gradients, the others make it anew.
    place = _storages(
        getattr(engine.optimizer, "grad_partitions_flat_buffer", torch.empty(0))[None]
    )
    optimizer = _without(_storages(), weights, buffers, place)
    _backward(engine, dtype)
    gradients = _without(_storages(), weights, buffers, optimizer)
    held = tuple(sum(part.values()) for part in (weights, gradients, optimizer))
    # DeepSpeed's engines are never collected; their gradients would show up in the next one's.
    engine.module.zero_grad(set_to_none=True)
    engine.destroy()
    return held


def _without_persistent_parameters(plan: RunPlan) -> dict[str, Any]:
    """At stage 3 DeepSpeed keeps small parameters whole; here every one is small."""
    settings = deepspeed_settings(plan)
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    settings["zero_optimization"]["reduce_bucket_size"] = 1000
    return settings


def _backward(engine, dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 64, 64, dtype=dtype)
    tokens = torch.tensor([[1, 2, 3, 499], [4, 5, 6, 499]])
    image_features, text_features, logit_scale = engine(images, tokens)
    engine.backward(logit_scale.sum() * (image_features * text_features).float().sum())


def _storages(tensors=None) -> dict[int, int]:
    """Bytes of each storage behind some tensors; by default behind all that there are."""
    if tensors is None:
        gc.collect()
        tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
        tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    storages = [t.untyped_storage() for t in tensors if t.device.type != "meta"]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _without(storages: dict[int, int], *others: dict[int, int]) -> dict[int, int]:
    known = set().union(*others)
    return {key: size for key, size in storages.items() if key not in known}
