"""How far optimizers' updates are from float64 Adam's on the same gradients.

Two figures, both over all elements of a case and over the last tenth of the steps:

    update error   |d - d64| / |d64|, d the direction of the whole update, in the L2 norm; the mean
                   over those steps, and that of the very last
    bias of v      the mean of v / v64 over steps and elements whose v64 is not zero, less 1: every
                   element counts the same, however small

d of clipfast's optimizer is the weights' real movement, v what its state decodes to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from benchmarks.parts.adamw.followers import CLAIM, CONTENDERS, Adam64, Contender
from benchmarks.parts.common.harness import Row

BETA2 = (0.999, 0.98)
# Where rows of different fates share a block, the bias of v is reported and not judged.
UNJUDGED_BIAS = "straddling"
WHY_UNJUDGED = (
    f"{UNJUDGED_BIAS}: a row that is not touched for hundreds of steps decays below 2^-28 of the\n"
    "largest root in the block that it shares. There fp16 has few bits: the root stays right in\n"
    "the mean, its square does not. The row's m has vanished long before, so that no update feels\n"
    "it, and its next gradient outweighs what is left of v. The bias is shown and not judged."
)


class _Tally:
    """One contender's figures, summed over the steps that count."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.ratios: list[float] = []

    def add(
        self, got: list[Tensor], truth: list[Tensor], v: list[Tensor], v64: list[Tensor]
    ) -> None:
        pairs = list(zip(got, truth, strict=True))
        off = sum(float((one.double() - true).square().sum()) for one, true in pairs)
        self.errors.append(math.sqrt(off / sum(float(true.square().sum()) for true in truth)))
        total, count = 0.0, 0
        for one, true in zip(v, v64, strict=True):
            is_used = true > 0
            total += float((one[is_used] / true[is_used]).sum())
            count += int(is_used.sum())
        self.ratios.append(total / count)

    def fields(self) -> Row:
        return {
            "update_error": sum(self.errors) / len(self.errors),
            "update_error_end": self.errors[-1],
            "v_bias": sum(self.ratios) / len(self.ratios) - 1,
        }


def measure(
    name: str,
    gradients: Iterable[Sequence[Tensor]],
    steps: int,
    beta2: float,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    after_step: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Send one stream of gradients through float64 Adam and all contenders.

    Args:
        name: Of the gradients.
        gradients: One list of float32 tensors per step, ``steps`` of them at least.
        steps: Taken.
        beta2: Of Adam.
        contenders: Whom to judge.
        after_step: Called after each step.

    Returns:
        One row per contender, in their order.
    """
    stream = iter(gradients)
    first = next(stream)
    shapes = [grad.shape for grad in first]
    truth = Adam64(shapes, beta2)
    followers = [contender.build(shapes, beta2) for contender in contenders]
    tallies = [_Tally() for _ in contenders]
    every = max(1, steps // 300)
    for step in range(1, steps + 1):
        grads = first if step == 1 else next(stream)
        directions64 = truth.step(grads)
        counts = step == steps or (step > 0.9 * steps and step % every == 0)
        for follower, tally in zip(followers, tallies, strict=True):
            directions = follower.step(grads)
            if counts:
                tally.add(
                    directions, directions64, follower.second_moments(), truth.second_moments()
                )
        after_step()
    rows = []
    for contender, tally in zip(contenders, tallies, strict=True):
        row = {
            "name": contender.name,
            "gradients": name,
            "beta2": beta2,
            "steps": steps,
            "elements": sum(shape.numel() for shape in shapes),
            "is_control": contender.is_control,
            "limit_update": contender.limits.update,
            "limit_bias": contender.limits.bias,
            **tally.fields(),
        }
        row["failed"] = failures(row)
        # The figures are differences from the truth themselves: there is nothing else to check.
        rows.append({**row, "checked": True})
    return rows


def failures(row: Row) -> list[str]:
    """Which of a row's two limits are exceeded; NaN exceeds them."""
    failed = []
    errors = (row["update_error"], row["update_error_end"])
    if not all(error <= row["limit_update"] for error in errors):
        failed.append("update")
    if not abs(row["v_bias"]) <= row["limit_bias"]:
        failed.append("bias")
    return failed


def complaints(rows: Sequence[Row], *, controls_fail: bool = True) -> list[str]:
    """What contradicts the claim: ours beyond a limit, or a control that passes everywhere.

    Args:
        rows: Of :func:`measure`, of any number of cases.
        controls_fail: Whether controls are asked to fail; a short trace may not show their drift.

    Returns:
        One line per contradiction.
    """
    found = []
    for row in rows:
        told = set(row["failed"])
        if row["gradients"] == UNJUDGED_BIAS:
            told.discard("bias")
        if told and not row["is_control"]:
            case = f"{row['gradients']}, beta2 {row['beta2']}"
            found.append(f"{row['name']}: {', '.join(sorted(told))} over the limit on {case}")
    if controls_fail:
        controls = dict.fromkeys(row["name"] for row in rows if row["is_control"])
        for name in controls:
            judged = [
                row["failed"]
                for row in rows
                if row["name"] == name and row["gradients"] != UNJUDGED_BIAS
            ]
            if not any(judged):
                found.append(f"{name}: a control, and it passes the test everywhere")
    return found


def table(rows: Sequence[Row]) -> str:
    """One line per case and contender, with what each is held to."""
    lines = [
        f"{'gradients':12}{'beta2':>7}  {'':26}{'update error':>14}{'at the end':>12}"
        f"{'bias of v':>12}   held to {CLAIM.update:.0%}, {CLAIM.bias:.1%} or as told"
    ]
    case = None
    for row in rows:
        is_new, case = case != (row["gradients"], row["beta2"]), (row["gradients"], row["beta2"])
        head = f"{row['gradients']:12}{row['beta2']:7}" if is_new else " " * 19
        verdict = f"fails: {', '.join(row['failed'])}" if row["failed"] else "passes"
        if (row["limit_update"], row["limit_bias"]) != (CLAIM.update, CLAIM.bias):
            verdict += f" ({row['limit_update']:.2%}, {row['limit_bias']:.2%})"
        verdict = f"control {verdict}" if row["is_control"] else verdict
        error, end = (_percent(row[key], 3) for key in ("update_error", "update_error_end"))
        bias = _percent(row["v_bias"], 4)
        lines.append(f"{head}  {row['name']:26}{error:>14}{end:>12}{bias:>12}   {verdict}")
    return "\n".join(lines)


def _percent(value: float, digits: int) -> str:
    return f"{value:.{digits}%}" if abs(value) < 10 else f"{value:.0e} x"
