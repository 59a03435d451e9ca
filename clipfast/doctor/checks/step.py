"""Steps of the run's model in its precision, on random pairs: finite, repeatable, how fast."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from clipfast.data import ImageTextBatch
from clipfast.doctor.check import Check, Seen
from clipfast.doctor.checks.ceilings import synchronize
from clipfast.doctor.checks.group import needs_group
from clipfast.doctor.finding import Finding, failure, ok, size, warning
from clipfast.doctor.situation import Situation
from clipfast.engine import cpu_products
from clipfast.engine.builders import Builders
from clipfast.engine.deepspeed.wrap import set_learning_rate
from clipfast.engine.micro_batch import resolve_memory
from clipfast.engine.plan import RunPlan
from clipfast.engine.step import train_step
from clipfast.env import version

_STEPS = 2
# Compiled blocks take a minute to begin with; a model of some hundred million parameters as long to
# be made on a CPU.
_LIMIT = 300.0


def terms(situation: Situation) -> Seen:
    """The batch that every rank brings."""
    refused = needs_group(situation)
    if refused is None and version("deepspeed") is None:
        refused = {"refused": "deepspeed is absent"}
    plan = situation.plan
    if refused is not None or plan is None:
        return refused or {"refused": "there is no plan of a run"}
    return {
        "pairs": plan.local_batch,
        "micro-batches": plan.micro_batches,
        "ZeRO stage": plan.stage,
    }


def look(situation: Situation) -> Seen:
    """The same steps twice, from one seed."""
    plan = situation.plan
    assert plan is not None
    config = plan.config
    data = replace(config.data, train=(f"synthetic:{_STEPS * config.batch_size}",))
    plan = replace(plan, config=replace(config, data=data))
    cpu_products.agree(plan.process)
    if situation.on_gpu:
        torch.cuda.reset_peak_memory_stats(situation.device)
    first, second = (_train(plan) for _ in range(2))
    peak = torch.cuda.max_memory_allocated(situation.device) if situation.on_gpu else 0
    images = plan.local_batch / first["seconds"]
    situation.notes["images_per_second"] = images
    return {
        "losses": first["losses"],
        "again": second["losses"],
        "same_weights": first["weights"] == second["weights"],
        "weights": first["weights"],
        "step_seconds": first["seconds"],
        "images_per_second": images,
        "peak": peak,
        "shared": plan.stage == 3,
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Losses that are no numbers, or others on other ranks or the second time."""
    found = []
    first = seen[min(seen)]
    odd = [r for r, each in seen.items() if not all(map(math.isfinite, each["losses"]))]
    if odd:
        found.append(
            failure(
                f"the loss is {seen[odd[0]]['losses']} in the first {_STEPS} steps",
                "Try --precision fp32; where that is finite, the device or its precision is at "
                "fault, else the weights that the run starts from",
                odd,
            )
        )
    apart = [rank for rank, each in seen.items() if str(each["losses"]) != str(first["losses"])]
    if apart:
        found.append(
            failure(
                f"ranks have other losses: {first['losses']} on rank {min(seen)}, "
                f"{seen[apart[0]]['losses']} on rank {apart[0]}",
                "The loss is one for all ranks: their weights or what they exchange differ. Start "
                "from one file of weights, with one version of clipfast",
                apart,
            )
        )
    other = [
        r for r, each in seen.items() if not each["shared"] and each["weights"] != first["weights"]
    ]
    if other:
        words = f"ranks have other weights after {_STEPS} steps"
        found.append(failure(words, "Updates or broadcasts differ: see check collectives", other))
    changed = [
        rank
        for rank, each in seen.items()
        if str(each["losses"]) != str(each["again"]) or not each["same_weights"]
    ]
    if changed:
        each = seen[changed[0]]
        step = next(
            (
                i
                for i, (a, b) in enumerate(zip(each["losses"], each["again"], strict=True))
                if a != b
            ),
            None,
        )
        where = f"the loss of step {step + 1}" if step is not None else "the last update"
        found.append(
            warning(
                f"the same {_STEPS} steps give other bits the second time, first in {where}",
                "Runs will not repeat to the bit. On a GPU cuDNN's choice of convolutions may "
                "differ from start to start",
                changed,
            )
        )
    seconds = max(each["step_seconds"] for each in seen.values())
    images = sum(each["images_per_second"] for each in seen.values())
    peak = max(each["peak"] for each in seen.values())
    memory = f", {size(peak)} at most on a GPU" if peak else ""
    if not found:
        plan = situation.plan
        assert plan is not None
        found.append(
            ok(
                f"{_STEPS} steps of {plan.config.model.name} in {plan.dtype}: finite, the same "
                f"bits twice, {seconds * 1e3:.0f} ms the last one, {images:,.0f} images/s in all"
                f"{memory}"
            )
        )
    return found


def _train(plan: RunPlan) -> Seen:
    """A few steps from the seed: losses, a hash of the weights, seconds of the last step."""
    builders = Builders()
    loader = builders.loader(plan)
    plan = resolve_memory(plan, loader)
    if plan.micro_batch_note:
        loader = builders.loader(plan)
    torch.manual_seed(plan.config.seed)
    engine = builders.build_engine(plan)
    engine.train()
    set_learning_rate(engine, plan.config.optimizer.lr)
    losses, seconds = [], 0.0
    batches: Iterator[ImageTextBatch] = iter(loader)
    for _ in range(_STEPS):
        began = time.perf_counter()
        loss, _ = train_step(engine, next(batches), plan.micro_batches, plan.objective)
        losses.append(loss.item())
        synchronize(plan.process.device)
        seconds = time.perf_counter() - began
    digest = hashlib.blake2b(digest_size=8)
    for parameter in engine.module.parameters():
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    engine.destroy()
    return {"losses": losses, "weights": digest.hexdigest(), "seconds": seconds}


STEP = Check("step", look, judge, limit=_LIMIT, terms=terms)
