"""Measures one case of ``step_throughput.py``: check, memory, time, parts, FLOP."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.parts.common import harness, peers
from benchmarks.parts.common.captions import make_captions
from benchmarks.parts.common.contest import Absence, reason_of
from benchmarks.parts.common.products import Multiply, multipliers
from benchmarks.parts.step.check import check, compute_truth
from benchmarks.parts.step.contenders import Case, Contender, Field
from benchmarks.parts.step.flop import model_flop
from clipfast.models.flop import count_flop

PARTS = (
    "image_forward",
    "image_backward",
    "text_forward",
    "text_backward",
    "loss",
    "optimizer",
)
GEMM_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
OURS = ("clipfast", "clipfast-compile", "clipfast-selective", "clipfast-full", "patched")


def measure_case(
    case: Case,
    keys: list[str],
    runs: int,
    tick: Callable[[str], None] = lambda told: None,
) -> tuple[list[harness.Row], list[Absence]]:
    """Check all contenders on the pairs that they are then timed on; time those that pass.

    Args:
        case: The step.
        keys: Contenders to measure.
        runs: Timed steps of each.
        tick: Called with what comes next, before each run.

    Returns:
        A row for each contender that passed, and the contenders without one.
    """
    peers.set_products(case.precision)
    field = Field(case)
    passed, absent, checks = _check_all(field, keys, tick)
    if not passed:
        return [], absent
    rows = _time(case, passed, runs, tick)
    flop = model_flop(case)
    tick("matrix products")
    ceiling, library = gemm_ceiling(case)
    for row, contender in zip(rows, passed, strict=True):
        row.update(contender=contender.key, model_flop=flop, **checks[contender.name])
        row.update(gemm_flop_per_s=ceiling, gemm_library=library)
        row.update(mfu=flop / (row["median_ms"] / 1e3) / ceiling)
        tick(f"parts of {contender.name}")
        row["parts_ms"] = measure_parts(contender, case.device, max(1, runs // 3))
    return rows, absent


def _check_all(
    field: Field, keys: list[str], tick: Callable[[str], None]
) -> tuple[list[Contender], list[Absence], dict[str, harness.Row]]:
    """The contenders that are right; those that are not; errors, FLOP and memory by name."""
    tick("truth")
    truth = compute_truth(field)
    passed, absent, checks = [], [], {}
    for key in keys:
        tick(f"check of {key}")
        reason = None
        try:
            contender = field.contender(key)
            run = functools.partial(check, contender, truth)
            # The counter would undo the compilation.
            errors, flop = (run(), None) if key.endswith("compile") else count_flop(run)
            checks[contender.name] = {**errors, "done_flop": flop}
            passed.append(contender)
        except Exception as error:  # a peer's failure is a line of the report, whatever it is
            reason = reason_of(error)
        # Outside of except: what a traceback holds is not freed there.
        if reason:
            _recover(field)
            absent.append(Absence(key, reason, key in OURS))
    del truth
    # After all checks: the steps taken here move the weights.
    for contender in list(passed):
        tick(f"memory of {contender.name}")
        reason = None
        try:
            checks[contender.name] |= measure_memory(contender, field.case.device)
        except torch.OutOfMemoryError as error:
            reason = reason_of(error)
        if reason:
            _recover(field)
            passed.remove(contender)
            absent.append(Absence(contender.name, reason, contender.key in OURS))
    return passed, absent, checks


def _recover(field: Field) -> None:
    """Drop what a run that failed has left."""
    for model in (field.ours, field.theirs):
        model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _time(case: Case, passed: list[Contender], runs: int, tick: Callable) -> list[harness.Row]:
    count = iter(range(1, runs * len(passed) + 1))
    tick("timed steps")
    return harness.measure_together(
        {contender.name: contender.step for contender in passed},
        check=lambda: True,  # each has passed its own
        device=case.device,
        warmup=0,
        runs=runs,
        items=case.batch,
        memory=False,
        ratios_to=[contender.name for contender in passed if contender.is_ours],
        after_run=lambda: tick(f"timed step {next(count)} of {runs * len(passed)}"),
        model=case.model,
        batch=case.batch,
        precision=case.precision,
        **make_captions(case.captions, case.batch).fields,
    )


def measure_memory(contender: Contender, device: torch.device) -> dict[str, int | None]:
    """Bytes at the peak of a step: what is held all the time, and what comes on top.

    A step is taken before, in which the optimizer makes its statistics.

    Returns:
        ``state_bytes`` (parameters, buffers, optimizer), ``peak_extra_bytes`` (gradients and
        activations; None where it cannot be measured) and their sum, ``peak_bytes``.
    """
    if not contender.optimizer.state:
        contender.step()
    extra = harness.peak_extra_bytes(contender.step, device)
    tensors = [*contender.model.parameters(), *contender.model.buffers()]
    for statistics_ in contender.optimizer.state.values():
        tensors += [value for value in statistics_.values() if torch.is_tensor(value)]
    state = sum(tensor.nbytes for tensor in tensors)
    total = None if extra is None else state + extra
    return {"state_bytes": state, "peak_extra_bytes": extra, "peak_bytes": total}


def measure_parts(contender: Contender, device: torch.device, runs: int) -> dict[str, float] | None:
    """Medians in milliseconds of the parts of a step, the backward taken tower by tower.

    The same work as one backward through the whole graph: the loss gives the gradients of the
    features, and each tower carries its own. None for a step that is one compiled function.
    """
    if contender.parts is None:
        return None
    samples: dict[str, list[float]] = {part: [] for part in PARTS}
    clock = _CudaClock(device) if device.type == "cuda" else _CpuClock()
    contender.prepare()
    for _ in range(runs):
        for part, seconds in _time_parts(contender, clock).items():
            samples[part].append(1e3 * seconds)
    return {part: statistics.median(values) for part, values in samples.items()}


def _time_parts(contender: Contender, clock: _CpuClock | _CudaClock) -> dict[str, float]:
    encode_image, encode_text, loss_of = contender.parts
    clock.start()
    with contender.autocast():
        image_features = encode_image()
        clock.lap("image_forward")
        text_features = encode_text()
        clock.lap("text_forward")
        leaves = [x.detach().requires_grad_() for x in (image_features, text_features)]
        loss = loss_of(*leaves)
    loss.backward()
    clock.lap("loss")
    image_features.backward(leaves[0].grad)
    clock.lap("image_backward")
    text_features.backward(leaves[1].grad)
    clock.lap("text_backward")
    contender.update()
    clock.lap("optimizer")
    return clock.seconds()


class _CpuClock:
    def start(self) -> None:
        self._laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._laps[part] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return self._laps


class _CudaClock:
    """Laps between events, so that the host is never waited for between parts."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def start(self) -> None:
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self.lap("")

    def lap(self, part: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._events.append((part, event))

    def seconds(self) -> dict[str, float]:
        self._events[-1][1].synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        return {part: before.elapsed_time(after) / 1e3 for (_, before), (part, after) in pairs}


def gemm_ceiling(case: Case) -> tuple[float, str]:
    """FLOP per second of the fastest of a few square matrix products, in the case's precision, by
    whichever library is fastest, and that library's name."""
    rates = {}
    for size in GEMM_SIZES[case.device.type]:
        a, b = (torch.randn(size, size, device=case.device).to(case.dtype) for _ in range(2))
        out = torch.empty_like(a)
        expected, found = a[:8].double() @ b.double(), multipliers(case.dtype, case.device)

        def is_right(multiply: Multiply, a=a, b=b, out=out, expected=expected) -> bool:
            return bool((multiply(a, b, out)[:8] - expected).norm() < 0.02 * expected.norm())

        rows = harness.measure_together(
            {
                name: lambda m=multiply, a=a, b=b, out=out: m(a, b, out)
                for name, multiply in found.items()
            },
            check=lambda found=found, is_right=is_right: all(map(is_right, found.values())),
            device=case.device,
            warmup=2,
            runs=10,
            memory=False,
        )
        for row in rows:
            rate = 2 * size**3 / (row["median_ms"] / 1e3)
            rates[row["name"]] = max(rate, rates.get(row["name"], 0.0))
    fastest = max(rates, key=lambda name: rates[name])
    return rates[fastest], fastest


def forget() -> None:
    """Free what a case has left, compiled code included."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
