"""The benchmark harness times only what was checked."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.parts.common.harness import (
    CheckFailed,
    measure,
    measure_together,
    peak_extra_bytes,
)
from benchmarks.parts.common.plots import plot_rows
from tests.needs import need


def passes() -> None:
    return None


def raises() -> None:
    raise AssertionError("ids differ")


@pytest.mark.parametrize(
    "check", [raises, lambda: False, lambda: np.bool_(False), lambda: torch.tensor(False)]
)
def test_measure_times_nothing_when_the_check_fails(check):
    calls = []
    with pytest.raises(CheckFailed, match="sum"):
        measure("sum", lambda: calls.append(1), check=check)
    assert not calls


@pytest.mark.parametrize("check", [passes, lambda: True, lambda: torch.tensor(True)])
def test_measure_reports_percentiles_in_order_and_fields(check):
    row = measure("nap", lambda: time.sleep(0.002), check=check, runs=5, items=10, size=7)
    assert row["name"] == "nap"
    assert row["checked"] is True
    assert row["runs"] == 5
    assert row["size"] == 7
    assert 2.0 <= row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    assert row["items_per_s"] == pytest.approx(10 / (row["median_ms"] / 1e3))


def test_measure_together_alternates_and_gives_ratios_to_the_first():
    order = []

    def quick() -> None:
        order.append("quick")
        time.sleep(0.002)

    def slow() -> None:
        order.append("slow")
        time.sleep(0.02)

    rows = measure_together(
        {"quick": quick, "slow": slow}, check=passes, warmup=2, runs=3, memory=False
    )
    assert order == ["quick"] * 2 + ["slow"] * 2 + ["quick", "slow"] * 3
    assert "ratio_to_quick" not in rows[0]
    assert 2.0 < rows[1]["ratio_to_quick"] < 15.0
    assert rows[0]["peak_extra_bytes"] is None


def test_measure_together_gives_ratios_to_the_functions_named():
    rows = measure_together(
        {"slow": lambda: time.sleep(0.02), "quick": lambda: time.sleep(0.002), "noop": passes},
        check=passes,
        warmup=0,
        runs=3,
        memory=False,
        ratios_to=["slow", "quick"],
    )
    assert "ratio_to_slow" not in rows[0]
    assert "ratio_to_quick" not in rows[1]
    assert rows[0]["ratio_to_quick"] > 1 > rows[1]["ratio_to_slow"] > rows[2]["ratio_to_slow"]
    assert "ratio_to_noop" not in rows[0]


def test_measure_together_reports_each_run():
    calls = []
    measure_together(
        {"a": passes, "b": passes},
        check=passes,
        warmup=2,
        runs=3,
        memory=False,
        after_run=lambda: calls.append(1),
    )
    assert len(calls) == 2 * (2 + 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has the high-water mark")
def test_peak_extra_bytes_sees_what_is_freed_again():
    size = 64 << 20
    once = peak_extra_bytes(lambda: bytearray(size))
    if once is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    # The kernel counts pages in batches, and other parts of the process may give some back.
    assert 0.98 * size <= once < 1.25 * size
    both = peak_extra_bytes(lambda: (np.ones(size, np.int8), np.ones(size, np.int8)))
    assert 1.98 * size <= both < 2.25 * size


@pytest.mark.parametrize("value", ["items_per_s", "median_ms"])
def test_plot_rows_writes_a_png(tmp_path, value):
    need("matplotlib")
    rows = measure_together(
        {"a": passes, "b": passes}, check=passes, runs=3, items=2, memory=False, case="small"
    )
    path = plot_rows(rows, tmp_path / "new" / "x.png", title="t", group="case", value=value)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
def test_measure_on_cuda_times_the_device_and_counts_its_memory():
    a = torch.randn(4096, 4096, device="cuda")
    row = measure("matmul", lambda: a @ a, check=passes, device="cuda", runs=10)
    # 137 GFLOP take longer than the launch that a host clock without synchronization would see.
    assert row["median_ms"] > 0.1
    assert 4 * 4096**2 <= row["peak_extra_bytes"] < 2 * 4 * 4096**2
