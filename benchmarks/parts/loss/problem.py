"""The features that ``loss_throughput.py`` times the loss on, and the truth about them in float64.

G pairs in all, B = G / W on each of W ranks, D the embedding width; s the logit scale, U and V the
normalised features, S = s U V^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

LOGIT_SCALE = 100.0  # where CLIP's training clips it, and where rounded logits hurt most
SAMPLED_ABOVE = 8192  # pairs; above, gradients are compared on a sample of their rows
SAMPLE = 256

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images, texts, log_scale) -> loss


@dataclass(frozen=True)
class Case:
    """One size to measure.

    Attributes:
        batch: G, the pairs on all ranks together.
        dim: D.
        dtype: What the towers give.
        device: Where this rank works.
        rank: This process.
        world_size: Processes that share the batch.
    """

    batch: int
    dim: int
    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world_size:
            raise ValueError(f"{self.batch} pairs do not divide among {self.world_size} ranks")

    @property
    def local_batch(self) -> int:
        return self.batch // self.world_size

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def grad_scale(self) -> float:
        """What the loss is multiplied by before its backward, as a GradScaler would settle on.

        Gradients of a mean over G pairs are near 1/G: float16 holds few digits of that.
        """
        return 2.0 ** math.floor(math.log2(self.batch)) if self.dtype == torch.float16 else 1.0


@dataclass(frozen=True)
class Features:
    """Un-normalised outputs of both towers, and the logarithm of the scale, all leaves."""

    images: Tensor  # [B, D]
    texts: Tensor  # [B, D]
    log_scale: Tensor  # [], float32

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.texts, self.log_scale


@dataclass(frozen=True)
class Truth:
    """The loss of one process on the whole batch and its gradients, in float64."""

    loss: Tensor
    rows: Tensor  # [n] which rows of the batch the gradients below are for
    image_grad: Tensor  # [n, D]
    text_grad: Tensor  # [n, D]
    scale_grad: Tensor  # of the log-scale
    scale_size: Tensor  # mean size of the terms that scale_grad is the mean of


def make_features(case: Case) -> Features:
    """This rank's rows of random pairs, the same whatever the number of ranks.

    A pair's logit is, on average, about the log-sum-exp of the strangers' logits, so the batch is
    neither fitted nor new to the model: the loss is of the order of 1. Lengths vary between rows.
    """
    # Strangers' logits are normal about 0; the largest of G dominate their sum where they spread.
    spread, reach = LOGIT_SCALE / math.sqrt(case.dim), math.sqrt(2 * math.log(max(2, case.batch)))
    strangers = spread * reach if spread > reach else (spread**2 + reach**2) / 2
    share = min(0.9, strangers / LOGIT_SCALE)
    generator = torch.Generator(case.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device)

    common = normal(case.batch, case.dim) * math.sqrt(share)
    mine = slice(case.rank * case.local_batch, (case.rank + 1) * case.local_batch)
    towers = []
    for _ in range(2):
        noise = normal(case.batch, case.dim) * math.sqrt(1 - share)
        length = (10 * (0.3 * normal(case.batch, 1)).exp()) / math.sqrt(case.dim)
        towers.append(((common + noise) * length)[mine].to(case.dtype).requires_grad_())
    log_scale = torch.tensor(math.log(LOGIT_SCALE), device=case.device, requires_grad=True)
    return Features(*towers, log_scale)


def compute_truth(features: Features) -> Truth:
    """The loss and the log-scale's gradient in full; features' gradients in full or on a sample.

    Every logit is computed, a chunk of rows at a time. With p and q the softmaxes of S over rows
    and columns, the log-scale's gradient is sum((p + q) * S - 2 S_ii) / 2G, whose sums one pass
    gives beside the log-sum-exps. Above ``SAMPLED_ABOVE`` pairs the features' gradients are those
    of ``SAMPLE`` rows spread over the batch, each exact.
    """
    images, texts = (x.detach().double() for x in (features.images, features.texts))
    scale = features.log_scale.detach().double().exp()
    u, v = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    batch = len(u)
    row_sum, row_dot = u.new_empty(batch), u.new_empty(batch)
    column_sum, column_dot = u.new_zeros(batch), u.new_zeros(batch)
    for rows in row_chunks(batch, batch, u.device):
        logits = scale * u[rows] @ v.T
        # In float64 a shift by the largest possible logit underflows nowhere.
        weights = (logits - scale).exp()
        row_sum[rows] = weights.sum(1)
        column_sum += weights.sum(0)
        weights *= logits
        row_dot[rows] = weights.sum(1)
        column_dot += weights.sum(0)
    pairs = scale * (u * v).sum(1)
    loss = (row_sum.log() + column_sum.log() + 2 * scale - 2 * pairs).mean() / 2
    terms = torch.cat([row_dot / row_sum - pairs, column_dot / column_sum - pairs])

    sample = torch.arange(batch, device=u.device)
    if batch > SAMPLED_ABOVE:
        edges = torch.linspace(0, batch, SAMPLE + 1, dtype=torch.float64, device=u.device).long()
        # Inside each stretch at another place, so that no residue of a tile's size is left out.
        step = torch.arange(SAMPLE, device=u.device) * 97
        sample = edges[:-1] + step % (edges[1:] - edges[:-1])
    image_grad = _feature_grad(u, v, row_sum, column_sum, scale, images, sample)
    text_grad = _feature_grad(v, u, column_sum, row_sum, scale, texts, sample)
    return Truth(loss, sample, image_grad, text_grad, terms.mean(), terms.abs().mean())


def _feature_grad(
    u: Tensor,
    v: Tensor,
    row_sum: Tensor,
    column_sum: Tensor,
    scale: Tensor,
    features: Tensor,
    sample: Tensor,
) -> Tensor:
    grads = []
    for chosen in row_chunks(len(sample), len(v), u.device):
        rows = sample[chosen]
        weights = (scale * u[rows] @ v.T - scale).exp()
        grad = (weights / row_sum[rows, None] + weights / column_sum) @ v - 2 * v[rows]
        grad *= scale / (2 * len(v))
        grad -= u[rows] * (u[rows] * grad).sum(1, keepdim=True)
        grads.append(grad / features[rows].norm(dim=1, keepdim=True))
    return torch.cat(grads)


def row_chunks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows whose float64 logits take 0.5 GiB on a GPU, 64 MiB elsewhere."""
    step = max(1, 2 ** (26 if device.type == "cuda" else 23) // columns)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def loss_and_grads(loss: Loss, features: Features, case: Case) -> tuple[Tensor, ...]:
    """What is timed: the loss, and the gradients of both features and of the log-scale.

    The gradients are ``case.grad_scale`` times too large.
    """
    value = loss(*features.leaves)
    scaled = value if case.grad_scale == 1 else value * case.grad_scale
    return value.detach(), *torch.autograd.grad(scaled, features.leaves)


def measure_errors(loss: Loss, features: Features, truth: Truth, case: Case) -> dict[str, float]:
    """Run once, and return each result's relative L2 error.

    That of the log-scale's gradient is relative to the size of its terms: at the scale that suits
    the batch they cancel, and any error would be large beside their mean.

    Over several ranks the features' gradients are W times those of one process, and the loss and
    the log-scale's gradient are means over ranks: what DistributedDataParallel makes of them.
    """
    value, image_grad, text_grad, scale_grad = (
        x.double() for x in loss_and_grads(loss, features, case)
    )
    first = case.rank * case.local_batch
    is_mine = (truth.rows >= first) & (truth.rows < first + case.local_batch)
    rows = truth.rows[is_mine] - first
    factor = 1 / (case.grad_scale * case.world_size)
    sums = torch.stack(
        [
            value / case.world_size,
            scale_grad * factor,
            (image_grad[rows] * factor - truth.image_grad[is_mine]).square().sum(),
            (text_grad[rows] * factor - truth.text_grad[is_mine]).square().sum(),
        ]
    )
    if case.world_size > 1:
        dist.all_reduce(sums)
    return {
        "error_loss": _ratio((sums[0] - truth.loss).abs(), truth.loss.abs()),
        "error_image_grad": _ratio(sums[2].sqrt(), truth.image_grad.norm()),
        "error_text_grad": _ratio(sums[3].sqrt(), truth.text_grad.norm()),
        "error_scale_grad": _ratio((sums[1] - truth.scale_grad).abs(), truth.scale_size),
    }


def _ratio(difference: Tensor, size: Tensor) -> float:
    return (difference / size).item()
