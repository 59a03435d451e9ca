"""Rivals of the loss's kernels that need a GPU: Inf-CL, memeff and siglip-kernel.

Each is called as its own documentation calls it, on one process. What a rival leaves out is said in
its row: memeff's temperature is a number that no gradient reaches; siglip-kernel computes the
pairwise sigmoid loss (Zhai et al. 2023), which is another function with the same products, and is
checked against that one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.parts.common.contest import NotMeasured
from benchmarks.parts.loss.problem import LOGIT_SCALE, Case, Features, Loss, Truth, row_chunks

# SigLIP's start: a scale of 10 and a bias of -10.
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0


def rival_version(distribution: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def inf_cl(case: Case) -> Loss:
    """Inf-CL as one process calls it: its tiled loss of either direction, in float32.

    ``cal_inf_loss`` is not used: its scale's backward asks for a process group even for one GPU,
    without which it goes on to this same function.
    """
    flash_loss = _module(case, "inf_cl", "inf-cl").cal_flash_loss
    heads = [width for width in (256, 128, 64, 32, 16) if case.dim % width == 0]
    if not heads:
        raise NotMeasured(f"needs a width that is a multiple of 16, not {case.dim}")

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        u, v = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        scale = log_scale.exp()
        rows = flash_loss(u, v, scale=scale, head_dim=heads[0]).mean()
        columns = flash_loss(v, u, scale=scale, head_dim=heads[0]).mean()
        return (rows + columns) / 2

    return loss


def memeff(case: Case) -> Loss:
    """memeff's loss of both directions, which normalises; its gradient at its true size."""
    module = _module(case, "memeff", "memeff").MemoryEfficientCLIPLoss(
        temperature=1 / LOGIT_SCALE, stable=False
    )

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        # Its graph has no log-scale; what times it asks for a gradient.
        return module(images, texts) + 0 * log_scale

    return loss


def siglip_kernel(case: Case) -> Loss:
    """siglip-kernel's choice for this card, after a normalisation in the features' own type."""
    fused = _module(case, "siglip_kernel", "siglip-kernel").fused_siglip_loss
    return sigmoid_loss(fused, case.device)


def sigmoid_loss(fused: Callable[..., Tensor], device: torch.device) -> Loss:
    """A rival's ``(images, texts, log_temperature, bias)`` as a loss of un-normalised features."""
    shift = math.log(SIGMOID_SCALE / LOGIT_SCALE)
    bias = torch.tensor(SIGMOID_BIAS, device=device)

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        u, v = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        return fused(u, v, log_scale + shift, bias)

    return loss


def sigmoid_truth(features: Features, rows: Tensor) -> Truth:
    """The sigmoid loss in float64: -sum_ij log sigmoid(y_ij z_ij) / G, z = 10 u_i . v_j - 10.

    With w_ij = -y_ij sigmoid(-y_ij z_ij) / G, du_i = 10 sum_j w_ij v_j, dv_j = 10 sum_i w_ij u_i,
    and the log-scale's gradient is 10 sum_ij w_ij u_i . v_j. y is 1 on the diagonal, else -1.

    Args:
        features: Of the whole batch.
        rows: Of which the features' gradients are.
    """
    images, texts = (x.detach().double() for x in (features.images, features.texts))
    u, v = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    batch, scale = len(u), _sigmoid_scale(features)
    loss = scale_grad = scale_size = u.new_zeros(())
    for chosen in row_chunks(batch, batch, u.device):
        cosines = u[chosen] @ v.T
        z = scale * cosines + SIGMOID_BIAS
        signs = -torch.ones_like(z)
        signs.diagonal(chosen.start).fill_(1)
        loss = loss - F.logsigmoid(signs * z).sum() / batch
        terms = -signs * torch.sigmoid(-signs * z) * (scale * cosines) / batch
        scale_grad, scale_size = scale_grad + terms.sum(), scale_size + terms.abs().sum()
    image_grad = _sigmoid_grad(u, v, images, rows, scale)
    text_grad = _sigmoid_grad(v, u, texts, rows, scale)
    return Truth(loss, rows, image_grad, text_grad, scale_grad, scale_size)


def _sigmoid_scale(features: Features) -> Tensor:
    return features.log_scale.detach().double().exp() * SIGMOID_SCALE / LOGIT_SCALE


def _sigmoid_grad(u: Tensor, v: Tensor, features: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    grads = []
    for part in row_chunks(len(rows), len(v), u.device):
        chosen = rows[part]
        z = scale * u[chosen] @ v.T + SIGMOID_BIAS
        signs = -torch.ones_like(z)
        signs[torch.arange(len(chosen), device=u.device), chosen] = 1
        weights = -signs * torch.sigmoid(-signs * z) / len(v)
        grad = scale * weights @ v
        grad -= u[chosen] * (u[chosen] * grad).sum(1, keepdim=True)
        grads.append(grad / features[chosen].norm(dim=1, keepdim=True))
    return torch.cat(grads)


def _module(case: Case, name: str, distribution: str) -> ModuleType:
    if case.device.type != "cuda":
        raise NotMeasured("its kernels need a GPU")
    if case.world_size > 1:
        raise NotMeasured("timed on one process only")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotMeasured(
            f"not installed: pip install --no-deps {distribution} ({error})"
        ) from None
