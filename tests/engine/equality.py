"""The same steps by one plain process and by the engine: ranks, micro-batches, ZeRO stages.

The truth is a loop of a few lines: the model, the paper's loss over the whole batch, torch's own
AdamW. The engine takes the same pairs: rank r its part of them.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import clipfast.models.detectors  # noqa: F401
from clipfast.data import ImageTextBatch
from clipfast.engine import Config, ModelOptions, OptimizerConfig, ZeroConfig
from clipfast.engine.builders import share_norms
from clipfast.engine.deepspeed.masters import exact_parameters
from clipfast.engine.deepspeed.wrap import initialise_engine, set_learning_rate
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import decide
from clipfast.engine.step import train_step
from clipfast.models import create_model
from clipfast.models.shared_norm import settle_statistics, share_statistics
from tests.engine.launching import start_rank
from tests.loss.problems import paper_loss

BATCH, STEPS, RATE = 32, 5, 0.01
# Adam divides a gradient by its own size. That hides a gradient that is too large by a factor, as
# one that was summed over ranks in place of a mean, and where a gradient is zero but for rounding
# the sign of the rounding decides. With an eps above all gradients a weight moves as they do.
OPTIONS = OptimizerConfig(lr=RATE, eps=1.0, weight_decay=0.01)
# Pairs that share batch statistics: a micro-batch of four ranks.
NORM_BATCH = 2
SMALL = {
    "ViT": ("ViT-tiny", {"vocab_size": 500, "text_layers": 1, "vision_layers": 1}),
    "RN": ("RN-tiny", {"vocab_size": 500, "text_layers": 1}),
    # Reads pictures on both sides, and learns no temperature.
    "near": ("near-tiny", {}),
}


@dataclass(frozen=True)
class Case:
    """One way to take the steps.

    Attributes:
        model: ViT, near, or RN with bn-batch or with sync-bn.
        precision: fp32 or bf16.
        stage: of ZeRO.
        micro_batches: parts of a rank's share.
        keep_graphs: of them, those that are encoded once.
    """

    model: str
    precision: str = "fp32"
    stage: int = 0
    micro_batches: int = 1
    keep_graphs: int = 0

    @property
    def truth(self) -> "Case":
        """The case whose plain loop is the truth: sync-bn has the groups of a micro-batch."""
        k = self.micro_batches if "sync" in self.model else 1
        return Case(self.model, micro_batches=k)

    @property
    def rounded(self) -> "Case":
        """The truth's loop in this precision."""
        return replace(self.truth, precision=self.precision)


def small_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, options = SMALL[name.split()[0]]
    made = create_model(model, **options)
    with torch.no_grad():
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d):
                # Ten deviations above zero: no rounding moves a value over the edge of a ReLU, and
                # with it a gradient.
                norm.weight.fill_(0.125)
                norm.bias.fill_(1.25)
        for parameter in made.parameters():
            # All precisions start from the same weights.
            parameter.copy_(parameter.bfloat16())
    return made


def batches(dtype: torch.dtype = torch.float32, *, near: bool = False) -> Iterator[ImageTextBatch]:
    """The global batches of all steps, the same in every process; of pictures and pictures like
    them, where that is what the model reads."""
    generator = torch.Generator().manual_seed(1)
    for index in range(STEPS):
        lengths = torch.randint(3, 9, (BATCH,), generator=generator)
        tokens = torch.randint(1, 499, (BATCH, 9), generator=generator)
        for row, length in enumerate(lengths.tolist()):
            tokens[row, length - 1] = 499
            tokens[row, length:] = 0
        images = torch.randn(BATCH, 3, 64, 64, generator=generator).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        if near:
            noise = torch.randn(images.shape, generator=generator)
            tokens, lengths = (images + noise).to(dtype), torch.ones(BATCH, dtype=torch.int64)
        places = np.arange(BATCH)
        yield ImageTextBatch(images, tokens, lengths, 0, index, places, places)


def share_of(batch: ImageTextBatch, case: Case, rank: int, ranks: int) -> ImageTextBatch:
    """A rank's part: consecutive pairs; with sync-bn those whose micro-batches, over the ranks, are
    consecutive pairs."""
    rows = torch.arange(BATCH)
    if "sync" in case.model:
        rows = rows.view(case.micro_batches, ranks, -1)[:, rank].reshape(-1)
    else:
        rows = rows.view(ranks, -1)[rank]
    tokens, lengths = batch.tokens[rows], batch.lengths[rows]
    images = batch.images[rows].contiguous(memory_format=torch.channels_last)
    places = rows.numpy()
    return replace(batch, images=images, tokens=tokens, lengths=lengths, shard=places, row=places)


