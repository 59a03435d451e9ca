"""Who computes the loss in ``loss_throughput.py``: clipfast in its forms, and its peers.

Each is a function of un-normalised features and the log-scale, so each counts what it needs before
the loss itself. A peer that cannot run raises :class:`NotMeasured` with the reason.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import clipfast.loss
from benchmarks.parts.common.contest import NotMeasured
from benchmarks.parts.loss.problem import LOGIT_SCALE, Case, Loss
from benchmarks.parts.loss.rivals import inf_cl, memeff, rival_version, siglip_kernel

# Largest relative L2 error of ours, by what the towers give: float32 sums over the batch, and the
# rounding of the result to the features' own dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 1e-2}
# Bits lost by a value rounded to the dtype, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
PEERS = ("openclip", "openclip-compile", "chunked", "inf-cl", "memeff", "siglip-kernel")
KEPT = {"recompute": False, "keep": True}


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: As in the table.
        build: Returns the loss for a case, or raises :class:`NotMeasured`.
        tolerance: The largest relative error with which it may be timed.
        logit_bytes: Bytes for each logit of this rank's strip that are alive at a time, about; 0
            where memory does not grow with the square of the batch.
        floor: FLOP in units of BGD that its matrix products need, for ours: 6 or 8.
        fields: Copied into its row.
        has_scale_grad: Whether the log-scale gets a gradient; where not, there is none to check.
        is_sigmoid: Whether it is the pairwise sigmoid loss, another function.
    """

    name: str
    build: Callable[[Case], Loss]
    tolerance: float
    logit_bytes: int = 0
    floor: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    has_scale_grad: bool = True
    is_sigmoid: bool = False

    @property
    def is_ours(self) -> bool:
        return self.floor is not None


def our_contenders(case: Case, impls: Sequence[str], kept: Sequence[str]) -> list[Contender]:
    """``clip_loss`` by each implementation, with the logits recomputed and kept."""
    names = []
    for impl in impls:
        names += clipfast.loss.available_impls(case.device) if impl == "all" else [impl]
    return [
        Contender(
            name="clipfast" + ("" if impl == "auto" else f" {impl}") + f", {form}",
            build=lambda case, impl=impl, form=form: _clipfast(impl, KEPT[form]),
            tolerance=TOLERANCE[case.dtype],
            logit_bytes=8 if KEPT[form] else 0,
            floor=6 if KEPT[form] else 8,
            fields=(("impl", impl), ("logits", form)),
        )
        for impl in dict.fromkeys(names)
        for form in kept
    ]


def peer_contenders(case: Case, peers: Sequence[str]) -> list[Contender]:
    """The peers asked for. Half-precision ones may be off by what rounded logits cost.

    The logits that weigh are about s / 4: rounded to the dtype, one multiplies its softmax by
    1 + s / 4 * rounding.
    """
    tolerance = max(1e-3, LOGIT_SCALE / 4 * ROUNDING[case.dtype])
    open_clip = f"OpenCLIP {rival_version('open_clip_torch')}"
    known = {
        "openclip": Contender(open_clip, _open_clip, tolerance, logit_bytes=32),
        "openclip-compile": Contender(
            f"{open_clip}, torch.compile", _open_clip_compiled, tolerance, logit_bytes=32
        ),
        "chunked": Contender("chunked torch", _chunked_torch, tolerance),
        "inf-cl": Contender(f"Inf-CL {rival_version('inf-cl')}", inf_cl, tolerance),
        "memeff": Contender(
            f"memeff {rival_version('memeff')}",
            memeff,
            tolerance,
            fields=(("leaves_out", "the log-scale's gradient"),),
            has_scale_grad=False,
        ),
        "siglip-kernel": Contender(
            f"siglip-kernel {rival_version('siglip-kernel')}, sigmoid loss",
            siglip_kernel,
            # Its logits are a tenth of ours; its gradients are kept in the features' type.
            max(1e-3, 4 * ROUNDING[case.dtype]),
            fields=(("function", "the pairwise sigmoid loss"),),
            is_sigmoid=True,
        ),
    }
    return [known[peer] for peer in peers]


