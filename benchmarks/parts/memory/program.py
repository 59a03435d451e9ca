"""One case's steps, and the check that comes before all: each the whole of a process.

Started with a JSON object of the case's fields, ``shards`` and ``steps``; the last line of what is
printed is a JSON object of what was found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.memory.cases import Case, config_of
from clipfast.data import TrainLoader
from clipfast.data.batch import TrainingData
from clipfast.engine.builders import Builders, build_loader
from clipfast.engine.deepspeed.wrap import set_learning_rate
from clipfast.engine.launch import current_process, keep_freed_memory, start
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.step import train_step
from clipfast.loss.workspace import needed_bytes

START = ["-c", "from benchmarks.parts.memory.program import measure; measure()"]
CHECK = ["-c", "from benchmarks.parts.memory.program import check; check()"]
# Rounding of a loss of some units in float32, over sums of 1,024 terms.
TOLERANCE = 2e-5


def measure() -> None:
    """Train some steps of a case; memory at the start and at the peak, and what it is made of."""
    case, shards, steps = _arguments()
    plan, engine, loader = _built(case, shards)
    before = _memory("VmRSS")
    batches = iter(loader)
    losses, seconds, user = [], [], []
    for _ in range(steps):
        began, worked = time.perf_counter(), time.process_time()
        loss, _ = train_step(engine, next(batches), plan.micro_batches, plan.objective)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        user.append(time.process_time() - worked)
    peak = _memory("VmHWM")
    _tell(
        {
            "losses": losses,
            "seconds": seconds,
            "cpu_seconds": user,
            "before_bytes": before,
            "peak_bytes": peak,
            "counted": counted(case, plan, loader),
        }
    )


def check() -> None:
    """Hold a step by micro-batches to the loss of the whole batch, and to whole decoding.

    Raises:
        CheckFailed: They differ.
    """
    case, shards, _ = _arguments()
    plan, engine, loader = _built(dataclasses.replace(case, form="whole"), shards)
    parts = next(iter(loader)).parts(plan.micro_batches)
    # A batch norm's statistics are those of a micro-batch, here and in a step.
    with torch.no_grad():
        features = [engine(part.images, part.tokens, lengths=part.lengths) for part in parts]
    images, texts = (torch.cat([f[i] for f in features]) for i in (0, 1))
    expected = _whole_loss(images, texts, features[0][2])
    ends = {}
    for form in ("whole", "crops", "files"):
        plan, engine, loader = _built(dataclasses.replace(case, form=form), shards)
        batches = iter(loader)
        loss, _ = train_step(engine, next(batches), plan.micro_batches, plan.objective)
        weights = torch.cat([p.detach().flatten() for p in engine.module.parameters()])
        ends[form] = loss.item(), weights
        error = abs(loss.item() - expected) / expected
        if not error < TOLERANCE:
            raise CheckFailed(
                f"{form}: the loss by micro-batches is {loss.item()}, that of the whole batch "
                f"{expected}"
            )
    for form in ("crops", "files"):
        loss, weights = ends[form]
        if loss != ends["whole"][0] or not torch.equal(weights, ends["whole"][1]):
            raise CheckFailed(f"{form}: a step ends in other bits than with whole decoding")
    _tell({"loss": ends["whole"][0], "expected": expected, "error": error})


def counted(case: Case, plan: RunPlan, loader: TrainLoader) -> dict[str, int]:
    """Bytes that have to grow with the batch, by what they are."""
    batch, width = case.batch, plan.architecture.embed_dim
    crops = batch * 3 * loader.image_size**2
    tables = [loader.reader.table(shard) for shard in range(len(loader.shards))]
    files = sum(int(table.image_size.sum()) for table in tables)
    each = files / sum(len(table) for table in tables)
    return {
        # Of images and texts, by micro-batch and joined; their gradients are the workspace's.
        "features": 2 * 2 * batch * width * 4,
        "workspace": needed_bytes(batch, batch, width, torch.float32, torch.device("cpu")),
        "kept": {"crops": crops, "files": int(batch * each), "whole": 4 * crops}[case.form],
    }


def _whole_loss(images: Tensor, texts: Tensor, scale: Tensor) -> float:
    """Figure 3 of the paper, in float64."""
    images, texts = (torch.nn.functional.normalize(t.double(), dim=1) for t in (images, texts))
    logits = scale.double() * images @ texts.T
    own = logits.diagonal()
    return float((logits.logsumexp(0) + logits.logsumexp(1) - 2 * own).mean() / 2)


def _arguments() -> tuple[Case, list[str], int]:
    given: dict[str, Any] = json.loads(sys.argv[1])
    shards, steps = given.pop("shards"), given.pop("steps")
    return Case(**given), shards, steps


def _built(case: Case, shards: list[str]) -> tuple[RunPlan, Any, TrainLoader]:
    process = current_process()
    plan = decide(config_of(case, shards), process)
    if not dist.is_initialized():
        start(process)

    def loader_of(plan: RunPlan) -> TrainingData:
        loader = build_loader(plan)
        assert isinstance(loader, TrainLoader)
        if case.form == "files":
            loader.keep_bytes = 0
        elif case.form == "whole":
            loader.micro_batch = case.batch
        return loader

    builders = Builders(loader=loader_of)
    loader = builders.loader(plan)
    torch.manual_seed(plan.config.seed)
    engine = builders.build_engine(plan)
    engine.train()
    set_learning_rate(engine, plan.config.optimizer.lr)
    keep_freed_memory()
    assert isinstance(loader, TrainLoader)
    return plan, engine, loader


def _memory(field: str) -> int:
    """Bytes of this process, by the name that the kernel gives them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _tell(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    # Threads of the decoder need no farewell.
    os._exit(0)
