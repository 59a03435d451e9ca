"""That each operator has the form that is meant for this device."""

import importlib
import pkgutil
from collections.abc import Mapping

import torch

import clipfast.ops
from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.doctor.situation import Situation
from clipfast.env import extension, kernels
from clipfast.ops.extension import REMEDY
from clipfast.ops.registry import OPERATORS, PLAIN, Compiled, available_impls

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


def look(situation: Situation) -> Seen:
    """Which forms serve here, and compiled ones that the extension should have and has not."""
    for module in pkgutil.iter_modules(clipfast.ops.__path__, "clipfast.ops."):
        if module.ispkg:
            importlib.import_module(module.name)
    device, built = situation.device, extension()
    serves, missing = {}, []
    for name, operator in sorted(OPERATORS.items()):
        if not operator.forms:
            continue
        serves[name] = available_impls(name, device)[0]
        compiled = Compiled("cuda" if situation.on_gpu else "cpu")
        if compiled in operator.forms and compiled.serves(device):
            where = f"clipfast::{operator.name_of(compiled.name)}"
            has = torch._C._dispatch_has_kernel_for_dispatch_key(where, _KEYS[device.type])
            if not has:
                missing.append(name)
    capability = built.get("cpu_capability", "")
    reason = built.get("reason", "") or built.get("cuda_reason", "")
    return {
        "built": built["built"],
        "reason": reason,
        "triton": kernels().get("reason", ""),
        "capability": capability,
        "serves": serves,
        "missing": missing,
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """What serves in a slower form than it should, and why."""
    found = []
    absent = [rank for rank, each in seen.items() if not each["built"]]
    if absent:
        found.append(
            failure(
                f"clipfast's compiled operators are absent: {seen[absent[0]]['reason']}. Plain "
                "torch serves in their place, several times slower",
                f"To build them, {REMEDY}",
                absent,
            )
        )
    for rank, each in seen.items():
        if each["missing"]:
            found.append(
                failure(
                    f"clipfast._C lacks {', '.join(each['missing'])}: it was built from another "
                    "version of clipfast",
                    f"Build it anew: {REMEDY}",
                    [rank],
                )
            )
        plain = [name for name, impl in each["serves"].items() if impl == PLAIN]
        if each["built"] and plain and situation.on_gpu:
            reasons = "; ".join(filter(None, [each["reason"], each["triton"]]))
            found.append(
                warning(
                    f"plain torch serves on the GPU for {', '.join(plain)}: {reasons}",
                    "pip install triton, or build clipfast where nvcc is found, with "
                    "CLIPFAST_BUILD_CUDA=1",
                    [rank],
                )
            )
    capabilities = {each["capability"] for each in seen.values()}
    if not situation.on_gpu and len(capabilities) > 1:
        found.append(
            warning(
                f"ranks run the code of different processors: {', '.join(sorted(capabilities))}",
                "Results repeat on processors of one kind only: take nodes of one kind, or set "
                "CLIPFAST_CPU_CAPABILITY to the least of them everywhere",
            )
        )
    if found:
        return found
    first = next(iter(seen.values()))
    counts: dict[str, int] = {}
    for impl in first["serves"].values():
        counts[impl] = counts.get(impl, 0) + 1
    forms = ", ".join(f"{count} {impl}" for impl, count in counts.items())
    return [ok(f"{len(first['serves'])} operators: {forms}; built for {first['capability']}")]


OPERATORS_HERE = Check("operators", look, judge, limit=60)