def changes(before: nn.Module, after: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the steps changed, batch norms' running statistics included."""
    start = {**dict(before.named_parameters()), **dict(before.named_buffers())}
    return {
        name: value.detach().float() - start[name].detach().float()
        for name, value in after.items()
        if value.is_floating_point()
    }


def plain_changes(case: Case, shift: int = 0) -> dict[str, Tensor]:
    """The truth of a case: one process, no engine, no micro-batches but for batch statistics.

    Args:
        case: its model, precision and groups count.
        shift: of the groups in the batch, and of the pairs in a group: the same groups in another
            order, whose sums are rounded otherwise.
    """
    model, masters = small_model(case.model), small_model(case.model)
    model.to(torch.bfloat16 if case.precision == "bf16" else torch.float32)
    parts = case.micro_batches if "sync" in case.model else BATCH // NORM_BATCH
    share_statistics(model, groups=parts, once_a_step="batch" in case.model)
    decayed = [p for n, p in masters.named_parameters() if decays(masters, n)]
    others = [p for n, p in masters.named_parameters() if not decays(masters, n)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": OPTIONS.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(OPTIONS.beta1, OPTIONS.beta2),
        eps=OPTIONS.eps,
    )
    for batch in batches(next(model.parameters()).dtype, near=case.model == "near"):
        rows = torch.arange(BATCH).view(parts, -1).roll((shift, shift), (0, 1)).reshape(-1)
        images, texts, scale = model(
            batch.images[rows].contiguous(memory_format=torch.channels_last),
            batch.tokens[rows],
            lengths=batch.lengths[rows],
        )
        model.zero_grad()
        paper_loss(images.float(), texts.float(), scale).backward()
        for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                parameter.copy_(master)
        settle_statistics(model)
    after = {**dict(masters.named_parameters()), **dict(model.named_buffers())}
    return changes(small_model(case.model), after)


def decays(model: nn.Module, name: str) -> bool:
    """All weights that are not gains or biases."""
    owner, _, leaf = name.rpartition(".")
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    return (
        leaf != "bias"
        and "bias" not in leaf
        and leaf != "gain"
        and name != "logit_scale"
        and not isinstance(model.get_submodule(owner), norms)
    )


def engine_changes(case: Case, process: Process) -> dict[str, Tensor]:
    """What the engine changes; a collective."""
    options: dict[str, Any] = {}
    if "sync" in case.model:
        options = {"sync_bn": True}
    elif "batch" in case.model:
        options = {"bn_batch": NORM_BATCH}
    config = Config(
        model=ModelOptions(SMALL[case.model.split()[0]][0], **options),
        optimizer=OPTIONS,
        batch_size=BATCH,
        micro_batch=BATCH // process.world_size // case.micro_batches,
        precision=case.precision,
        zero=ZeroConfig(case.stage),
    )
    plan = decide(config, process)
    model = small_model(case.model)
    share_norms(plan, model)
    engine = initialise_engine(plan, model, build_optimizer(plan, model))
    for batch in batches(plan.dtype, near=case.model == "near"):
        set_learning_rate(engine, RATE)
        share = share_of(batch, case, process.rank, process.world_size)
        train_step(engine, share, plan.micro_batches, plan.objective, case.keep_graphs)
    after = {name: value.detach().clone() for name, value in exact_parameters(engine)}
    after |= dict(engine.module.named_buffers())
    engine.destroy()
    return changes(small_model(case.model), after)


def all_changes(cases: list[Case], port: int) -> list[dict[str, Tensor]]:
    """``engine_changes`` of each, on every rank of a group."""
    process = start_rank(port)
    return [engine_changes(case, process) for case in cases]


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest difference of an element, by the largest change of one: of weights, or of running
    statistics, whichever is further."""
    assert found.keys() == truth.keys()
    kinds: dict[bool, tuple[float, float]] = {}
    for name, change in truth.items():
        furthest, largest = kinds.get("running" in name, (0.0, 0.0))
        difference = (found[name] - change).abs().max().item()
        kinds["running" in name] = (
            max(furthest, difference),
            max(largest, change.abs().max().item()),
        )
    return max(furthest / largest for furthest, largest in kinds.values())


@dataclass(frozen=True)
class Truth:
    """What a case must come to.

    Attributes:
        change: of every weight and statistic, in float32 by one plain process.
        bound: on the distance from it.
    """

    change: dict[str, Tensor]
    bound: float


@functools.cache
def truth_of(case: Case) -> Truth:
    """The truth of a case, and how near to it a case must come.

    1e-5 in float32, or two roundings of a gain. In bf16 half as much again as what rounding to bf16
    costs the truth's own loop, with the same groups of pairs in two orders.
    """
    if case != case.rounded:
        return truth_of(case.rounded)
    change = plain_changes(case.truth)
    if case.precision == "bf16":
        return Truth(change, 1.5 * max(_orders(case.rounded, change, range(2))))
    # A rounding of a gain, which begins at 1.5, is 1.4e-5 of the largest change.
    return Truth(change, 3e-5 if case.model == "near" else 1e-5)


def _orders(case: Case, truth: dict[str, Tensor], shifts: Iterable[int]) -> list[float]:
    return [distance(plain_changes(case, shift), truth) for shift in shifts]
