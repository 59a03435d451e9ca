"""Retrieval of a model in training, encoded by all ranks together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import EvalLoader
from clipfast.data.shards import counts, expand
from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan
from clipfast.eval import RECALL_AT, pair_ranks, recalls


@dataclass(frozen=True)
class Retrieval:
    """Retrieval over one set of pairs.

    Attributes:
        source: the pattern that named it.
        pairs: N, number of pairs.
        image_to_text: R@1, R@5, R@10.
        text_to_image: R@1, R@5, R@10.
        image_features: ``[N, D]`` float32 on the CPU.
        text_features: ``[N, D]`` float32 on the CPU.
    """

    source: str
    pairs: int
    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    image_features: Tensor
    text_features: Tensor

    def line(self) -> str:
        """One line for a person."""
        sides = "; ".join(
            f"{name} " + " ".join(f"{key} {value:.3f}" for key, value in table.items())
            for name, table in (
                ("image-to-text", self.image_to_text),
                ("text-to-image", self.text_to_image),
            )
        )
        return f"{self.source} ({self.pairs} pairs): {sides}"

    def scalars(self) -> dict[str, float]:
        """Flat names for metrics files."""
        return {
            f"eval/{self.source}/{direction}/{name}": value
            for direction, table in (
                ("image_to_text", self.image_to_text),
                ("text_to_image", self.text_to_image),
            )
            for name, value in table.items()
        }


def evaluate(engine, plan: RunPlan) -> list[Retrieval]:
    """Measure retrieval on every pattern of ``--data.eval``; the same on every rank."""
    was_training = engine.module.training
    engine.eval()
    results = [_evaluate_one(engine, pattern, plan) for pattern in plan.config.data.eval]
    engine.train(was_training)
    return results


def check_evaluation(plan: RunPlan) -> None:
    """Open the evaluation data at the start of a run rather than days later.

    Raises:
        ConfigError: a shard or its index is unfit, or there are fewer pairs than ranks.
    """
    data, process = plan.config.data, plan.process
    for pattern in data.eval:
        try:
            pairs = int(counts(expand(pattern)).sum())
        except ValueError as error:
            raise ConfigError(f"--data.eval {pattern}: {error}") from error
        if min(pairs, data.eval_limit) < process.world_size:
            raise ConfigError(
                f"--data.eval {pattern} holds {pairs} pairs, less than the {process.world_size} "
                "ranks that would encode them: add pairs, or leave it out"
            )


@torch.no_grad()
def _evaluate_one(engine, pattern: str, plan: RunPlan) -> Retrieval:
    data, process = plan.config.data, plan.process
    loader = EvalLoader(
        pattern,
        plan.architecture.vision.image_size,
        data.eval_batch_size,
        rank=process.rank,
        world_size=process.world_size,
        limit=data.eval_limit,
        device=process.device,
        dtype=plan.dtype,
        threads=plan.decode_threads,
    )
    sizes = _gather_sizes(len(loader), process)
    images, texts = _encode(engine, loader, math.ceil(max(sizes) / data.eval_batch_size))
    all_images, all_texts = (_gather_rows(x, sizes, process) for x in (images, texts))
    first = sum(sizes[: process.rank])
    ranks = [
        _gather_rows(pair_ranks(images, all_texts, first)[:, None], sizes, process)[:, 0],
        _gather_rows(pair_ranks(texts, all_images, first)[:, None], sizes, process)[:, 0],
    ]
    return Retrieval(
        source=pattern,
        pairs=sum(sizes),
        image_to_text=recalls(ranks[0]),
        text_to_image=recalls(ranks[1]),
        image_features=all_images.cpu(),
        text_features=all_texts.cpu(),
    )


def _encode(engine, loader: EvalLoader, forwards: int) -> tuple[Tensor, Tensor]:
    """Encode this rank's pairs. Every rank runs the same number of forwards, since under ZeRO-3
    each one gathers parameters from all ranks; one with a batch less repeats its last."""
    images, texts = [], []
    batches = iter(loader)
    batch = None
    for _ in range(forwards):
        fresh = next(batches, None)
        batch = fresh or batch
        image_features, text_features, _ = engine(batch.images, batch.tokens, lengths=batch.lengths)
        if fresh is not None:
            images.append(image_features.float())
            texts.append(text_features.float())
    return torch.cat(images), torch.cat(texts)


def retrieval_table(results: list[Retrieval], trained_on: Sequence[str]) -> list[str]:
    """Lines of a table for the end of a run, chance beneath each set.

    Args:
        results: one entry per set.
        trained_on: the patterns of the training data, marked as such.
    """
    names = [f"R@{k}" for k in RECALL_AT]
    labels = [f"{r.source}{' (trained on)' if r.source in trained_on else ''}" for r in results]
    width = max(map(len, labels), default=0) + 2
    header = "".join(f"{name:>8}" for name in names)
    lines = [
        f"{'':{width}}{'image to text':>24}  {'text to image':>24}",
        f"{'':{width}}{header}  {header}",
    ]
    for label, result in zip(labels, results, strict=True):
        sides = (result.image_to_text, result.text_to_image)
        cells = ["".join(f"{side[name]:8.3f}" for name in names) for side in sides]
        lines.append(f"{label:{width}}{'  '.join(cells)}")
        chance = "".join(f"{min(1.0, k / result.pairs):8.4f}" for k in RECALL_AT)
        lines.append(f"{f'  chance ({result.pairs} pairs)':{width}}{chance}  {chance}")
    return lines


def _gather_sizes(size: int, process: Process) -> list[int]:
    sizes = torch.zeros(process.world_size, dtype=torch.int64, device=process.device)
    sizes[process.rank] = size
    dist.all_reduce(sizes)
    return sizes.tolist()


def _gather_rows(rows: Tensor, sizes: list[int], process: Process) -> Tensor:
    """All ranks' rows in rank order; blocks may differ in length."""
    if process.world_size == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = rows.new_empty(longest * len(sizes), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    blocks = gathered.split(longest)
    return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])
