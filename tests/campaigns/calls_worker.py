"""Makes calls by number and judges them: ``calls_worker.py SEED EXTENSION FIRST LAST``, or
``calls_worker.py probe EXTENSION``.

A call in the compiled form has to give what plain torch gives, or to be refused in words. The
number of a call is printed before it is made: where the process dies, that one did it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _load(path: str) -> None:
    """Another build of the extension in the place of the installed one."""
    specification = importlib.util.spec_from_file_location("clipfast._C", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["clipfast._C"] = module
    specification.loader.exec_module(module)


def main(seed: int, extension: str, first: int, last: int) -> None:
    """Judge calls `first` to `last` - 1."""
    torch.set_num_threads(2)
    if extension:
        _load(extension)
    for number in range(first, last):
        print(json.dumps({"begin": number}), flush=True)
        print(json.dumps({"number": number, **_judge(seed, number)}), flush=True)


def probe(extension: str) -> None:
    """Let the extension read beyond a block of memory, which a sanitizer has to see."""
    _load(extension)
    import clipfast.models  # noqa: F401

    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    block = (ctypes.c_float * 1000).from_address(library.malloc(ctypes.c_size_t(400)))
    torch.ops.clipfast.quick_gelu(torch.frombuffer(block, dtype=torch.float32))


def _judge(seed: int, number: int) -> dict[str, Any]:
    # What declares the operators.
    import clipfast.loss
    import clipfast.models
    import clipfast.ops.resize
    import clipfast.optim  # noqa: F401
    from tests.campaigns.calls_makers import CHANGES, MAKERS

    chance = random.Random(f"{seed}/{number}")
    torch.manual_seed(chance.randrange(2**31))
    names = list(MAKERS)
    call = MAKERS[names[number % len(names)]](chance)
    change = ""
    if chance.random() < 0.6:
        change = chance.choice(list(CHANGES))
        call = call._replace(arguments=_changed(call.arguments, CHANGES[change], chance))
    verdict = _compare(call, exact=change in ("", "turned", "spread out", "off its alignment"))
    return {"operator": call.operator, "change": change or "none", **verdict}


def _changed(arguments: list[Any], change: Any, chance: random.Random) -> list[Any]:
    places = [
        (i, None if isinstance(value, Tensor) else j)
        for i, value in enumerate(arguments)
        for j in range(len(value) if isinstance(value, list) else 1)
        if isinstance(value[j] if isinstance(value, list) else value, Tensor)
    ]
    changed = [list(value) if isinstance(value, list) else value for value in arguments]
    i, j = chance.choice(places)
    if j is None:
        changed[i] = change(changed[i], chance)
    else:
        changed[i][j] = change(changed[i][j], chance)
    return changed


def _copy(value: Any) -> Any:
    """A copy with the same strides, so that what is written into it shows."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, Tensor) and value.device.type == "cpu":
        whole = value.new_empty(0).set_(value.untyped_storage().clone())
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())
    return value


def _run(function: Any, call: Any) -> tuple[Any, str]:
    arguments = _copy(call.arguments)
    try:
        result = function(*arguments, **call.keywords)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    if result is None:
        result = [item for value in arguments[:6] for item in value if isinstance(item, Tensor)]
    return list(result) if isinstance(result, (tuple, list)) else [result], ""


def _compare(call: Any, exact: bool) -> dict[str, Any]:
    from clipfast.ops.registry import OPERATORS

    compiled, refusal = _run(getattr(torch.ops.clipfast, call.operator), call)
    if call.operator == "contrastive_gradients" and call.arguments[9].numel():
        # What a form keeps of the logits is its own; plain torch makes them anew.
        arguments = [*call.arguments[:9], torch.empty(0), *call.arguments[10:]]
        call = call._replace(arguments=arguments)
    plain, plain_refusal = _run(OPERATORS[call.operator].plain, call)
    if refusal:
        said = refusal.partition(": ")[2].strip()
        wrong = "" if said else f"an error without words: {refusal}"
        return {"ended": f"refused: {said[:80]}", "wrong": wrong}
    if all(result.is_meta for result in compiled):
        return {"ended": "shapes alone", "wrong": ""}
    if plain_refusal:
        return {"ended": "taken", "wrong": f"taken, and plain torch refuses: {plain_refusal[:120]}"}
    if call.operator == "contrastive_statistics":
        compiled, plain = _logarithms(compiled), _logarithms(plain)
    return {"ended": "taken", "wrong": _difference(compiled, plain, exact)}


def _logarithms(results: list[Tensor]) -> list[Tensor]:
    """Of both sums: what they are relative to is each form's own, as is what it keeps."""
    row_max, row_sum, column_max, column_sum = results[:4]
    return [row_max + row_sum.log(), column_max + column_sum.log()]


def _difference(compiled: list[Tensor], plain: list[Tensor], exact: bool) -> str:
    for i, (ours, truth) in enumerate(zip(compiled, plain, strict=True)):
        if ours.shape != truth.shape or ours.dtype != truth.dtype:
            if ours.numel() == truth.numel() == 0:
                continue
            kinds = [f"{t.dtype} {list(t.shape)}" for t in (ours, truth)]
            return f"result {i} is {kinds[0]}, plain {kinds[1]}"
        if ours.device.type == "meta" or not exact:
            continue
        ours, truth = ours.double(), truth.double()
        bound = {1: 1.0, 2: 2e-2, 4: 1e-4, 8: 1e-9}[compiled[i].element_size()]
        finite = truth[truth.isfinite()]
        limit = bound * finite.abs().max().clamp(min=1.0) if finite.numel() else 1.0
        # A row without another column has no sum: minus infinity on both sides.
        worst = torch.where(ours == truth, 0.0, ours - truth).abs().max() if truth.numel() else 0.0
        if not worst <= limit:
            return f"result {i} differs by {float(worst):.3g}, allowed {float(limit):.3g}"
    return ""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if sys.argv[1] == "probe":
        probe(sys.argv[2])
        sys.exit()
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