def _clipfast(impl: str, keep_logits: bool) -> Loss:
    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        return clipfast.loss.clip_loss(
            images, texts, log_scale.exp(), normalize=True, impl=impl, keep_logits=keep_logits
        )

    return loss


def _load_open_clip_loss() -> ModuleType:
    """``open_clip.loss`` without its package, which imports torchvision."""
    name = "open_clip_loss_alone"
    if name in sys.modules:
        return sys.modules[name]
    try:
        path = Path(metadata.distribution("open_clip_torch").locate_file("open_clip/loss.py"))
    except metadata.PackageNotFoundError:
        raise NotMeasured("pip install --no-deps open_clip_torch") from None
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # torch.compile looks up the modules of the functions that it traces.
    sys.modules[name] = module
    return module


def _open_clip(case: Case) -> Loss:
    """``ClipLoss`` after the normalisation at the end of OpenCLIP's model.

    Half-precision features come from a model under autocast, where its training loop also calls the
    loss. Over ranks: ``local_loss`` with ``gather_with_grad``, its one form whose gradients are
    those of the global batch.
    """
    module = _load_open_clip_loss().ClipLoss(
        local_loss=case.world_size > 1,
        gather_with_grad=case.world_size > 1,
        cache_labels=True,
        rank=case.rank,
        world_size=case.world_size,
    )
    is_half = case.dtype != torch.float32

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        with torch.autocast(case.device.type, case.dtype if is_half else None, enabled=is_half):
            return module(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), log_scale.exp())

    return loss


def _open_clip_compiled(case: Case) -> Loss:
    if case.world_size > 1:
        raise NotMeasured("the gather with gradients is not traced")
    torch._dynamo.reset()
    return torch.compile(_open_clip(case), dynamic=False)


def _chunked_torch(case: Case) -> Loss:
    """Plain torch that never holds all logits: products in the features' dtype, sums in float32."""
    if case.world_size > 1:
        raise NotMeasured("written for one process")

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        u, v = (F.normalize(x.float(), dim=-1).to(case.dtype) for x in (images, texts))
        return _ChunkedLoss.apply(u, v, log_scale.exp())

    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss of normalised features, with the logits of a chunk of rows at a time.

    The forward keeps the log-sum-exp of each row and column; the backward recomputes the logits.
    8BGD FLOP, as clipfast's recomputing form, with each step on the logits an operator of its own.
    """

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        row_lse = u.new_empty(len(u), dtype=torch.float32)
        pairs = torch.empty_like(row_lse)
        column_lse = u.new_full((len(v),), float("-inf"), dtype=torch.float32)
        for rows in _row_chunks(u, v):
            logits = (u[rows] @ v.T).float().mul_(scale)
            torch.logsumexp(logits, 1, out=row_lse[rows])
            pairs[rows] = logits.diagonal(rows.start)
            column_lse = torch.logaddexp(column_lse, logits.logsumexp(0))
        ctx.save_for_backward(u, v, scale, row_lse, column_lse)
        return (row_lse + column_lse - 2 * pairs).mean() / 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, v, scale, row_lse, column_lse = ctx.saved_tensors
        u_grad = -2 * v.float()
        v_grad = -2 * u.float()
        for rows in _row_chunks(u, v):
            logits = (u[rows] @ v.T).float().mul_(scale)
            weights = (logits - row_lse[rows, None]).exp_()
            weights = weights.add_(logits.sub_(column_lse).exp_()).to(u.dtype)
            u_grad[rows] += weights @ v
            v_grad += weights.T @ u[rows]
        coefficient = grad / (2 * len(u))
        scale_grad = coefficient * (u.float() * u_grad).sum()
        coefficient = coefficient * scale
        return (u_grad * coefficient).to(u.dtype), (v_grad * coefficient).to(u.dtype), scale_grad


def _row_chunks(u: Tensor, v: Tensor) -> list[slice]:
    """Row ranges whose float32 logits take 512 MiB on a GPU, 64 MiB elsewhere."""
    step = max(1, 2 ** (27 if u.is_cuda else 24) // len(v))
    return [slice(begin, begin + step) for begin in range(0, len(u), step)]
