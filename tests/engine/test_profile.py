"""A profile's arithmetic, on cases made by hand; test_training.py looks at what a run writes."""

import pytest

from clipfast.engine import LoggingConfig
from clipfast.engine.observing.breakdown import Breakdown
from clipfast.engine.observing.intervals import both, total, union, without
from clipfast.engine.observing.phases import Steps
from clipfast.engine.observing.profiler import SPANS, Profiler
from clipfast.engine.observing.trace import read_trace
from tests.engine.plans import plan


@pytest.mark.parametrize(
    ("intervals", "merged"),
    [
        ([], []),
        ([(3, 4), (0, 1)], [(0, 1), (3, 4)]),
        ([(0, 2), (1, 3), (3, 5)], [(0, 5)]),
        ([(0, 9), (1, 2)], [(0, 9)]),
        ([(2, 2), (4, 3)], []),
    ],
)
def test_union_joins_what_touches(intervals, merged):
    assert union(intervals) == merged


@pytest.mark.parametrize(
    ("a", "b", "shared", "alone"),
    [
        ([(0, 10)], [], [], [(0, 10)]),
        ([(0, 10)], [(2, 3), (5, 7)], [(2, 3), (5, 7)], [(0, 2), (3, 5), (7, 10)]),
        ([(0, 4), (6, 10)], [(3, 7)], [(3, 4), (6, 7)], [(0, 3), (7, 10)]),
        ([(1, 2), (3, 4)], [(0, 5)], [(1, 2), (3, 4)], []),
        ([(0, 1)], [(1, 2)], [], [(0, 1)]),
    ],
)
def test_both_and_without_share_out_the_time(a, b, shared, alone):
    assert both(a, b) == both(b, a) == shared
    assert without(a, b) == alone
    assert total(shared) + total(alone) == total(a)


def event(name, start, end, category="cpu_op", thread=1, **arguments):
    return {
        **{"ph": "X", "name": name, "cat": category, "tid": thread, "args": arguments},
        **{"ts": start, "dur": end - start},
    }


def span(name, start, end, thread=1):
    return event(name, start, end, "user_annotation", thread)


# Two steps of 100 and of 50 us, one of which waits for data and both of which gather.
CPU = [
    span("ProfilerStep#4", 0, 100),
    span("ProfilerStep#5", 100, 150),
    span("data", 0, 20),
    # Pixels are made ready while the step waits.
    event("clipfast::resize", 5, 15),
    span("forward", 20, 60),
    event("aten::mm", 20, 30),
    span("gather of texts", 30, 34),
    event("_c10d_functional::all_gather_into_tensor", 30, 33),
    event("c10d::allgather_into_tensor_coalesced_", 31, 33),
    span("gloo:all_gather", 32, 50, thread=9),
    span("image tower", 34, 60),
    event("aten::convolution", 34, 44),
    event("aten::mm", 36, 40),
    event("autograd::engine::evaluate_function: MmBackward0", 60, 90),
    event("MmBackward0", 60, 90),
    span("backward", 60, 90),
    event("aten::mm", 60, 70),
    event("c10d::allreduce_", 70, 71),
    span("gloo:all_reduce", 72, 88, thread=8),
    # Behind the step, and before the profile.
    event("c10d::allreduce_", 120, 121),
    span("gloo:all_reduce", 122, 124, thread=8),
    span("gloo:all_reduce", -9, -1, thread=8),
    {"ph": "M", "name": "process_name", "tid": 1},
]


def test_a_cpus_trace_says_what_was_hidden_and_what_was_not():
    found = Breakdown.of(read_trace(CPU, SPANS))
    each = 1e-6 / 2
    assert found.steps == 2
    assert found.step == pytest.approx(150 * each)
    # 20-30, 34-44 and 60-70: neither wrappers nor what the wait for data does.
    assert found.compute == pytest.approx(30 * each)
    # The gather from 34 to 44; what is left of 32-50, and both reductions.
    assert found.hidden == pytest.approx(10 * each)
    assert found.exposed == pytest.approx((8 + 16 + 2) * each)
    assert found.data == pytest.approx(20 * each)
    assert found.idle == pytest.approx((150 - 30 - 26 - 20) * each)
    kinds = {c.name: (c.calls, c.hidden, c.exposed) for c in found.collectives}
    assert kinds == {
        "all_gather in gather of texts": pytest.approx((0.5, 10 * each, 8 * each)),
        "all_reduce in backward": pytest.approx((0.5, 0, 16 * each)),
        "all_reduce between steps": pytest.approx((0.5, 0, 2 * each)),
    }
    assert found.spans["image tower"] == pytest.approx(26 * each)
    assert found.on_device == {}
    text = "\n".join(found.lines())
    assert "mean of 2 profiled steps: 0.07 ms" in text
    assert found.plain()["collectives"][0]["name"] == "all_gather in gather of texts"


# A GPU computes behind the host; kernels are tied to what launched them by a number.
GPU = [
    span("ProfilerStep#4", 0, 100),
    event("ProfilerStep#4", 2, 90, "gpu_user_annotation", 7),
    span("data", 0, 10),
    span("forward", 10, 30),
    span("image tower", 12, 28),
    span("reduce", 40, 45, thread=3),
    span("backward", 30, 60),
    *(
        event("cudaLaunchKernel", start, start + 1, "cuda_runtime", correlation=number)
        for number, start in ((1, 13), (2, 20), (3, 41), (4, 50))
    ),
    event("gemm", 15, 35, "kernel", 7, correlation=1),
    event("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgs)", 25, 45, "kernel", 8, correlation=2),
    event("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 60, 80, "kernel", 8, correlation=3),
    event("gemm", 50, 70, "kernel", 7, correlation=4),
    event("aten::mm", 12, 99),
]


def test_a_gpus_trace_says_which_span_asked_for_what():
    found = Breakdown.of(read_trace(GPU, SPANS))
    assert found.compute == pytest.approx(40e-6)
    assert (found.hidden, found.exposed) == pytest.approx((20e-6, 20e-6))
    # Nothing else was under way from 0 to 10.
    assert found.data == pytest.approx(10e-6)
    assert found.idle == pytest.approx((100 - 40 - 20 - 10) * 1e-6)
    kinds = {c.name: (c.hidden, c.exposed) for c in found.collectives}
    assert kinds == {
        "all_gather in image tower": pytest.approx((10e-6, 10e-6)),
        "reduce_scatter in reduce": pytest.approx((10e-6, 10e-6)),
    }
    assert found.on_device == pytest.approx({"image tower": 20e-6, "backward": 20e-6})
    assert any(line.split()[-3:] == ["tower", "0.02", "0.02"] for line in found.lines())


def test_a_trace_without_steps_is_refused():
    with pytest.raises(ValueError, match="no step"):
        read_trace([event("aten::mm", 0, 1)], SPANS)


@pytest.mark.parametrize(
    # Steps before this start, the run's last one, those asked for; those that are traced.
    ("taken", "last", "asked", "traced"),
    [
        (0, 100, 3, [4, 5, 6]),
        (50, 100, 2, [54, 55]),
        (0, 5, 3, [3, 4, 5]),
        (0, 2, 9, [2]),
        (0, 1, 3, []),
    ],
)
def test_a_profile_leaves_out_the_first_steps_and_fits_into_the_run(taken, last, asked, traced):
    said: list[str] = []
    made = plan(logging=LoggingConfig(profile=asked))
    profiler = Profiler(made, None, Steps(), taken, last, said.append)
    begins = profiler._first + 1
    assert list(range(begins, profiler._last + 1)) == traced
    assert bool(said) != bool(traced)
