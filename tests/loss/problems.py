"""Features for which the loss is easy, hard or degenerate, and what is compared of a loss."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("random", "aligned", "duplicate", "nearly fitted", "fitted")


def make_features(
    batch: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0, kind: str = "random"
) -> tuple[Tensor, Tensor]:
    """Images and texts [batch, width], not normalised, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(batch, width, generator=generator, dtype=torch.float64)

    images = noise()
    if kind == "random":
        texts = 0.5 * images + noise()
    elif kind == "aligned":
        texts = images + 0.1 * noise()
    elif kind == "duplicate":
        images = images[torch.arange(batch) % 3]
        texts = images + 0.5 * noise()[torch.arange(batch) % 3]
    else:
        # Far from each other and close to, or at, their pairs.
        far = torch.linalg.qr(noise().T)[0].T if batch <= width else images
        images, texts = far, far + (0.05 * noise() / math.sqrt(width) if "nearly" in kind else 0)
    return images.to(dtype), texts.to(dtype)


def paper_loss(images: Tensor, texts: Tensor, scale: Tensor, normalize: bool = True) -> Tensor:
    """Figure 3 of the paper."""
    if normalize:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fitted_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The same without a difference of equal logarithms: float64 then holds losses of 1e-40."""
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = scale * images @ texts.T
    gaps = (logits - logits.diagonal()[:, None], logits.T - logits.diagonal()[:, None])
    others = ~torch.eye(len(logits), dtype=torch.bool)
    terms = [torch.where(others, gap.exp(), 0.0).sum(1).log1p() for gap in gaps]
    return (terms[0].mean() + terms[1].mean()) / 2


def gradients(
    loss_function: Callable[..., Tensor], images: Tensor, texts: Tensor, log_scale: Tensor
) -> list[Tensor]:
    """[loss, d images, d texts, d log-scale]."""
    leaves = [x.detach().clone().requires_grad_() for x in (images, texts, log_scale)]
    loss = loss_function(leaves[0], leaves[1], leaves[2].exp())
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def error(value: Tensor, truth: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    size = truth.double().norm()
    difference = (value.double() - truth.double()).norm()
    return (difference / size).item() if size > 0 else difference.item()
