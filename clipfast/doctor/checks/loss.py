"""The loss over these ranks, and its gradients, against one process in float64.

Shapes: B pairs a rank, W ranks, G = W B, D width.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.checks.group import needs_group
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.doctor.situation import Situation
from clipfast.loss import clip_loss
from clipfast.ops.contrastive import available_impls

_MOST_PAIRS, _WIDTH, _SCALE = 24, 64, 14.0
# The largest error of a value or a gradient, by the largest value of its kind. Half precision
# rounds the gradient itself, and normalised features before they are multiplied.
_LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
# Products of float32 are TF32 where a run asks for it.
_TF32_LIMIT = 5e-3


def terms(situation: Situation) -> Seen:
    """What every rank brings: its features' number, width and types."""
    refused = needs_group(situation)
    if refused is not None:
        return refused
    return {
        "number of features": _pairs(situation),
        "width": _WIDTH,
        "forms": [f"{impl} in {_name(dtype)}" for impl, dtype in _forms(situation)],
    }


def look(situation: Situation) -> Seen:
    """Each form's errors, and whether it gives the same bits twice."""
    rows = []
    for impl, dtype in _forms(situation):
        images, texts = _features(situation, dtype)
        truth = _truth(images, texts)
        first = _over_ranks(situation, images, texts, impl)
        again = _over_ranks(situation, images, texts, impl)
        errors = {
            name: ((first[name].double().cpu() - wanted).abs().max() / wanted.abs().max()).item()
            for name, wanted in _of_rank(truth, situation).items()
        }
        rows.append(
            {
                "impl": impl,
                "dtype": _name(dtype),
                "errors": errors,
                "limit": _limit(dtype, situation),
                "repeats": all(torch.equal(first[name], again[name]) for name in first),
            }
        )
    return {"rows": rows}


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Errors beyond the limit."""
    found, good = [], []
    for i, row in enumerate(next(iter(seen.values()))["rows"]):
        rows = {rank: each["rows"][i] for rank, each in seen.items()}
        form, limit = f"{row['impl']} in {row['dtype']}", row["limit"]
        worst = max(error for each in rows.values() for error in each["errors"].values())
        # What is no number is within no limit.
        off = [
            r for r, each in rows.items() if not all(e <= limit for e in each["errors"].values())
        ]
        if off:
            names = ", ".join(
                f"{name} {error:.1e}" for name, error in rows[off[0]]["errors"].items()
            )
            found.append(
                failure(
                    f"{form} is off by more than {limit:.0e} of the float64 gradient: {names}",
                    "Build clipfast anew and run its tests of this device (pytest tests/loss). "
                    "Where they pass, collectives or memory of this machine give wrong values",
                    off,
                )
            )
        else:
            good.append(f"{form} {worst:.0e} (limit {limit:.0e})")
        differs = [rank for rank, each in rows.items() if not each["repeats"]]
        if differs:
            words = f"{form} gives other bits the second time"
            found.append(warning(words, "Runs will not repeat to the bit", differs))
    if good:
        pairs = f"{situation.process.world_size} x {_pairs(situation)} pairs"
        found.append(ok(f"loss and gradients over {pairs} are those of float64: {', '.join(good)}"))
    return found


def _forms(situation: Situation) -> list[tuple[str, torch.dtype]]:
    dtypes = [torch.float32, torch.bfloat16]
    if situation.on_gpu:
        dtypes.append(torch.float16)
        if not torch.cuda.is_bf16_supported(False):
            dtypes.remove(torch.bfloat16)
    return [(impl, dtype) for impl in available_impls(situation.device) for dtype in dtypes]


def _pairs(situation: Situation) -> int:
    plan = situation.plan
    return min(_MOST_PAIRS, plan.local_batch) if plan else _MOST_PAIRS


def _limit(dtype: torch.dtype, situation: Situation) -> float:
    if situation.on_gpu and dtype == torch.float32:
        from clipfast.kernels.common.device import multiplies_in_full

        return _LIMITS[dtype] if multiplies_in_full() else _TF32_LIMIT
    return _LIMITS[dtype]


def _features(situation: Situation, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All ranks' features, on the CPU, rounded to the type: each ``[G, D]``."""
    generator = torch.Generator().manual_seed(7)
    shape = (situation.process.world_size * _pairs(situation), _WIDTH)
    images = torch.randn(shape, generator=generator)
    # Pairs that belong together, as after some training.
    texts = images + torch.randn(shape, generator=generator)
    return images.to(dtype), texts.to(dtype)


def _truth(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """The global batch in one process, in float64."""
    u, v = images.double().requires_grad_(), texts.double().requires_grad_()
    scale = torch.tensor(_SCALE, dtype=torch.float64, requires_grad=True)
    logits = scale * F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
    target = torch.arange(len(u))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    gradients = torch.autograd.grad(loss, (u, v, scale))
    return dict(zip(("loss", "images", "texts", "scale"), (loss.detach(), *gradients), strict=True))


def _of_rank(truth: dict[str, Tensor], situation: Situation) -> dict[str, Tensor]:
    pairs, rank = _pairs(situation), situation.process.rank
    mine = slice(rank * pairs, (rank + 1) * pairs)
    return {name: value[mine] if value.dim() else value for name, value in truth.items()}


def _over_ranks(
    situation: Situation, images: Tensor, texts: Tensor, impl: str
) -> dict[str, Tensor]:
    """The loss of the ranks together; gradients after the mean over ranks that a run applies."""
    pairs, rank, ranks = _pairs(situation), situation.process.rank, situation.process.world_size
    mine = slice(rank * pairs, (rank + 1) * pairs)
    u, v = (each[mine].to(situation.device).requires_grad_() for each in (images, texts))
    scale = torch.tensor(_SCALE, device=situation.device, requires_grad=True)
    loss = clip_loss(u, v, scale, impl=impl)
    du, dv, ds = torch.autograd.grad(loss, (u, v, scale))
    dist.all_reduce(ds)
    return {
        "loss": loss.detach(),
        "images": du.float() / ranks,
        "texts": dv.float() / ranks,
        "scale": ds / ranks,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LOSS = Check("loss", look, judge, limit=60, terms=terms)
